"""Which ingests of a store did not come to their end: each process says first what it is about to store, and takes that back when it is
done. What a killed one said stays, until somebody has stored those volumes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from medssl.errors import StoreError
from medssl.faults import faults_as
from medssl.files import read_json, write_atomically
from medssl.volumes.store.table import read_table

FOLDER = "unfinished"


@contextmanager
def announced(folder: Path, wanted: Mapping[str, str]) -> Iterator[None]:
    """Say that the volumes of `wanted` (volume -> fingerprint) are being stored; taken back only when the block ends well."""
    if not wanted:
        yield
        return
    mark = folder / FOLDER / f"{uuid4().hex}.json"
    with faults_as(StoreError, f"{mark} cannot be written"):
        write_atomically(mark, json.dumps(wanted).encode())
    yield
    mark.unlink(missing_ok=True)


def missing(folder: Path) -> list[str]:
    """The volumes that somebody began to store and of which the table says nothing yet."""
    return sorted({name for names in _missing_by_mark(folder).values() for name in names})


def forget_finished(folder: Path) -> None:
    """Take back what killed ingests said, where all of it is stored by now."""
    for mark, names in _missing_by_mark(folder).items():
        if not names:
            mark.unlink(missing_ok=True)


def _missing_by_mark(folder: Path) -> dict[Path, list[str]]:
    """The marks are read before the table, into which an ingest may just put the last of its volumes; where there is none, it is not."""
    marks = _marks(folder)
    if not marks:
        return {}
    table = read_table(folder)
    there = dict(zip(table["volume"].to_pylist(), table["fingerprint"].to_pylist(), strict=True))
    return {
        mark: [name for name, fingerprint in wanted.items() if name not in there or (there[name] or "") != fingerprint]
        for mark, wanted in marks.items()
    }


def _marks(folder: Path) -> dict[Path, dict[str, str]]:
    """Mark -> volume -> fingerprint."""
    place, found = folder / FOLDER, {}
    with faults_as(StoreError, f"{place} cannot be read"):
        files = sorted(place.iterdir()) if place.is_dir() else []
    for file in files:
        if file.name.startswith("."):
            continue
        with suppress(FileNotFoundError):
            found[file] = _mark(file)
    return found


def _mark(file: Path) -> dict[str, str]:
    try:
        content = read_json(file)
    except ValueError:
        content = None
    if not (isinstance(content, dict) and all(isinstance(value, str) for value in content.values())):
        raise StoreError(f"{file} is damaged. Run the same `medssl store` again, then remove that file.")
    return content
