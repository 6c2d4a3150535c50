"""Building an index: read what is new, settle duplicates, make volumes of the series that are concerned, add the tables.

What is there already is neither read nor made again. A build that is killed at any moment and started again ends as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from medssl.archive import executors
from medssl.archive.executors import HERE, Workers
from medssl.archive.index.buckets import Stretch, deal
from medssl.archive.index.contents import Contents, studies_of
from medssl.archive.index.facts import MARKS, Changed, Facts, dropped, find_changes, read_repeated, rows_to_settle, write_repeated
from medssl.archive.index.folder import Asked, IndexFolder, New
from medssl.archive.index.pseudonyms import Pseudonyms
from medssl.archive.index.records import IndexSummary
from medssl.archive.index.registry import Chosen, Packed, Sources, write_archives
from medssl.archive.index.scanning import Keep, Progress, Scan, read_new
from medssl.archive.index.selecting import Listed, Selection, read_forgotten, read_list
from medssl.archive.index.settling import Bucket, settle
from medssl.archive.index.summary import INSTANCES, VOLUMES
from medssl.archive.instance import SCHEMA, Instance, from_table
from medssl.archive.outcomes import Reason
from medssl.archive.series.duplicates import mark_duplicates
from medssl.archive.series.locations import placed_by_location
from medssl.archive.sources.locations import source_class
from medssl.archive.tables import write_table
from medssl.errors import ArchiveError, MedsslError, UsageError
from medssl.faults import fault
from medssl.files import as_paths

if TYPE_CHECKING:
    from medssl.plugins import Plugins

READS = 1
"""Raised whenever a file would be read otherwise than before though no column is new: then all files are read again."""

BUCKETS = "buckets"


def build_index(
    sources: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    workers: int = 2,
    progress: Progress | None = None,
    plugins: Plugins | None = None,
    slice_location: bool = False,
    executor: Executor | None = None,
    studies: str | Path | None = None,
) -> IndexSummary:
    """Read `sources` (folders, zip or tar files, what plugins open) into the index folder and say what they hold.

    Everything is grouped by UID over all sources. Every file ends in one volume or with one `Reason`. Of an index that is already in
    `folder` only what changed is read: afterwards it is that of these sources, with the same pseudonyms. `progress` is called with
    files read and files to read.
    `plugins` open what no source of medssl's own does; without them the installed ones.
    `slice_location`: SliceLocation along the slice normal stands in for a position that was removed, and the volume says so.
    `executor` reads the files instead of `workers` processes of this machine; it stays open.
    `studies`: a CSV file of accession numbers, study UIDs or patient ids; other studies are counted and nothing of them is kept.
    Raises `UsageError`, `MissingInput` or `ArchiveError`.
    """
    if not sources:
        raise UsageError("no archive given. Name at least one folder, zip or tar file.")
    listed = None if studies is None else read_list(studies)
    chosen = list(dict.fromkeys(source_class(source, plugins) for source in as_paths(sources)))
    try:
        with IndexFolder.held(Path(folder)) as root:
            names = Pseudonyms.of(root.key)
            asked = Asked(slice_location, _read(listed), names.name("instance", ""))
            keep = Selection(listed, read_forgotten(root), names).keep
            reading = executors.given(executor) if executor else executors.local(workers)
            _build(chosen, root, reading, workers, progress, plugins, asked, keep)
            return Contents.of(root).summary()
    except MedsslError:  # MissingInput is an OSError too, and says more
        raise
    except OSError as error:
        raise ArchiveError(fault(error, f"the index cannot be written to {folder}")) from error


def _read(listed: Listed | None = None) -> str:
    """What tells rows apart that are read otherwise."""
    return blake2b(
        f"{READS} {SCHEMA.to_string()} {INSTANCES.to_string()} {VOLUMES.to_string()} {listed.digest if listed else ''}".encode(),
        digest_size=4,
    ).hexdigest()


def _build(
    chosen: list[Chosen],
    root: IndexFolder,
    reading: Workers,
    workers: int,
    progress: Progress | None,
    plugins: Plugins | None,
    asked: Asked,
    keep: Keep,
) -> None:
    usable = _usable_tables(root, asked)
    with root.building() as new:
        facts = Facts(root, usable, new.work)
        scan = Scan(root, facts, Sources.of(root.sources, plugins), reading, progress, keep, f"read-{asked.read}")
        read_new(scan, chosen)
        add_tables(scan, new, asked, workers)
        write_archives(scan.archives, root.archives)
    for file in root.scan.iterdir():
        file.unlink()


def _usable_tables(root: IndexFolder, asked: Asked) -> tuple[str, ...]:
    """Those of which the rows still hold: they say what would be read now."""
    mark = root.mark()
    return mark.tables if mark.tables and (mark.asked.read, mark.asked.key) == (asked.read, asked.key) else ()


def add_tables(scan: Scan, new: New, asked: Asked, workers: int) -> None:
    """Settle what `scan` found to be new or changed, and add the tables of it to those of the index."""
    root, usable = scan.root, scan.facts.tables
    with scan.facts.asked() as connection:
        changed = find_changes(connection, scan.first, asked != root.mark().asked)
        if not changed.anything and usable:
            return
        buckets = _distributed(connection, changed, scan, new, asked, workers)
    _settle(buckets, new, Pseudonyms.of(root.key), asked, workers)
    earlier = () if changed.everything else usable
    write_table(studies_of(root, earlier, new), new.public / "studies.parquet")
    root.take_over(new, earlier, asked)


def _distributed(
    connection: duckdb.DuckDBPyConnection, changed: Changed, scan: Scan, new: New, asked: Asked, workers: int
) -> list[list[Stretch]]:
    """The rows to be settled, dealt out to buckets after the duplicates among them were found; in public what no longer counts."""
    write_table(dropped(connection), new.public / "changes.parquet")
    several, marks = new.work / "several.parquet", new.work / "marks.parquet"
    groups = read_repeated(several) if write_repeated(connection, _usable(asked), several) else ()
    _write_marks(_repeated(groups, scan.sources, asked), scan.archives, marks)
    return deal(rows_to_settle(connection, changed.rows, marks, workers), new.work / BUCKETS)


def _usable(asked: Asked) -> list[str]:
    return ["", Reason.NO_POSITION.value] if asked.slice_location else [""]


def _repeated(groups: Iterable[pa.Table], sources: Sources, asked: Asked) -> Iterable[tuple[Instance, str]]:
    """Instances that are duplicates or in conflict, with the reason."""
    for group in groups:
        instances = from_table(group)
        if asked.slice_location:
            instances = [placed_by_location(one) for one in instances]
        for one, marked in zip(instances, mark_duplicates(instances, sources), strict=True):
            if marked.reason != one.reason:
                yield one, marked.reason


def _write_marks(repeated: Iterable[tuple[Instance, str]], archives: dict[int, Packed], file: Path) -> None:
    with pq.ParquetWriter(file, MARKS) as writer:
        rows = [{"source": one.inside, "key": one.key, "frame": -1, "mark": one.outcome} for one in archives.values() if one.inside >= 0]
        for one, reason in repeated:
            rows.append({"source": one.source, "key": one.key, "frame": one.frame, "mark": reason})
            if len(rows) >= 2**16:
                writer.write_table(pa.Table.from_pylist(rows, schema=MARKS))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=MARKS))


def _settle(buckets: Sequence[list[Stretch]], new: New, names: Pseudonyms, asked: Asked, workers: int) -> None:
    """One bucket after the other, or several at once where there are several and more than one process may work."""
    file = new.work / BUCKETS
    tasks = [Bucket(file, places, part, new.public, new.private, names, asked.slice_location) for part, places in enumerate(buckets)]
    among = executors.local(min(workers, len(tasks))) if tasks else HERE
    if among.start is None:
        for task in tasks:
            settle(task)
        return
    with among.start() as executor:
        for _ in executor.map(settle, tasks):
            pass
