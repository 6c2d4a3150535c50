"""The tables of an index together: those of each build, less what later ones changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

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
            _without(read_table(volumes_file(self.folder.root / name, part), VOLUMES, UNKNOWN), "volume", self.changed(number, "volume"))
            for number, name in enumerate(self.names)
            for part in parts_of(self.folder.root / name)
        ]
        table = pa.concat_tables([VOLUMES.empty_table(), *parts])
        order = [(name, "ascending") for name in ("patient", "study", "series", "volume")]
        return _numbered(table.sort_by(order), self._studies())

    @cached_property
    def slices(self) -> pa.Table:
        """The private volume table: as `SLICES`, with the tables and part that each row is of."""
        found = []
        for number, name in enumerate(self.names):
            for part in parts_of(self.folder.private / name):
                table = read_table(volumes_file(self.folder.private / name, part), SLICES)
                table = _without(table, "volume", self.changed(number, "volume"))
                for column, value in (("tables", number), ("part", part)):
                    table = table.append_column(column, pa.array([value] * len(table), pa.int64()))
                found.append(table)
        return pa.concat_tables([PLACED.empty_table(), *found])

    def instances(self) -> Iterator[pa.Table]:
        """The public instance table, part by part; all rows of a file are in one part."""
        for number, name in enumerate(self.names):
            for part in parts_of(self.folder.root / name):
                table = read_table(instances_file(self.folder.root / name, part), INSTANCES, PLACE)
                yield _without(table, "file", self.changed(number, "file"))

    def private(self) -> Iterator[pa.Table]:
        """The private instance table, part by part."""
        for number, name in enumerate(self.names):
            for part in parts_of(self.folder.private / name):
                table = read_table(instances_file(self.folder.private / name, part), PRIVATE, PLACE)
                yield _without(table, "file", self.changed(number, "file"))

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

    def _studies(self) -> pa.Table:
        return read_table(self.folder.root / self.names[-1] / "studies.parquet", STUDIES) if self.names else STUDIES.empty_table()


def _without(table: pa.Table, column: str, names: pa.Array) -> pa.Table:
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
    rows = [(_without(before.volumes, "volume", gone), _without(before.slices, "volume", gone))] if earlier else []
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
