"""The names of the segments that label objects have. Free text of whoever drew them: for the screen of who may see it, kept nowhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl.archive.index.reading import Index
from medssl.archive.labels.files import label_files, read_names
from medssl.archive.labels.finding import pair_labels
from medssl.archive.labels.objects import LabelObject
from medssl.archive.labels.placing import LabelProblem
from medssl.errors import MissingInput
from medssl.faults import faults_as
from medssl.files import holds_file


@dataclass(frozen=True)
class Named:
    """Segments of one name."""

    name: str
    kinds: tuple[str, ...]
    """SEG, SURFACE, RTSTRUCT, NRRD."""
    numbers: tuple[int, ...]
    """Their segment numbers or label values."""
    objects: int
    """Label objects that have one."""


@dataclass(frozen=True)
class Listing:
    """What label objects there are."""

    names: tuple[Named, ...]
    """The commonest first."""
    notes: tuple[str, ...]
    """What was paired, what has no names, what cannot be read."""

    def document(self) -> dict[str, Any]:
        """The JSON of `medssl labels`."""
        segments = [{"name": one.name, "kinds": one.kinds, "numbers": one.numbers, "objects": one.objects} for one in self.names]
        return {"segments": segments, "notes": list(self.notes)}


def list_labels(path: str | Path) -> Listing:
    """The segments of an index's label objects, of a folder of label files, or of a file; raises `MissingInput` or `DataError`."""
    place = Path(path)
    with faults_as(LabelProblem, f"{place} cannot be read"):
        if not place.exists():
            raise MissingInput(f"there is no index, folder or label file at {place}.")
        if place.is_dir() and holds_file(place / "index.json"):
            return _of_index(Index(place))
        if place.is_file():
            found = read_names(place)
            return Listing(_counted([found] if found else []), () if found else ("1 file without named segments",))
        files = label_files(place)
    return _of_files(files)


def _of_index(index: Index) -> Listing:
    pairing = pair_labels(index, index.volumes())
    return Listing(_counted(one.header for objects in pairing.objects.values() for one in objects), (str(pairing),))


def _of_files(files: Iterable[Path]) -> Listing:
    found: list[LabelObject] = []
    bare, broken = 0, 0
    for file in files:
        try:
            read = read_names(file)
        except LabelProblem:
            broken += 1
            continue
        found += [read] if read else []
        bare += read is None
    notes = [f"{bare} files without named segments"] * (bare > 0) + [f"{broken} files that are no labels or cannot be read"] * (broken > 0)
    return Listing(_counted(found), (f"{len(found)} files with named segments", *notes))


def _counted(objects: Iterable[LabelObject]) -> tuple[Named, ...]:
    kinds, numbers, counts = defaultdict[str, set[str]](set), defaultdict[str, set[int]](set), defaultdict[str, int](int)
    for one in objects:
        for segment in one.segments:
            kinds[segment.name].add(one.kind)
            numbers[segment.name].add(segment.number)
        for name in {segment.name for segment in one.segments}:
            counts[name] += 1
    names = sorted(counts, key=lambda name: (-counts[name], name))
    return tuple(Named(name, tuple(sorted(kinds[name])), tuple(sorted(numbers[name])), counts[name]) for name in names)
