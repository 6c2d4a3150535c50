"""Checkpoints that survive anything: safetensors and JSON, written whole or not at all, every byte checked when read.

A checkpoint is a folder `RUN_DIR/checkpoints/step-00000500/` with one `*.safetensors` for each group of tensors and a
`state.json` that holds the rest and the xxh3 checksum of every file, its own included. It is written under a temporary name
beside its place, flushed to the disk and renamed, so a process killed at any moment leaves the earlier ones as they were.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, contiguous_format

from medssl.config import shown
from medssl.errors import GO_ON, CheckpointError, MissingInput, UsageError
from medssl.faults import faults_as
from medssl.files import create_file, make_folder, sync, sync_folder, take_folder, temporary_beside
from medssl.run import Run
from medssl.train.checkpoint_state import (
    BLANK,
    FORMAT,
    STATE,
    TENSORS,
    VERSION,
    UnreadableCheckpoint,
    checksum_of,
    damaged,
    read_state,
    read_whole,
)

CHECKPOINTS = "checkpoints"
_NAME = re.compile(r"^(?P<series>[a-z]+)-(?P<step>\d{8,})$")


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over."""


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """A checkpoint that was read whole and verified."""

    path: Path
    step: int
    """Steps taken when it was written."""
    tensors: dict[str, dict[str, Tensor]]
    """By group (`network`, `objective`, `optimizer`): name -> tensor on the CPU."""
    state: dict[str, Any]
    """Everything else, as it was given to `save_checkpoint`, plus `files`."""

    def __repr__(self) -> str:
        groups = ", ".join(f"{len(named)} tensors of {group}" for group, named in self.tensors.items()) or "no tensors"
        return f"Checkpoint({str(self.path)!r}, step {self.step}, {self.state.get('kind') or 'of no run'}: {groups})"

    def need(self, *keys: str) -> None:
        """Raise `CheckpointError` where its state does not say one of these."""
        missing = [key for key in keys if key not in self.state]
        if missing:
            raise damaged(self.path / STATE, f"it does not say {', '.join(missing)}")


def checkpoint_path(run_folder: str | Path, step: int, series: str = "step") -> Path:
    """Where the checkpoint of that step lies: `RUN_DIR/checkpoints/step-00000500`."""
    return Path(run_folder) / CHECKPOINTS / f"{series}-{step:08d}"


def save_checkpoint(
    run_folder: str | Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int | None = None,
    series: str = "step",
) -> Path:
    """Write a checkpoint atomically and return its folder; `keep` removes all but the last so many of its series.

    One whose state says that it follows on skipped steps (`skipping`) does not push out the last one that does not.

    `tensors` maps a group to its named tensors; a tensor under two names is written once. `state` must be JSON. A second
    series (`series="best"`) is counted by itself. Raises `CheckpointError` where the disk does not take it; whatever was
    there before stays good.
    """
    target = checkpoint_path(run_folder, step, series)
    partial = temporary_beside(target)
    kept = f"Earlier checkpoints are untouched. {GO_ON}"
    with faults_as(CheckpointError, f"the checkpoint of step {step} cannot be written to {target}", kept):
        if not Path(run_folder).exists():
            take_folder(Path(run_folder))
        make_folder(target.parent)
        try:
            _write_files(make_folder(partial), step, tensors, state)
            sync_folder(partial)
            if target.exists():
                _remove(target)
            partial.rename(target)
        finally:
            # Gone after the rename; still there after a fault.
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(target.parent)
    if keep is not None:
        _keep_last(target.parent, series, keep)
    return target


def load_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint in that folder, every file verified.

    Raises `MissingInput` where nothing is there and `CheckpointError`, naming the file, where one is missing, cut short, changed
    or of a newer format.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise MissingInput(f"no checkpoint at {folder}. Give a run folder or one of its checkpoints/step-NNNNNNNN folders.")
    document = read_state(folder / STATE)
    step, files = document.pop("step"), document["files"]
    aliases = document.pop("aliases")
    tensors = {}
    for name, checksum in files.items():
        content = _read_tensors(folder / name, checksum)
        group = name.removesuffix(TENSORS)
        for alias, kept in aliases.get(group, {}).items():
            if kept not in content:
                raise damaged(folder / STATE, f"it speaks of a tensor {shown(kept)}, which {name} does not hold")
            content[alias] = content[kept]
        tensors[group] = content
    return Checkpoint(folder, step, tensors, document)


def list_checkpoints(run_folder: str | Path, series: str = "step") -> list[Path]:
    """The checkpoint folders of a run, oldest first, unread."""
    folder = Path(run_folder) / CHECKPOINTS
    if not folder.is_dir():
        return []
    with faults_as(CheckpointError, f"the checkpoints in {folder} cannot be listed"):
        found = [(match, path) for path in folder.iterdir() if (match := _NAME.match(path.name)) and path.is_dir()]
    return [path for match, path in sorted(found, key=lambda pair: int(pair[0]["step"])) if match["series"] == series]


