"""The sources of an index: each has its number for as long as the index lives, and is opened when it is asked for."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, ClassVar

import pyarrow as pa

from medssl.archive.limits import Refused
from medssl.archive.outcomes import Reason
from medssl.archive.sources.locations import find_source
from medssl.archive.sources.packed import DamagedArchive, TarSource, ZipSource
from medssl.archive.tables import read_table, write_table
from medssl.files import holds_file
from medssl.plugins import Plugins
from medssl.source import ArchiveSource

_DAMAGES_SHOWN = 3
"""Damages of one archive that are told one by one; all are counted."""
_OPEN = 16
"""Zip and tar files inside folders that are open at once."""
PLACES = pa.schema({"place": pa.string()})
"""Row N is the location of source N."""
ARCHIVES = pa.schema(
    {
        "source": pa.int64(),
        "inside": pa.int64(),
        "key": pa.binary(),
        "size": pa.int64(),
        "version": pa.string(),
        "outcome": pa.string(),
    }
)
"""A zip or tar file: the source that it is, the source and key where it lies (-1 where it was named itself), size and time of change
when it was read, and how the file itself ends."""

Chosen = tuple[type[ArchiveSource], str]
"""A source's class and the location to make it with."""


class DamageWarning(UserWarning):
    """A zip or tar file of which a part is lost."""


class NothingOf(ArchiveSource):
    """Stands for a zip or tar file of which nothing can be read: one file, counted as damaged."""

    name = "damaged"
    schemes: ClassVar[tuple[str, ...]] = ()

    def keys(self) -> Iterator[str]:
        """One, which cannot be opened."""
        yield ""

    def open(self, key: str) -> BinaryIO:
        """Refused, with its reason."""
        raise Refused(Reason.DAMAGED_ARCHIVE)


@dataclass(frozen=True)
class Packed:
    """One row of `ARCHIVES`."""

    source: int
    inside: int
    key: bytes
    size: int
    version: str
    outcome: str = ""


def read_archives(file: Path) -> dict[int, Packed]:
    """Source -> the zip or tar file as it was read; raises `ArchiveError`."""
    rows = read_table(file, ARCHIVES).to_pylist() if holds_file(file) else []
    return {row["source"]: Packed(**row) for row in rows}


def write_archives(found: dict[int, Packed], file: Path) -> None:
    """For `read_archives`."""
    rows = [vars(found[source]) for source in sorted(found)]
    write_table(pa.Table.from_pylist(rows, schema=ARCHIVES), file)


@dataclass
class Sources:
    """Number -> source, and place -> number."""

    places: list[str]
    plugins: Plugins | None = None
    kept: dict[int, ArchiveSource] = field(default_factory=dict)
    """Those that were named, which stay open."""
    numbers: dict[str, int] = field(default_factory=dict)
    _recent: OrderedDict[int, ArchiveSource] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.numbers = {place: number for number, place in enumerate(self.places)}

    @classmethod
    def of(cls, file: Path, plugins: Plugins | None = None) -> Sources:
        """As the file says; none where there is no file. Raises `ArchiveError`."""
        return cls(read_table(file, PLACES)["place"].to_pylist() if holds_file(file) else [], plugins)

    def write(self, file: Path) -> None:
        """For `of`."""
        write_table(pa.table({"place": pa.array(self.places, pa.string())}, schema=PLACES), file)

    def number(self, place: str) -> int:
        """Of the source at that place, which is given one where it has none."""
        if place not in self.numbers:
            self.numbers[place] = len(self.places)
            self.places.append(place)
        return self.numbers[place]

    def __getitem__(self, number: int) -> ArchiveSource:
        if number in self.kept:
            return self.kept[number]
        if number not in self._recent:
            self._recent[number] = find_source(self.places[number], self.plugins)
        self._recent.move_to_end(number)
        while len(self._recent) > _OPEN:
            self._recent.popitem(last=False)
        return self._recent[number]


def open_chosen(chosen: Sequence[Chosen], sources: Sources, unchanged: Sequence[int]) -> list[int]:
    """The numbers of the sources that were named; those not `unchanged` are opened.

    Of several a damaged one costs itself and a warning. In it archives are counted: their names may tell who is in them.
    """
    numbers = [sources.number(place) for _, place in chosen]
    for count, (number, (kind, place)) in enumerate(zip(numbers, chosen, strict=True), 1):
        if number in unchanged:
            continue
        which = f"archive {count} of {len(chosen)}" if len(chosen) > 1 else "the archive"
        try:
            source = kind(place)
        except DamagedArchive as error:
            if len(chosen) == 1:
                raise
            warn(f"{which} is left out: {error}")
            source = NothingOf(place)
        for damage in source.damages[:_DAMAGES_SHOWN] if isinstance(source, TarSource) else ():
            warn(f"{which} is damaged after its member {damage.after}, at byte {damage.at}: what lay there is lost. Copy it again.")
        sources.kept[number] = source
    return numbers


def packed_at(kind: type[ArchiveSource], number: int, place: str) -> Packed | None:
    """A zip or tar file that was named, as it is now; None for any other source."""
    if not issubclass(kind, ZipSource | TarSource):
        return None
    found = Path(place).stat()
    return Packed(number, -1, b"", found.st_size, str(found.st_mtime_ns))


def same_file(one: Packed, other: Packed | None) -> bool:
    """Is it the file that was read?"""
    return other is not None and replace(one, outcome="") == replace(other, outcome="")


def warn(message: str) -> None:
    """As a `DamageWarning` of whoever builds the index."""
    warnings.warn(message, DamageWarning, stacklevel=6)
