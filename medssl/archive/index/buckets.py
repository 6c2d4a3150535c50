"""Buckets of rows to settle, in one file: rows come in any order and are dealt out, so that each bucket is read by itself.

What is held in memory does not grow with the archive, and neither does the work for a row: rows are gathered, dealt out, and the hand of
each bucket is written behind the others, in Arrow's own format. The file is private and soon gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from medssl.archive.instance import SCHEMA
from medssl.archive.tables import TABLE_ERRORS, damaged
from medssl.errors import ArchiveError
from medssl.faults import fault, is_fault
from medssl.files import create_file, open_regular

MARKED = pa.schema([*SCHEMA, pa.field("mark", pa.string())])
"""A row with what the whole archive says of it: a reason, the outcome of a zip or tar file that was entered, or nothing."""
DEALT = "bucket"
"""The column that says which bucket a row is in."""
GATHERED = 2**17
"""Rows that are dealt out at once: some hundred MB."""
Stretch = tuple[int, int]
"""Where something begins in a file, and how many bytes it has."""


def deal(batches: Iterable[pa.RecordBatch], file: Path) -> list[list[Stretch]]:
    """Write rows of `MARKED` that also have `DEALT`; returns where those of each bucket are, in order, of the buckets that have any."""
    places: dict[int, list[Stretch]] = {}
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with create_file(file) as stream:
        for table in _gathered(batches):
            for bucket, rows in _hands(table):
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, MARKED, options=options) as writer:
                    writer.write_table(rows)
                places.setdefault(bucket, []).append((stream.tell(), stream.write(sink.getvalue())))
    return [places[bucket] for bucket in sorted(places)]


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= GATHERED:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _hands(table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    buckets = table[DEALT].to_numpy()
    rows = table.select(MARKED.names).cast(MARKED)
    if len(buckets) and buckets.min() == buckets.max():
        yield int(buckets[0]), rows
        return
    order = np.argsort(buckets, kind="stable")
    rows, sorted_buckets = rows.combine_chunks().take(pa.array(order)), buckets[order]
    begins = np.flatnonzero(np.diff(sorted_buckets, prepend=-1))
    for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(rows)], strict=True):
        yield int(sorted_buckets[begin]), rows.slice(begin, end - begin)


def read_bucket(file: Path, places: Sequence[Stretch]) -> pa.Table:
    """The rows that lie there, as `MARKED`; raises `ArchiveError`."""
    found: list[pa.Table] = []
    try:
        with open_regular(file) as stream:
            for begin, length in places:
                stream.seek(begin)
                found.append(pa.ipc.open_stream(pa.py_buffer(stream.read(length))).read_all())
        return pa.concat_tables(found).combine_chunks()
    except TABLE_ERRORS as error:
        if isinstance(error, OSError) and is_fault(error) and not isinstance(error, FileNotFoundError):
            raise ArchiveError(fault(error, f"{file.name} of the index cannot be read")) from error
        raise damaged(file.name, "cannot be read") from error
