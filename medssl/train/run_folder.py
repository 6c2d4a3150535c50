"""The folder of a run: one run in it, one process at a time, and numbers that can be compared bit for bit.

`config.yaml` is the resolved configuration, `metrics.jsonl` holds only what is reproducible and `timings.jsonl` what is not.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from medssl.config import dump_config, load_config, shown
from medssl.errors import GO_ON, RESUME, ConfigError, MissingInput, TrainingError, UsageError
from medssl.faults import faults_as
from medssl.files import LOCK, Busy, FolderLock, append_to, lock_folder, others_in, take_folder, write_atomically
from medssl.train.checkpoint import CHECKPOINTS, list_checkpoints
from medssl.yaml_text import parse_yaml

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
TIMINGS = "timings.jsonl"
SKIPPED = "skipped.jsonl"
PICTURES = "pictures"
LABELLED = "labelled"
"""The store of the labelled cases; it may be there before the run begins."""
VOLUMES = "volumes"
"""The store of a pretraining whose data came as items of a MONAI pipeline; likewise."""
WEIGHTS = "given.safetensors"
"""The weights that a run begins with, where they came as a state dict; likewise."""
_OWN = (CONFIG, METRICS, CHECKPOINTS)
_EARLIER = re.compile(rf".*\.(log|out|err)|{LABELLED}|{VOLUMES}|{re.escape(WEIGHTS)}|{re.escape(LOCK)}")
"""What may be there before the run begins: logs of a batch system, its own stores, weights given to it, and the lock of a run that did not
get so far."""


@contextmanager
def locked(folder: str | Path) -> Iterator[FolderLock]:
    """Hold the run folder for this process; a second process gets a `TrainingError`. Makes the folder where it is missing.

    What a killed process left half-written there is removed.
    """
    path = Path(folder)
    with faults_as(UsageError, f"the run folder {path} cannot be used"):
        if not holds_run(path):
            take_folder(path)
        try:
            held = lock_folder(path, swept=("", CHECKPOINTS, PICTURES))
        except Busy as error:
            raise TrainingError(
                f"{path} is being trained into by another process ({error}). Wait for it, stop it, or give another folder."
            ) from error
    try:
        yield held
    finally:
        held.release()


def holds_run(folder: str | Path) -> bool:
    """Whether a run was begun in that folder."""
    with faults_as(UsageError, f"the run folder {folder} cannot be used"):
        return any((Path(folder) / name).exists() for name in _OWN)


def check_room(folder: str | Path, needed: int) -> None:
    """`UsageError` where the disk under `folder`, which need not exist yet, has fewer than `needed` bytes free."""
    path = Path(folder).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UsageError(
            f"{path} has {free / 1e9:.2f} GB free and the checkpoints of this run need {needed / 1e9:.2f} GB. "
            "Make room, lower train.keep, or give another folder."
        )


def begin_run(folder: str | Path, config: BaseModel) -> None:
    """Write the resolved configuration into a folder that holds no run yet; `TrainingError` where it does."""
    refuse_other_run(folder)
    _write_config(Path(folder), config)


def refuse_other_run(folder: str | Path) -> None:
    """`TrainingError` where the folder holds a run, or files that are no batch system's logs; nothing in it is touched."""
    path = Path(folder)
    if holds_run(path):
        steps = [p.name for p in list_checkpoints(path)]
        raise TrainingError(
            f"{path} already holds a run ({'newest checkpoint ' + steps[-1] if steps else 'without a checkpoint'}). "
            f"Go on with it by {RESUME}, or give another folder."
        )
    with faults_as(UsageError, f"the run folder {path} cannot be used"):
        foreign = others_in(path, lambda name: _EARLIER.fullmatch(name) is not None)
    if foreign:
        raise TrainingError(f"{path} holds files that belong to no run ({', '.join(foreign[:5])}). Give a new or an empty folder.")


