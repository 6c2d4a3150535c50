"""Building an index: scan the sources, settle duplicates, make volumes of series, write the tables."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from medssl.archive.headers.scan import Progress
from medssl.archive.index.folder import IndexFolder
from medssl.archive.index.making import Made, make_volumes
from medssl.archive.index.pseudonyms import Pseudonyms
from medssl.archive.index.records import IndexSummary
from medssl.archive.index.scanning import Chosen, opened, scanned_all
from medssl.archive.index.summary import records_table, summarize
from medssl.archive.instance import Instance, to_table
from medssl.archive.outcomes import ending
from medssl.archive.series.duplicates import mark_duplicates
from medssl.archive.series.locations import placed_by_location
from medssl.archive.series.splitting import Left
from medssl.archive.sources.locations import source_class
from medssl.archive.tables import write_table
from medssl.errors import ArchiveError, MedsslError, UsageError
from medssl.faults import fault
from medssl.files import write_atomically

if TYPE_CHECKING:
    from medssl.plugins import Plugins


def build_index(
    sources: Sequence[str | Path],
    folder: str | Path,
    *,
    workers: int = 2,
    progress: Progress | None = None,
    plugins: Plugins | None = None,
    slice_location: bool = False,
) -> IndexSummary:
    """Read `sources` (folders, zip or tar files, what plugins open) into the index folder and say what they hold.

    Everything is grouped by UID over all sources. Every file ends in one volume or with one `Reason`. An index that is already in
    `folder` is replaced, and keeps its pseudonyms. `progress` is called with files done and files in all.
    `plugins` open what no source of medssl's own does; without them the installed ones.
    `slice_location`: SliceLocation along the slice normal stands in for a position that was removed, and the volume says so.
    Raises `UsageError`, `MissingInput` or `ArchiveError`.
    """
    if not sources:
        raise UsageError("no archive given. Name at least one folder, zip or tar file.")
    chosen = [source_class(source, plugins) for source in sources]
    try:
        with IndexFolder.held(Path(folder)) as root:
            return _built(chosen, root, workers, progress, slice_location)
    except MedsslError:  # MissingInput is an OSError too, and says more
        raise
    except OSError as error:
        raise ArchiveError(fault(error, f"the index cannot be written to {folder}")) from error


def _built(chosen: Sequence[Chosen], root: IndexFolder, workers: int, progress: Progress | None, slice_location: bool) -> IndexSummary:
    names = Pseudonyms.of(root.key)
    with root.building() as (public, private):
        sources = opened(chosen)
        scanned = scanned_all(sources, root, private, workers, progress)
        instances = mark_duplicates([placed_by_location(one) for one in scanned] if slice_location else scanned, sources)
        made, left = make_volumes(instances, names)
        final = _final(instances, left)
        rows = _instances_table(final, made, names)
        records = [one.record for one in made]
        write_table(rows, public / "instances.parquet")
        write_table(records_table(records), public / "volumes.parquet")
        write_table(_private_table(final, rows), private / "instances.parquet")
        places = [*(place for _, place in chosen), *(source.location for source in sources[len(chosen) :])]
        write_atomically(private / "sources.json", json.dumps(places).encode())
    return summarize(rows, records)


def _final(instances: Sequence[Instance], left: Sequence[Left]) -> list[Instance]:
    reasons = {item.instance.identity: item.reason for item in left}
    return [replace(one, reason=reasons[one.identity].value) if one.identity in reasons else one for one in instances]


def _instances_table(instances: Sequence[Instance], made: Sequence[Made], names: Pseudonyms) -> pa.Table:
    """The public row of each instance: how it ended, and its place in its volume."""
    place = {one.identity: (volume.record.volume, number) for volume in made for number, one in enumerate(volume.slices)}
    where = [place.get(one.identity, (None, None)) for one in instances]
    return pa.table(
        {
            "instance": [names.name("instance", one.named(f"{one.source}\n{os.fsdecode(one.key)}")) for one in instances],
            "file": [names.name("instance", f"{one.source}\n{os.fsdecode(one.key)}") for one in instances],
            "frame": pa.array([one.frame for one in instances], pa.int64()),
            "kind": [one.kind for one in instances],
            "modality": [one.modality for one in instances],
            "series": [names.name("series", one.series) if one.series else "" for one in instances],
            "rows": pa.array([one.rows for one in instances], pa.int64()),
            "columns": pa.array([one.columns for one in instances], pa.int64()),
            "manufacturer": [one.taken.manufacturer for one in instances],
            "ending": [ending(one.why) for one in instances],
            "reason": [one.reason for one in instances],
            "volume": pa.array([volume for volume, _ in where], pa.string()),
            "slice": pa.array([number for _, number in where], pa.int64()),
        }
    )


def _private_table(instances: Sequence[Instance], rows: pa.Table) -> pa.Table:
    table = to_table(list(instances))
    for name in ("instance", "volume", "slice"):
        table = table.append_column(name, rows[name])
    return table
