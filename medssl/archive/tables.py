"""Parquet files, written whole or not at all, readable by their owner alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medssl.errors import ArchiveError
from medssl.faults import fault, is_fault
from medssl.files import open_regular, write_atomically

TABLE_ERRORS = (OSError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError, MemoryError, pa.ArrowException)
"""What reading a table is known to raise where it is damaged or holds something else."""

ADDED = b"added"
"""Marks a column of a schema that came later than files of the same format: where it is missing it is empty."""


def to_parquet(table: pa.Table) -> bytes:
    """The content of a Parquet file that is soon gone."""
    # zstd would make it a third smaller and take three times as long; nothing looks for a row by its values.
    return _content(table, compression="snappy", write_statistics=False)


def _content(table: pa.Table, **how: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **how)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def from_parquet(content: bytes, schema: pa.Schema) -> pa.Table:
    """The table of `to_parquet`."""
    return pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False).select(schema.names).cast(schema)


def write_table(table: pa.Table, file: Path) -> None:
    """Write under a temporary name and rename: a reader sees the old file, the new one or none."""
    write_atomically(file, _content(table, compression="zstd"))


def read_table(file: Path, schema: pa.Schema, nulls: Collection[str] = ()) -> pa.Table:
    """The whole table; raises `ArchiveError` where it is missing, damaged or no table of `schema`.

    Values are missing only in the columns `nulls`.
    """
    return read_groups(file, schema, None, nulls)


def read_groups(file: Path, schema: pa.Schema, groups: Sequence[int] | None, nulls: Collection[str] = ()) -> pa.Table:
    """Some row groups of the table, as `read_table` reads them all."""
    try:
        with open_regular(file) as stream:
            # By this thread alone: one of pyarrow's that still holds the stream when Python ends aborts the process.
            content = pq.ParquetFile(pa.PythonFile(stream, "r"), pre_buffer=False)
            names = _written(schema, content.schema_arrow)
            if groups is None:
                table = content.read(columns=names, use_threads=False)
            else:
                table = content.read_row_groups(list(groups), columns=names, use_threads=False)
            table = _completed(table.select(names), schema).cast(schema)
        table.validate(full=True)
        empty = [name for name in schema.names if name not in nulls and table[name].null_count]
    except TABLE_ERRORS as error:
        if isinstance(error, OSError) and is_fault(error) and not isinstance(error, FileNotFoundError):
            raise ArchiveError(fault(error, f"{file.name} of the index cannot be read")) from error
        raise damaged(file.name, "cannot be read") from error
    if empty:
        raise damaged(file.name, f"has no value in {', '.join(empty)}")
    return table


def _written(schema: pa.Schema, found: pa.Schema) -> list[str]:
    """The columns to read: all but those that came later than the file."""
    return [field.name for field in schema if field.name in found.names or ADDED not in (field.metadata or {})]


def _completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """With the columns that came later, empty: the header was not asked then."""
    for number, field in enumerate(schema):
        if field.name not in table.column_names:
            empty: object = [] if pa.types.is_list(field.type) else ""
            table = table.add_column(number, field, pa.array([empty] * len(table), field.type))
    return table


def damaged(name: str, why: str) -> ArchiveError:
    """The error of a part of an index that is not what was written."""
    return ArchiveError(f"the index is damaged: {name} {why}. Index the archive again into the same folder.")
