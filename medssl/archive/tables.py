"""Parquet files, written whole or not at all, readable by their owner alone."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from medssl.errors import ArchiveError
from medssl.faults import fault, is_fault
from medssl.files import open_regular, write_atomically

TABLE_ERRORS = (OSError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError, MemoryError, pa.ArrowException)
"""What reading a table is known to raise where it is damaged or holds something else."""


def write_table(table: pa.Table, file: Path) -> None:
    """Write under a temporary name and rename: a reader sees the old file, the new one or none."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(file, sink.getvalue().to_pybytes())


def read_table(file: Path, schema: pa.Schema, nulls: Collection[str] = ()) -> pa.Table:
    """The whole table; raises `ArchiveError` where it is missing, damaged or no table of `schema`.

    Values are missing only in the columns `nulls`.
    """
    try:
        with open_regular(file) as stream:
            # By this thread alone: one of pyarrow's that still holds the stream when Python ends aborts the process.
            table = pq.ParquetFile(pa.PythonFile(stream, "r"), pre_buffer=False).read(use_threads=False).select(schema.names).cast(schema)
        table.validate(full=True)
        empty = [name for name in schema.names if name not in nulls and table[name].null_count]
    except TABLE_ERRORS as error:
        if isinstance(error, OSError) and is_fault(error) and not isinstance(error, FileNotFoundError):
            raise ArchiveError(fault(error, f"{file.name} of the index cannot be read")) from error
        raise damaged(file.name, "cannot be read") from error
    if empty:
        raise damaged(file.name, f"has no value in {', '.join(empty)}")
    return table


def damaged(name: str, why: str) -> ArchiveError:
    """The error of a part of an index that is not what was written."""
    return ArchiveError(f"the index is damaged: {name} {why}. Index the archive again into the same folder.")
