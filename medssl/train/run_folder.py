"""The folder of a run: one run in it, one process at a time, and numbers that can be compared bit for bit.

`config.yaml` is the resolved configuration, `metrics.jsonl` holds only what is reproducible and `timings.jsonl` what is not.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel

from medssl.config import dump_config, load_config, shown
from medssl.errors import RESUME, ConfigError, MissingInput, TrainingError, UsageError
from medssl.files import write_atomically
from medssl.train.checkpoint import clear_leftovers, list_checkpoints
from medssl.yaml_text import parse_yaml

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
TIMINGS = "timings.jsonl"
SKIPPED = "skipped.jsonl"
PICTURES = "pictures"
LABELLED = "labelled"
"""The store of the labelled cases; it may be there before the run begins."""
_LOCK = ".lock"
_OWN = (CONFIG, METRICS, "checkpoints")
_LOGS = (".log", ".out", ".err")
"""What a batch system may have put there before the run began."""


@contextmanager
def locked(folder: str | Path) -> Iterator[Path]:
    """Hold the run folder for this process; a second process gets a `TrainingError`. Makes the folder where it is missing."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the run folder {path} cannot be made: {error.strerror}. Give another --out.") from error
    with (path / _LOCK).open("a+") as stream:
        _lock(stream, path)
        clear_leftovers(path)
        yield path


def _lock(stream: TextIO, folder: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.seek(0)
        raise TrainingError(
            f"{folder} is being trained into by another process ({stream.read().strip() or 'unknown'}). "
            "Wait for it, stop it, or give another --out."
        ) from error
    stream.truncate(0)
    stream.write(f"process {os.getpid()}\n")
    stream.flush()


def holds_run(folder: str | Path) -> bool:
    """Whether a run was begun in that folder."""
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
    shown = (name.name for name in path.iterdir() if not name.name.startswith(".")) if path.is_dir() else ()
    foreign = sorted(name for name in shown if not name.endswith(_LOGS) and name != LABELLED)
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
    try:
        write_atomically(folder / CONFIG, dump_config(config).encode())
    except OSError as error:
        raise TrainingError(f"{folder / CONFIG} cannot be written: {error.strerror or error}. Make room, or give another --out.") from error


def cut_rows(file: Path, step: int) -> None:
    """Remove the rows past `step` and a last row that was not written to its end."""
    if not file.is_file():
        return
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
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


@dataclass
class Rows:
    """Appends rows to a `*.jsonl` file; `sync` puts them on the disk before a checkpoint refers to them."""

    file: Path
    _stream: TextIO | None = field(default=None, repr=False)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, whole, at once. A number that is not finite becomes null, since JSON has none."""
        if self._stream is None:
            self._stream = self.file.open("a", encoding="utf-8")
        self._stream.write(json.dumps({key: finite_or_none(value) for key, value in row.items()}, allow_nan=False) + "\n")
        self._stream.flush()

    def sync(self) -> None:
        """Flush to the disk."""
        if self._stream is not None:
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file; appending opens it again."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def finite_or_none(value: Any) -> Any:
    """The value itself, or None for NaN and infinities."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