def continue_run(
    folder: str | Path, config: BaseModel, free: frozenset[str], changeable: frozenset[str], step: int
) -> list[dict[str, Any]]:
    """Check that the folder's run is the one of `config`, cut its rows past `step`, and say which of the `changeable` keys changed."""
    path = Path(folder)
    check_same_run(path, config, free | changeable)
    differences = _differences(path, config)
    changed = [{"key": key, "before": differences[key][0], "now": differences[key][1]} for key in sorted(differences) if key in changeable]
    _write_config(path, config)
    for name in (METRICS, TIMINGS, SKIPPED):
        cut_rows(path / name, step)
    return changed


def check_same_run(folder: str | Path, config: BaseModel, free: frozenset[str]) -> None:
    """`ConfigError` naming the keys in which the folder's run differs from `config`; nothing in it is touched.

    `free` names the keys (`train.keep`) that may differ.
    """
    path = Path(folder)
    changed = {key: pair for key, pair in sorted(_differences(path, config).items()) if not _is_free(key, free)}
    if changed:
        said = "; ".join(f"{key}: {shown(before)} there, {shown(now)} here" for key, (before, now) in list(changed.items())[:5])
        builds_on = "from" if "from_" in type(config).model_fields else "pretrained"
        raise ConfigError(
            f"{path} holds a run with another configuration ({said}). Resume with its own {path / CONFIG}, in which "
            f"{', '.join(sorted(key for key in free if key.startswith('train.')))} may be changed, "
            f"or start another run elsewhere, with `{builds_on}: {path}` to build on its weights."
        )


def _differences(folder: Path, config: BaseModel) -> dict[str, tuple[Any, Any]]:
    """Key -> what it is in the folder's run and in `config`, where these differ."""
    if not (folder / CONFIG).is_file():
        return {}
    before, now = _flat(load_config(folder / CONFIG)), _flat(parse_yaml(dump_config(config)))
    return {key: (before.get(key), now.get(key)) for key in before.keys() | now.keys() if before.get(key) != now.get(key)}


def _is_free(key: str, free: frozenset[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in free)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: leaf for name, inner in items for key, leaf in _flat(inner, f"{path}.{name}" if path else str(name)).items()}


def _write_config(folder: Path, config: BaseModel) -> None:
    with faults_as(TrainingError, f"{folder / CONFIG} cannot be written"):
        write_atomically(folder / CONFIG, dump_config(config).encode())


def cut_rows(file: Path, step: int) -> None:
    """Remove the rows past `step` and a last row that was not written to its end."""
    if not file.is_file():
        return
    with faults_as(TrainingError, f"{file} cannot be cut to the checkpoint"):
        _cut(file, step)


def _cut(file: Path, step: int) -> None:
    content = file.read_bytes()
    good = 0
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n") or _step_of(line) > step:
            break
        good += len(line)
    if good < len(content):
        os.truncate(file, good)


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def read_rows(file: str | Path) -> list[dict[str, Any]]:
    """The rows of a `*.jsonl` file; a last one that is not whole is left out. Raises `MissingInput`."""
    path = Path(file)
    if not path.is_file():
        raise MissingInput(f"no {path.name} in {path.parent}. Is it the folder of a run?")
    with faults_as(TrainingError, f"{path} cannot be read"):
        content = path.read_bytes()
    return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


@dataclass
class Rows:
    """Appends rows to a `*.jsonl` file; `sync` puts them on the disk before a checkpoint refers to them."""

    file: Path
    _stream: FileIO | None = field(default=None, repr=False)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, whole, at once. A number that is not finite becomes null, since JSON has none."""
        line = json.dumps({key: finite_or_none(value) for key, value in row.items()}, allow_nan=False) + "\n"
        with faults_as(TrainingError, f"{self.file} cannot be written", GO_ON):
            if self._stream is None:
                self._stream = append_to(self.file)
            content = memoryview(line.encode())
            while content:
                content = content[self._stream.write(content) :]

    def sync(self) -> None:
        """Flush to the disk."""
        if self._stream is not None:
            with faults_as(TrainingError, f"{self.file} cannot be written", GO_ON):
                os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file; appending opens it again."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def finite_or_none(value: Any) -> Any:
    """The value itself, or None for NaN and infinities."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
