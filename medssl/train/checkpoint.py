"""Checkpoints that survive anything: safetensors and JSON, written whole or not at all, every byte checked when read.

A checkpoint is a folder `RUN_DIR/checkpoints/step-00000500/` with one `*.safetensors` for each group of tensors and a
`state.json` that holds the rest and the xxh3 checksum of every file, its own included. It is written under a temporary name
beside its place, flushed to the disk and renamed, so a process killed at any moment leaves the earlier ones as they were.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor, contiguous_format

from medssl.errors import CheckpointError, MissingInput
from medssl.faults import fault, faults_as, is_fault
from medssl.files import create_file, make_folder, sync, sync_folder, temporary_beside

FORMAT = "medssl-checkpoint"
VERSION = 2
"""1: heads and terms by class name, one line of preparation a volume, and no word of what a task made the network take."""
STATE = "state.json"
CHECKPOINTS = "checkpoints"
_BLANK = "0" * 16
_NAME = re.compile(r"^(?P<series>[a-z]+)-(?P<step>\d{8,})$")
_CHECKSUM = re.compile(rb'^\{\n "checksum": "([0-9a-f]{16})"')


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over."""


class UnreadableCheckpoint(CheckpointError):
    """A checkpoint that the system does not let this process read: nothing is known of what it holds."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read whole and verified."""

    path: Path
    step: int
    """Steps taken when it was written."""
    tensors: dict[str, dict[str, Tensor]]
    """By group (`network`, `objective`, `optimizer`): name -> tensor on the CPU."""
    state: dict[str, Any]
    """Everything else, as it was given to `save_checkpoint`, plus `files`."""


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

    `tensors` maps a group to its named tensors; a tensor under two names is written once. `state` must be JSON. A second
    series (`series="best"`) is counted by itself. Raises `CheckpointError` where the disk does not take it; whatever was
    there before stays good.
    """
    target = checkpoint_path(run_folder, step, series)
    partial = temporary_beside(target)
    kept = "Earlier checkpoints are untouched. Then go on with --resume."
    with faults_as(CheckpointError, f"the checkpoint of step {step} cannot be written to {target}", kept):
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
    document = _read_state(folder / STATE)
    step, files = document.pop("step"), document["files"]
    aliases = document.pop("aliases")
    tensors = {}
    for name, checksum in files.items():
        content = _read_tensors(folder / name, checksum)
        group = name.removesuffix(".safetensors")
        content.update({alias: content[kept] for alias, kept in aliases.get(group, {}).items()})
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


def find_checkpoint(path: str | Path, series: str = "step") -> Checkpoint:
    """The checkpoint that a person means by a path: that folder itself, or the newest good one of a run folder.

    With `series="best"` the best one of a run, or its newest where it has none. Raises `MissingInput` or `CheckpointError`.
    """
    folder = Path(path)
    if folder.name == STATE:
        folder = folder.parent
    if (folder / STATE).exists() or _NAME.match(folder.name):
        return load_checkpoint(folder)
    if not folder.is_dir():
        raise MissingInput(f"no run and no checkpoint at {folder}. Give a run folder or one of its checkpoints/step-NNNNNNNN folders.")
    found = newest_good(folder.parent if folder.name == "checkpoints" else folder, series)
    if found is None and series != "step":
        return find_checkpoint(folder)
    if found is None:
        raise MissingInput(f"{folder} holds no checkpoint. Give the folder of a run that has written one.")
    return found


def checksum_of(content: bytes) -> str:
    """xxh3 (64 bit) as 16 hexadecimal digits."""
    return str(xxhash.xxh3_64_hexdigest(content))


def _write_files(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    files, aliases = {}, {}
    for group, named in tensors.items():
        unique, same = _without_doubles(named)
        content = safetensors.torch.save(unique)
        name = f"{group}.safetensors"
        files[name] = checksum_of(content)
        if same:
            aliases[group] = same
        _write_synced(folder / name, content)
    header = {"checksum": _BLANK, "format": FORMAT, "version": VERSION, "step": step}
    document = {**header, **{key: value for key, value in state.items() if key not in header}, "files": files, "aliases": aliases}
    text = json.dumps(document, indent=1, allow_nan=False).encode()
    _write_synced(folder / STATE, text.replace(_BLANK.encode(), checksum_of(text).encode(), 1))


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


def _read_state(file: Path) -> dict[str, Any]:
    content = _read(file)
    found = _CHECKSUM.match(content)
    if found is None:
        raise _damaged(file, "its first lines are not those of a medssl checkpoint")
    if checksum_of(content.replace(found[1], _BLANK.encode(), 1)) != found[1].decode():
        raise _damaged(file, "its checksum does not fit its content")
    document: dict[str, Any] = json.loads(content)
    if document["version"] > VERSION:
        raise CheckpointError(f"{file} has format version {document['version']}, this medssl reads up to {VERSION}. Update medssl.")
    if document["version"] < VERSION:
        writer = document.get("versions", {}).get("medssl", "unknown")
        raise CheckpointError(
            f"{file} has format version {document['version']}, of an earlier medssl ({writer}): "
            "it does not say all that this one needs to know of channels, preparation and terms, so it is not read in part. "
            "Train again with this medssl, or go on with the earlier one."
        )
    for key in ("checksum", "format", "version"):
        del document[key]
    return document


def _read_tensors(file: Path, checksum: str) -> dict[str, Tensor]:
    content = _read(file)
    if checksum_of(content) != checksum:
        raise _damaged(file, f"its checksum does not fit its content ({len(content)} bytes)")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
    except SafetensorError as error:
        raise _damaged(file, str(error)) from error
    return tensors


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise _damaged(file, "the file is missing") from error
    except Exception as error:
        if not is_fault(error):
            raise
        if getattr(error, "errno", None) == errno.EIO:
            raise _damaged(file, "the disk does not give its content") from error
        raise UnreadableCheckpoint(fault(error, f"the checkpoint's file {file} cannot be read")) from error


def _damaged(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file} is damaged: {what}. Delete the folder {file.parent.name}; `--resume` then goes on from the one before, "
        "or copy the checkpoint again from where it came."
    )


def _write_synced(file: Path, content: bytes) -> None:
    with create_file(file) as stream:
        stream.write(content)
        sync(stream)


def _keep_last(folder: Path, series: str, keep: int) -> None:
    for path in list_checkpoints(folder.parent, series)[: -max(keep, 1)]:
        with faults_as(CheckpointError, f"the old checkpoint {path} cannot be removed", "The newest one is written and good."):
            _remove(path)


def _remove(folder: Path) -> None:
    """Renamed first, so a kill in between leaves no half-removed checkpoint under a good name."""
    aside = temporary_beside(folder)
    folder.rename(aside)
    shutil.rmtree(aside)
