"""Segments of many names become a few classes, as the user names them; every other segment is left out and its name kept nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medssl.archive.labels.objects import LabelObject, Mask, Segment
from medssl.archive.labels.placing import Grid, LabelProblem

IGNORE = "ignore"
"""The name of the class whose voxels count for nothing."""
IGNORED = -1
"""What these voxels hold."""
BACKGROUND = "background"
"""The name of no class."""
Overlaps = Literal["refuse", "later"]


@dataclass(frozen=True)
class Classes:
    """Which segments become which class."""

    named: Mapping[str, tuple[str | int, ...]]
    """Class -> names of its segments (any case, `*` and `?` stand for others) or their numbers; classes count from 1 in this order."""
    overlaps: Overlaps = "refuse"
    """later: a voxel of two classes is of the one that is named later."""

    def number(self, name: str) -> int:
        """What the label map holds where the class is."""
        special = {BACKGROUND: 0, IGNORE: IGNORED}
        return special[name] if name in special else 1 + [one for one in self.named if one not in special].index(name)

    def wanted(self, name: str, segment: Segment) -> bool:
        """Whether the segment is of that class."""
        return any(_matches(one, segment) for one in self.named[name])


def _matches(wanted: str | int, segment: Segment) -> bool:
    return wanted == segment.number if isinstance(wanted, int) else matches(wanted, segment.name)


def matches(wanted: str, name: str) -> bool:
    """Whether a name is the wanted one, in any case and spacing; `*` and `?` stand for others."""
    return fnmatchcase(_plain(name), _plain(wanted))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True, eq=False)
class ClassMap:
    """Classes on the grid of an image."""

    array: NDArray[Any]
    """(X, Y, Z) uint8, or int16 where some voxels are ignored or there are many classes."""
    voxels: Mapping[str, int]
    """Class -> its voxels; a class that no segment is of is missing."""
    notes: tuple[str, ...]
    """What a person should know."""


def class_map(objects: Sequence[LabelObject], classes: Classes, grid: Grid, resample: bool = False) -> ClassMap:
    """The classes of these objects on the grid; raises `LabelProblem` where there are none, or where two of them share voxels."""
    plain = len(classes.named) < 256 and IGNORE not in classes.named
    out = np.zeros(grid.shape, np.uint8 if plain else np.int16)
    owners: list[str] = []
    voxels: dict[str, int] = {}
    notes: list[str] = []
    for name in (name for name in classes.named if name != BACKGROUND):
        masks = [one.mask(segment, grid, resample) for one in objects for segment in one.segments if classes.wanted(name, segment)]
        if not masks:
            continue
        inside = np.logical_or.reduce([mask.inside for mask in masks])
        _refuse_overlap(out, inside, name, owners, classes)
        out[inside] = classes.number(name)
        owners.append(name)
        voxels[name] = int(np.count_nonzero(inside))
        notes += _notes(name, voxels[name], masks)
    if not voxels:
        count = sum(len(one.segments) for one in objects)
        raise LabelProblem(
            f"none of the label's {count} segments has a name or number of data.classes ({', '.join(classes.named)}). "
            "`medssl labels` lists the names of an index, folder or file."
        )
    absent = [name for name in classes.named if name not in voxels and name not in (IGNORE, BACKGROUND)]
    return ClassMap(out, voxels, (*notes, *([f"no segment is of the class(es) {', '.join(absent)}"] if absent else [])))


def _refuse_overlap(out: NDArray[Any], inside: NDArray[np.bool_], name: str, before: Sequence[str], classes: Classes) -> None:
    if classes.overlaps == "later":
        return
    held = out[inside]
    held = held[held != 0]
    if held.size:
        other = next(one for one in before if classes.number(one) == held[0])
        raise LabelProblem(
            f"its segments for '{other}' and '{name}' share {held.size} voxels. Say which counts: data.label_overlaps=later takes what "
            "is named later."
        )


def _notes(name: str, voxels: int, masks: Sequence[Mask]) -> list[str]:
    outside = sum(mask.outside for mask in masks)
    if outside and not voxels:
        raise LabelProblem(f"all {outside} voxels of '{name}' lie outside of the image: it was drawn on another one.")
    found = [f"{outside} voxels of '{name}' lie outside of the image"] if outside else []
    found += ["" if voxels else f"'{name}' has no voxel"]
    return [*filter(None, found), *(f"'{name}': {note}" for mask in masks for note in mask.notes)]