def newest_good(run_folder: str | Path, series: str = "step") -> Checkpoint | None:
    """The newest checkpoint of a run that reads without a fault; None where there is none at all.

    Damaged ones are passed over with a `CheckpointWarning` each; where all are damaged a `CheckpointError` names them. One that may
    not be read is not passed over: it may be good.
    """
    problems = []
    for path in reversed(list_checkpoints(run_folder, series)):
        try:
            checkpoint = load_checkpoint(path)
        except UnreadableCheckpoint:
            raise
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"{problem} Going back to {path}.", CheckpointWarning, stacklevel=2)
        return checkpoint
    if problems:
        raise CheckpointError(f"no checkpoint of {run_folder} can be read. " + " ".join(problems))
    return None


def before_skips(run_folder: str | Path, newest: Checkpoint) -> Checkpoint:
    """The newest good checkpoint that does not follow on skipped steps; `newest` itself where there is none.

    What made a loss infinite is in the weights of the checkpoints behind it.
    """
    older = [path for path in list_checkpoints(run_folder) if path.name < newest.path.name and not _skipping(path)]
    for path in reversed(older if newest.state.get("skipping") else []):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            warnings.warn(str(error), CheckpointWarning, stacklevel=2)
    return newest


def _skipping(path: Path) -> bool:
    """Does the checkpoint follow on a skipped step, or cannot be read?"""
    try:
        return bool(read_state(path / STATE).get("skipping"))
    except CheckpointError:
        return True


def find_checkpoint(path: str | Path | Run | Checkpoint, series: str = "step") -> Checkpoint:
    """The checkpoint that a person means by a path or run: that folder itself, or the newest good one of a run folder.

    With `series="best"` the best one of a run, or its newest where it has none. Raises `MissingInput` or `CheckpointError`.
    """
    if isinstance(path, Checkpoint):
        return path
    if not isinstance(path, str | PurePath | Run):
        raise UsageError(f"{_kind(path)} is no run and no checkpoint of medssl. {_TENSORS_ALONE}")
    folder = path.folder if isinstance(path, Run) else Path(path)
    if folder.name == STATE:
        folder = folder.parent
    if (folder / STATE).exists() or _NAME.match(folder.name):
        return load_checkpoint(folder)
    if folder.is_file():
        raise UsageError(f"{folder} is no run and no checkpoint of medssl. {_TENSORS_ALONE}")
    if not folder.is_dir():
        raise MissingInput(f"no run and no checkpoint at {folder}. Give a run folder or one of its checkpoints/step-NNNNNNNN folders.")
    found = newest_good(folder.parent if folder.name == "checkpoints" else folder, series)
    if found is None and series != "step":
        return find_checkpoint(folder)
    if found is None:
        raise MissingInput(f"{folder} holds no checkpoint. Give the folder of a run that has written one.")
    return found


_TENSORS_ALONE = (
    "Tensors alone do not say what network they are of, how its images were prepared and what its outputs mean. Give the run, its folder, "
    "or one of its checkpoints."
)


def _kind(value: Any) -> str:
    return "a state dict" if isinstance(value, Mapping) else type(value).__name__


def _write_files(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    files, aliases = {}, {}
    for group, named in tensors.items():
        unique, same = _without_doubles(named)
        content = safetensors.torch.save(unique)
        name = f"{group}{TENSORS}"
        files[name] = checksum_of(content)
        if same:
            aliases[group] = same
        _write_synced(folder / name, content)
    header = {"checksum": BLANK, "format": FORMAT, "version": VERSION, "step": step}
    document = {**header, **{key: value for key, value in state.items() if key not in header}, "files": files, "aliases": aliases}
    text = json.dumps(document, indent=1, allow_nan=False).encode()
    _write_synced(folder / STATE, text.replace(BLANK.encode(), checksum_of(text).encode(), 1))


def _without_doubles(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Some networks register one tensor under two names (DynUNet): (tensors once, other name -> kept name)."""
    unique: dict[str, Tensor] = {}
    kept: dict[tuple[Any, ...], str] = {}
    same: dict[str, str] = {}
    for name, tensor in named.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in kept:
            same[name] = kept[key]
            continue
        kept[key] = name
        unique[name] = tensor.detach().to("cpu").clone(memory_format=contiguous_format)
    return unique, same


def _read_tensors(file: Path, checksum: str) -> dict[str, Tensor]:
    content = read_whole(file)
    if checksum_of(content) != checksum:
        raise damaged(file, f"its checksum does not fit its content ({len(content)} bytes)")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise damaged(file, str(error)[:200]) from error
    return tensors


def _write_synced(file: Path, content: bytes) -> None:
    with create_file(file) as stream:
        stream.write(content)
        sync(stream)


def _keep_last(folder: Path, series: str, keep: int) -> None:
    """All but the last `keep` go; where these follow on skipped steps, the last one that does not stays too."""
    found = list_checkpoints(folder.parent, series)
    kept, older = found[-max(keep, 1) :], found[: -max(keep, 1)]
    if series == "step" and all(map(_skipping, reversed(kept))):
        healthy = next((path for path in reversed(older) if not _skipping(path)), None)
        older = [path for path in older if path != healthy]
    for path in older:
        with faults_as(CheckpointError, f"the old checkpoint {path} cannot be removed", "The newest one is written and good."):
            _remove(path)


def _remove(folder: Path) -> None:
    """Renamed first, so a kill in between leaves no half-removed checkpoint under a good name."""
    aside = temporary_beside(folder)
    folder.rename(aside)
    shutil.rmtree(aside)
