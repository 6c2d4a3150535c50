"""Patients who have withdrawn, in a store: their volumes, labels and rows go."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medssl.errors import StoreError
from medssl.faults import faults_as
from medssl.files import Busy, lock_folder, write_atomically
from medssl.volumes.store.manifest import read_manifest
from medssl.volumes.store.reading import labels_path, volume_path
from medssl.volumes.store.table import loose_rows, read_table


def forget_in_store(folder: str | Path, patients: Collection[str]) -> list[str]:
    """Remove the volumes of these patients, named as the store names them; returns the volumes.

    Files go first: what is interrupted leaves rows without files, which do not count, and the same call again removes them. Raises
    `MissingInput`, or `StoreError`, also where another process writes into the store.
    """
    place = Path(folder)
    read_manifest(place)
    with faults_as(StoreError, f"the store {place} cannot be changed"):
        try:
            lock = lock_folder(place, alone=True)
        except Busy as error:
            raise StoreError(f"another process ({error}) is filling the store {place}. Wait for it.") from None
        try:
            return _forgotten(place, frozenset(patients))
        finally:
            lock.release()


def _forgotten(folder: Path, patients: frozenset[str]) -> list[str]:
    table = read_table(folder)
    theirs = pa.array(sorted(patients), pa.string())
    gone = table.filter(pc.is_in(table["patient"], theirs))["volume"].to_pylist()
    if not gone:
        return []
    for volume in gone:
        for path in (volume_path(folder, volume), labels_path(folder, volume)):
            path.unlink(missing_ok=True)
    for path, row in loose_rows(folder).items():
        if row["patient"] in patients:
            path.unlink()
    for part in sorted((folder / "table").glob("part-*.parquet")):
        rows = pq.read_table(part)
        kept = rows.filter(pc.invert(pc.is_in(rows["patient"], theirs)))
        if len(kept) == 0:
            part.unlink()
        elif len(kept) < len(rows):
            sink = pa.BufferOutputStream()
            pq.write_table(kept, sink)
            write_atomically(part, sink.getvalue().to_pybytes())
    return list(gone)
