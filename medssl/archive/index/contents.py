"""The tables of an index together: those of each build, less what later ones changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medssl.archive.index.folder import IndexFolder, New
from medssl.archive.index.parts import instances_file, parts_of, volumes_file
from medssl.archive.index.records import IndexSummary
from medssl.archive.index.summary import CHANGES, INSTANCES, PLACE, PRIVATE, SLICES, STUDIES, UNKNOWN, VOLUMES, Counts, records_from
from medssl.archive.tables import read_table

PLACED = pa.schema([*SLICES, pa.field("tables", pa.int64()), pa.field("part", pa.int64())])
"""A row of `SLICES`, and the tables and the part that hold it."""


@dataclass(frozen=True)
class Contents:
    """What the tables `names` of an index hold, oldest first."""

    folder: IndexFolder
    names: tuple[str, ...]

    @classmethod
    def of(cls, folder: IndexFolder) -> Contents:
        """Those that count now."""
        return cls(folder, folder.mark().tables or ())

    @cached_property
    def volumes(self) -> pa.Table:
        """The public volume table, by patient, study, series and volume: an order that does not depend on where files lie."""
        parts = [
            rows_without(read_table(volumes_file(tables, part), VOLUMES, UNKNOWN), "volume", gone)
            for _, tables, part, gone in self._parts(self.folder.root, "volume")
        ]
        table = pa.concat_tables([VOLUMES.empty_table(), *parts])
        order = [(name, "ascending") for name in ("patient", "study", "series", "volume")]
        return _numbered(table.sort_by(order), self._studies())

    @cached_property
    def slices(self) -> pa.Table:
        """The private volume table: as `SLICES`, with the tables and part that each row is of."""
        found = []
        for number, tables, part, gone in self._parts(self.folder.private, "volume"):
            table = rows_without(read_table(volumes_file(tables, part), SLICES), "volume", gone)
            for column, value in (("tables", number), ("part", part)):
                table = table.append_column(column, pa.array([value] * len(table), pa.int64()))
            found.append(table)
        return pa.concat_tables([PLACED.empty_table(), *found])

    def instances(self) -> Iterator[pa.Table]:
        """The public instance table, part by part; all rows of a file are in one part."""
        for _, tables, part, gone in self._parts(self.folder.root, "file"):
            yield rows_without(read_table(instances_file(tables, part), INSTANCES, PLACE), "file", gone)

    def private(self) -> Iterator[pa.Table]:
        """The private instance table, part by part."""
        for _, tables, part, gone in self._parts(self.folder.private, "file"):
            yield rows_without(read_table(instances_file(tables, part), PRIVATE, PLACE), "file", gone)

    def summary(self) -> IndexSummary:
        """What the archive holds."""
        counts = Counts()
        for table in self.instances():
            counts.add(table)
        return counts.summary(records_from(self.volumes))

    def changed(self, number: int, kind: str) -> pa.Array:
        """What later tables than the one of that number changed."""
        later = [read_table(self.folder.root / name / "changes.parquet", CHANGES) for name in self.names[number + 1 :]]
        table = pa.concat_tables([CHANGES.empty_table(), *later])
        return table.filter(pc.equal(table["kind"], kind))["name"].combine_chunks()

    def _parts(self, half: Path, kind: str) -> Iterator[tuple[int, Path, int, pa.Array]]:
        """Number and folder of each tables in that half of the index, each part of them, and what later tables changed of it."""
        for number, name in enumerate(self.names):
            gone = self.changed(number, kind)
            for part in parts_of(half / name):
                yield number, half / name, part, gone

    def _studies(self) -> pa.Table:
        return read_table(self.folder.root / self.names[-1] / "studies.parquet", STUDIES) if self.names else STUDIES.empty_table()


def rows_without(table: pa.Table, column: str, names: pa.Array) -> pa.Table:
    """The rows of which the `column` is none of `names`."""
    return table.filter(pc.invert(pc.is_in(table[column], names))) if len(names) else table


def _numbered(volumes: pa.Table, studies: pa.Table) -> pa.Table:
    rows = pc.index_in(volumes["study"], studies["study"].combine_chunks())
    numbers = studies["number"].combine_chunks().take(rows.combine_chunks())
    return volumes.set_column(VOLUMES.get_field_index("study_number"), "study_number", numbers)


def studies_of(folder: IndexFolder, earlier: tuple[str, ...], new: New) -> pa.Table:
    """The order of each patient's studies by date, of the earlier tables and new ones that do not count yet; no date is told."""
    before = Contents(folder, earlier)
    changed = read_table(new.public / "changes.parquet", CHANGES)
    gone = changed.filter(pc.equal(changed["kind"], "volume"))["name"].combine_chunks()
    rows = [(rows_without(before.volumes, "volume", gone), rows_without(before.slices, "volume", gone))] if earlier else []
    rows += [
        (read_table(volumes_file(new.public, part), VOLUMES, UNKNOWN), read_table(volumes_file(new.private, part), SLICES))
        for part in parts_of(new.public)
    ]
    first: dict[tuple[str, str], str] = {}
    for public, private in rows:
        dates = dict(zip(private["volume"].to_pylist(), private["date"].to_pylist(), strict=True))
        for volume, patient, study in zip(*(public[name].to_pylist() for name in ("volume", "patient", "study")), strict=True):
            if dates.get(volume):
                first[patient, study] = min(first.get((patient, study), dates[volume]), dates[volume])
    numbers: dict[str, int] = {}
    counted: dict[str, int] = {}
    for patient, _, study in sorted((patient, date, study) for (patient, study), date in first.items()):
        counted[patient] = counted.get(patient, 0) + 1
        numbers.setdefault(study, counted[patient])
    return pa.table({"study": pa.array(numbers, pa.string()), "number": pa.array(numbers.values(), pa.int64())}, schema=STUDIES)
