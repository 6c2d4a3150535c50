"""Shards of an archive's names, read by workers: names in, rows of instances out. A file that kills its worker costs only itself."""

from __future__ import annotations

import os
import pickle
from collections.abc import Generator, Iterable
from concurrent.futures import BrokenExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import lru_cache

import pyarrow as pa

from medssl.archive.executors import Workers, mapped, processes
from medssl.archive.headers.scan import scan_files
from medssl.archive.instance import SCHEMA, Instance, from_table, to_table
from medssl.archive.outcomes import Reason
from medssl.archive.tables import from_parquet, to_parquet
from medssl.source import ArchiveSource


@dataclass(frozen=True)
class Shard:
    """Work for one task."""

    source: int
    """Which of the sources."""
    keys: tuple[str, ...]


Task = tuple[Shard, ArchiveSource]
Rows = tuple[Shard, bytes]
"""A shard and its instances, in the order of its keys, as a Parquet file."""


def read_shards(tasks: Iterable[Task], workers: Workers) -> Generator[Rows, None, None]:
    """Each shard when it is done. No more than `workers.ahead` of `tasks` are taken before."""
    if workers.start is None:
        yield from ((shard, scan_shard(shard, source)) for shard, source in tasks)
        return
    with closing(mapped(_in_worker, tasks, workers, _alone, _sent)) as found:
        yield from ((shard, rows) for (shard, _), rows in found)


def _sent(task: Task) -> tuple[Shard, bytes]:
    return task[0], pickle.dumps(task[1])


def _alone(task: Task) -> bytes:
    return to_parquet(to_table(_halved(*_sent(task))))


def _halved(shard: Shard, pickled: bytes) -> list[Instance]:
    """A shard in a process of its own, halved as long as that process gets killed, until the file that does it is found."""
    with processes(1) as executor, suppress(BrokenExecutor):
        return from_table(from_parquet(executor.submit(_in_worker, (shard, pickled)).result(), SCHEMA))
    if len(shard.keys) == 1:
        return [Instance(source=shard.source, key=os.fsencode(shard.keys[0]), reason=Reason.KILLED.value)]
    middle = len(shard.keys) // 2
    halves = (replace(shard, keys=keys) for keys in (shard.keys[:middle], shard.keys[middle:]))
    return [one for half in halves for one in _halved(half, pickled)]


def _in_worker(sent: tuple[Shard, bytes]) -> bytes:
    shard, pickled = sent
    return scan_shard(shard, _received(pickled))


@lru_cache(maxsize=1)
def _received(pickled: bytes) -> ArchiveSource:
    """A worker process opens a source once, not for each shard: a zip or tar file lists all its members when it is opened."""
    source: ArchiveSource = pickle.loads(pickled)
    return source


def scan_shard(shard: Shard, source: ArchiveSource) -> bytes:
    """The instances of one shard."""
    table: pa.Table = to_table(scan_files(source, shard.source, shard.keys))
    return to_parquet(table)
