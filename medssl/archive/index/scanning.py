"""Reading what is new: the sources are listed, what the index knows is left, and the rest is read shard by shard.

Every shard is a file as soon as it is read. A build that is killed reads none of them again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from medssl.archive.executors import Workers
from medssl.archive.headers.scan import before_reading
from medssl.archive.headers.shards import Shard, Task, read_shards
from medssl.archive.index.facts import LISTING, Facts, list_kept, outer_archives, unreliable, write_todo
from medssl.archive.index.folder import IndexFolder
from medssl.archive.index.registry import Chosen, NothingOf, Packed, Sources, open_chosen, packed_at, read_archives, same_file, warn
from medssl.archive.index.settling import ENTERED
from medssl.archive.outcomes import Reason
from medssl.archive.sources.folder import FileSource, FolderSource
from medssl.archive.sources.locations import NotAnArchive, source_class
from medssl.archive.sources.packed import DamagedArchive, TarSource, ZipSource
from medssl.errors import ArchiveError
from medssl.files import make_folder, write_atomically
from medssl.source import ArchiveSource

Progress = Callable[[int, int | None], None]
Keep = Callable[[bytes], bytes]
"""What is kept of a shard that was read."""

SHARD = 256, 4096
"""Files a task reads at least, so that its own cost is small, and at most, so that little is read again after a kill."""
_SHARES = 8
"""Tasks a worker has at least."""
_LISTED = 2**16
"""Names that are held before they are written down."""


@dataclass
class Scan:
    """One reading of an archive, and what it finds out about zip and tar files."""

    root: IndexFolder
    facts: Facts
    sources: Sources
    workers: Workers
    progress: Progress | None
    keep: Keep
    prefix: str
    """How the names of its shards begin: what is read otherwise has another."""
    archives: dict[int, Packed] = field(default_factory=dict)
    """The zip and tar files of this archive, as they are now."""
    first: int = 0
    """Number of the first shard that this reading wrote."""


def read_new(scan: Scan, chosen: list[Chosen]) -> None:
    """List the sources, and the zip and tar files that lie inside folders, and read what is new of each."""
    make_folder(scan.root.scan)
    for file in scan.root.scan.glob("*.parquet"):
        if not file.name.startswith(scan.prefix):
            file.unlink()
    scan.first = 1 + max((_number(file) for file in scan.root.scan.glob("*.parquet")), default=-1)
    before = read_archives(scan.root.archives) if scan.facts.tables else {}
    again = set[int]()
    if scan.facts.tables:
        with scan.facts.asked() as connection:
            again = unreliable(connection)
    now = {scan.sources.number(place): packed_at(kind, scan.sources.number(place), place) for kind, place in chosen}
    unchanged = [number for number, one in now.items() if one is not None and number not in again and same_file(one, before.get(number))]
    given = open_chosen(chosen, scan.sources, unchanged)
    scan.sources.write(scan.root.sources)
    # One of which nothing could be read is tried again.
    scan.archives = {number: one for number, one in now.items() if one and not isinstance(scan.sources.kept.get(number), NothingOf)}
    _read(scan, "named", [number for number in given if number not in unchanged], unchanged)
    _check_any(scan, [place for _, place in chosen])
    folders = [number for number in given if number in scan.sources.kept and isinstance(scan.sources.kept[number], FolderSource)]
    with scan.facts.asked() as connection:
        outer = outer_archives(connection, folders)
    if outer:
        known = {(one.inside, one.key): one for one in before.values()}
        inside = [_entered(scan, Packed(-1, *row), known, again) for row in outer]
        scan.sources.write(scan.root.sources)
        same = [one.source for one in inside if same_file(one, before.get(one.source)) and one.source not in again]
        _read(scan, "inside", [one.source for one in inside if one.outcome == ENTERED and one.source not in same], same)


def _number(file: Path) -> int:
    found = re.search(r"(\d+)\.parquet$", file.name)
    return int(found.group(1)) if found else 0


def _check_any(scan: Scan, places: list[str]) -> None:
    if not any(pq.read_metadata(file).num_rows for file in scan.facts.work.glob("listing-*.parquet")):
        raise ArchiveError(
            f"there is no file in {', '.join(places)}. Name the folder that holds the scans; it is read with all its subfolders."
        )


def _entered(scan: Scan, found: Packed, known: dict[tuple[int, bytes], Packed], again: Collection[int]) -> Packed:
    """A file that looks like an archive, as the source that it is or with the reason why it is none."""
    before = known.get((found.inside, found.key))
    if before is not None and same_file(replace(found, source=before.source), before) and before.source not in again:
        one = before
    else:
        place = os.path.join(scan.sources.places[found.inside], os.fsdecode(found.key))  # noqa: PTH118 - names in any encoding
        outcome = _outcome_of(place)
        one = replace(found, source=scan.sources.number(place), outcome=outcome)
    scan.archives[one.source] = one
    return one


def _outcome_of(place: str) -> str:
    try:
        kind, location = source_class(place)
        source = kind(location)
    except DamagedArchive:
        return Reason.DAMAGED_ARCHIVE.value
    except NotAnArchive:
        return Reason.COMPRESSED_ARCHIVE.value
    if isinstance(source, FileSource):
        return Reason.COMPRESSED_ARCHIVE.value
    if isinstance(source, ZipSource) and source.is_document:
        return Reason.NOT_MEDICAL.value
    if isinstance(source, TarSource) and source.damages:
        warn(f"{len(source.damages)} places of a tar file inside a folder are damaged: what lay there is lost. Copy it again.")
    # An archive with members is these; one without stays a file of its own.
    return ENTERED if next(source.keys(), None) is not None else Reason.EMPTY_FILE.value


def _read(scan: Scan, name: str, changed: list[int], unchanged: list[int]) -> None:
    """List these sources and read what is not known of them."""
    work = scan.facts.work
    with pq.ParquetWriter(work / f"listing-{name}.parquet", LISTING) as writer:
        for number in changed:
            _list(scan, number, writer)
    todo = work / f"todo-{name}.parquet"
    with scan.facts.asked() as connection:
        list_kept(connection, unchanged, work / f"listing-{name}-kept.parquet")
        total = write_todo(connection, todo, changed)
    done = 0
    _report(scan.progress, done, total)
    numbers = count(1 + max((_number(file) for file in scan.root.scan.glob("*.parquet")), default=-1))
    with closing(read_shards(_tasks(scan, todo, total), scan.workers)) as shards:
        for shard, content in shards:
            write_atomically(scan.root.scan / f"{scan.prefix}-{next(numbers):08d}.parquet", scan.keep(content))
            done += len(shard.keys)
            _report(scan.progress, done, total)


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _list(scan: Scan, number: int, writer: pq.ParquetWriter) -> None:
    source = scan.sources[number]
    keys, first = _keys(source, scan.root.root), 0
    while some := list(islice(keys, _LISTED)):
        found = (before_reading(source, number, key) for key in some)
        _, names, sizes, versions = map(pa.array, zip(*found, strict=True))
        sources, sure = pa.repeat(number, len(some)), pa.repeat(False, len(some))
        places = pa.array(range(first, first + len(some)), pa.int64())
        writer.write_table(pa.table([sources, places, names, sizes, versions, sure], schema=LISTING))
        first += len(some)


def _keys(source: ArchiveSource, root: Path) -> Iterator[str]:
    """The source's names without those of the index itself, which may lie inside the archive's folder."""
    inside: str | None = None
    if isinstance(source, FolderSource):
        relative = os.path.relpath(root.resolve(), Path(source.location).resolve())
        inside = None if relative.startswith("..") else relative + os.sep
    for key in source.keys():  # noqa: SIM118 - a source is no dictionary
        if inside is None or not key.startswith(inside):
            yield key


def _tasks(scan: Scan, todo: Path, total: int) -> Iterator[Task]:
    """Shards of one source each, in its order."""
    least, most = SHARD
    size = min(most, max(least, total // (_SHARES * max(1, scan.workers.ahead))))
    source, keys = -1, list[str]()
    for batch in pq.ParquetFile(todo).iter_batches(_LISTED):
        for number, key in zip(batch["source"].to_pylist(), batch["key"].to_pylist(), strict=True):
            if keys and (number != source or len(keys) == size):
                yield Shard(source, tuple(keys)), scan.sources[source]
                keys = []
            source = number
            keys.append(os.fsdecode(key))
    if keys:
        yield Shard(source, tuple(keys)), scan.sources[source]
