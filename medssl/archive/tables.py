"""Parquet files, written whole or not at all, readable by their owner alone."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from medssl.errors import ArchiveError
from medssl.files import write_atomically


def write_table(table: pa.Table, file: Path) -> None:
    """Write under a temporary name and rename: a reader sees the old file, the new one or none."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(file, sink.getvalue().to_pybytes(), private=True)


def read_table(file: Path) -> pa.Table:
    """The whole table; raises `ArchiveError` where it is missing or damaged."""
    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise ArchiveError(f"the index is damaged: {file.name} cannot be read. Index the archive again into the same folder.") from error
