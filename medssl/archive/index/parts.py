"""Parts of tables: files that are written as rows come, and read row group by row group.

A part has four files of one number: what is public and what is private of its instances, and of its volumes. The slices of a volume
follow each other within one row group of the private instances, so that a volume is found without reading the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medssl.archive.index.summary import INSTANCES, PRIVATE, SLICES, VOLUMES
from medssl.archive.tables import damaged
from medssl.errors import ArchiveError
from medssl.faults import fault
from medssl.files import create_file, sync

GROUP = 8192
"""Rows that are gathered to one row group of instances: as many as are read for the slices of one volume."""


_VOLUMES = re.compile(r"volumes-(\d+)\.parquet")


@dataclass(frozen=True)
class Rows:
    """Rows that belong together: whole series, with their volumes."""

    instances: pa.Table
    """As `INSTANCES`."""
    private: pa.Table
    """As `PRIVATE`: the slices of each volume in order, one after the other."""
    volumes: pa.Table
    """As `VOLUMES`."""
    dates: dict[str, str]
    """Volume -> date of its study."""


def instances_file(folder: Path, part: int) -> Path:
    """Of either half of an index."""
    return folder / f"instances-{part:04d}.parquet"


def volumes_file(folder: Path, part: int) -> Path:
    """Likewise."""
    return folder / f"volumes-{part:04d}.parquet"


def parts_of(folder: Path) -> list[int]:
    """The numbers of the parts that a folder of tables holds; raises `ArchiveError`."""
    try:
        names = [_VOLUMES.fullmatch(file.name) for file in folder.iterdir()]
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise damaged(folder.name, "is missing") from error
        raise ArchiveError(fault(error, f"{folder.name} of the index cannot be read")) from error
    return sorted(int(name[1]) for name in names if name)


@dataclass
class PartWriter:
    """The four files of one part, while rows come."""

    public: Path
    private: Path
    number: int
    rows: int = 0
    _waiting: list[Rows] = field(default_factory=list)
    _groups: int = 0
    _stack: ExitStack = field(default_factory=ExitStack)
    _files: list[tuple[Any, pq.ParquetWriter]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stack.__enter__()
        for folder, schema, name in (
            (self.public, INSTANCES, instances_file),
            (self.private, PRIVATE, instances_file),
            (self.public, VOLUMES, volumes_file),
            (self.private, SLICES, volumes_file),
        ):
            file = self._stack.enter_context(create_file(name(folder, self.number)))
            # Names that are no UTF-8 have no statistics; nothing looks for a row by its values.
            writer = self._stack.enter_context(pq.ParquetWriter(file, schema, compression="zstd", write_statistics=False))
            self._files.append((file, writer))
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._flush()
            for file, writer in self._files:
                writer.close()
                sync(file)
        self._stack.__exit__(*error)

    def add(self, rows: Rows) -> None:
        """Rows of whole series."""
        self._waiting.append(rows)
        self.rows += len(rows.private)
        if sum(len(one.private) for one in self._waiting) >= GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        private = pa.concat_tables([one.private for one in self._waiting]).combine_chunks()
        dates = {volume: date for one in self._waiting for volume, date in one.dates.items()}
        tables = (
            pa.concat_tables([one.instances for one in self._waiting]),
            private,
            pa.concat_tables([one.volumes for one in self._waiting]),
            _slices(private, dates, self._groups),
        )
        for (_, writer), table in zip(self._files, tables, strict=True):
            if len(table):
                writer.write_table(table, row_group_size=max(len(table), 1))
        self._groups += bool(len(private))
        self._waiting = []


def _slices(private: pa.Table, dates: dict[str, str], group: int) -> pa.Table:
    """Which rows of a row group are which volume."""
    first = np.flatnonzero(pc.fill_null(pc.equal(private["slice"], 0), False).to_numpy(zero_copy_only=False))
    head = private.take(pa.array(first))
    names = head["volume"].to_pylist()
    counts = pc.value_counts(private["volume"].drop_null().combine_chunks())
    found = dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
    given = {
        "volume": pa.array(names, pa.string()),
        "date": pa.array([dates[name] for name in names], pa.string()),
        "first": pa.array(first, pa.int64()),
        "count": pa.array([found[name] for name in names], pa.int64()),
        "group": pa.array([group] * len(names), pa.int64()),
    }
    return pa.table({name: given[name] if name in given else head[name] for name in SLICES.names}, schema=SLICES)


def batches(table: pa.Table, starts: Sequence[int], rows: int) -> Iterator[pa.Table]:
    """The table in pieces of at least so many rows, cut at `starts` alone."""
    begin = 0
    for start in starts:
        if start - begin >= rows:
            yield table.slice(begin, start - begin)
            begin = start
    if begin < len(table):
        yield table.slice(begin)
