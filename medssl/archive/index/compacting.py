"""Folding an index: what its builds added, took away and changed becomes one set of tables, as if it had been built at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medssl.archive.index.contents import Contents, rows_without, studies_of
from medssl.archive.index.facts import BUCKET
from medssl.archive.index.folder import IndexFolder, New
from medssl.archive.index.parts import PartWriter, Rows, instances_file, parts_of, volumes_file
from medssl.archive.index.summary import CHANGES, INSTANCES, PLACE, PRIVATE, SLICES, UNKNOWN, VOLUMES
from medssl.archive.tables import read_groups, read_table, write_table
from medssl.errors import ArchiveError, MedsslError
from medssl.faults import fault


@dataclass(frozen=True)
class Folded:
    """What folding an index did."""

    tables: int
    """Sets of tables that there were."""
    before: int
    """Bytes of the index."""
    after: int


def compact(folder: str | Path) -> Folded:
    """Fold the tables of an index into one; nothing of the archive is read. Raises `MissingInput` or `ArchiveError`."""
    place = Path(folder)
    IndexFolder.opened(place)
    try:
        with IndexFolder.held(place) as root:
            names, before = root.mark().tables or (), _bytes(place)
            if len(names) > 1:
                rewrite(root)
            return Folded(len(names), before, _bytes(place))
    except MedsslError:
        raise
    except OSError as error:
        raise ArchiveError(fault(error, f"the index {place} cannot be folded")) from error


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def rewrite(root: IndexFolder, without: Collection[str] = ()) -> None:
    """One new set of tables in place of all, without the files of these names."""
    gone = pa.array(sorted(without), pa.string())
    mark = root.mark()
    with root.building() as new:
        _write(_pieces(Contents(root, mark.tables or ()), gone), new)
        write_table(CHANGES.empty_table(), new.public / "changes.parquet")
        write_table(studies_of(root, (), new), new.public / "studies.parquet")
        root.take_over(new, (), mark.asked)


def _write(pieces: Iterator[list[Rows]], new: New) -> None:
    part, waiting = 0, next(pieces, None)
    while waiting is not None:
        with PartWriter(new.public, new.private, part) as writer:
            while waiting is not None and writer.rows < BUCKET:
                for rows in waiting:
                    writer.add(rows)
                waiting = next(pieces, None)
        part += 1


def _pieces(contents: Contents, gone: pa.Array) -> Iterator[list[Rows]]:
    """What counts of each part, row group by row group."""
    for number, name in enumerate(contents.names):
        public, private = contents.folder.root / name, contents.folder.private / name
        files = pa.concat_arrays([contents.changed(number, "file"), gone])
        dropped = contents.changed(number, "volume")
        for part in parts_of(private):
            slices = rows_without(read_table(volumes_file(private, part), SLICES), "volume", dropped)
            volumes = rows_without(read_table(volumes_file(public, part), VOLUMES, UNKNOWN), "volume", dropped)
            rows: list[Rows] = []
            for group in range(pq.read_metadata(instances_file(private, part)).num_row_groups):
                table = rows_without(read_groups(instances_file(private, part), PRIVATE, [group], PLACE), "file", files)
                here = slices.filter(pc.is_in(slices["volume"], table["volume"].combine_chunks()))
                dates = dict(zip(here["volume"].to_pylist(), here["date"].to_pylist(), strict=True))
                described = volumes.filter(pc.is_in(volumes["volume"], here["volume"].combine_chunks()))
                rows.append(Rows(INSTANCES.empty_table(), table, described, dates))
            told = rows_without(read_table(instances_file(public, part), INSTANCES, PLACE), "file", files)
            yield [*rows, Rows(told, PRIVATE.empty_table(), VOLUMES.empty_table(), {})]
