"""Series of which all slices say the same but for where they lie, found in the columns of a table: most are, and need no object a slice.

Such a series is one volume, the one that `split_volumes` makes of it, by the same rules of places and distances. Whatever is not
surely one is left to that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl.archive import geometry
from medssl.archive.instance import Instance, from_table
from medssl.archive.series.runs import Run, regular_runs
from medssl.archive.series.splitting import stack_warnings

_PLACED = ("kind", "orientation", "rows", "columns", "pixel_spacing", "frame_of_reference", "between_slices")
_SAME = (*_PLACED, "component", "echo", "photometric", "sop_class", "modality", "padding", "warnings")
"""What all slices must agree in: what `split_volumes` looks at beside the places."""
_FEWEST = 3
"""Slices that prove a spacing by themselves."""
_AT_ONCE = 256
"""Series of which a slice becomes an object at once."""
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Uniform:
    """The volume that a series is."""

    rows: Rows
    """Of the table: the slices in order along the third axis."""
    first: Instance
    """The first of them."""
    affine: geometry.Float
    """(4, 4) voxel -> RAS+ mm."""
    warnings: tuple[str, ...]
    deviation: float
    """Millimetres by which the slice that fits worst lies off its place on the affine."""
    differ: frozenset[str]
    """Of the columns that were asked about, those in which the slices do not agree."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        return self.first.columns, self.first.rows, len(self.rows)


def uniform_series(table: pa.Table, begins: Rows, usable: NDArray[np.bool_], asked: Collection[str]) -> Iterator[Uniform]:
    """Those among the series of a table that is sorted by series, which begin at the rows `begins`.

    `usable` says of each row whether it may be in a volume; `asked` are columns of which `differ` is to tell.
    """
    counts = np.diff([*begins, len(table)])
    inner = np.ones(len(table), bool)
    inner[begins] = False
    differ = {name: _some(_changes(table[name].combine_chunks()) & inner, begins) for name in {*_SAME, *asked}}
    position = table["position"].combine_chunks()
    sound = usable & (table["kind"].to_numpy() == "dicom") & (_lengths(position) == 3) & (table["frames"].to_numpy() == 0)
    uniform = (counts >= _FEWEST) & ~_some(~sound, begins) & ~np.any([differ[name] for name in _SAME], axis=0)
    # The least is that of a series in which a position is not written as text, the most what any shows.
    written = table["decimals"].to_numpy()
    least, most = (of.reduceat(written, begins) for of in (np.minimum, np.maximum))
    values, ends = position.flatten().to_numpy(), np.cumsum(_lengths(position))
    for number, first in _firsts(table, begins, np.flatnonzero(uniform)):
        begin, count = int(begins[number]), int(counts[number])
        end = int(ends[begin + count - 1])
        positions = values[end - 3 * count : end].reshape(count, 3)
        decimals = int(most[number]) if least[number] >= 0 else -1
        found = _placed(positions, first.orientation, decimals)
        if found is None:
            continue
        order, run = found
        affine = geometry.affine_from_dicom(first.orientation, first.pixel_spacing, run.origin, run.step)
        others = frozenset(name for name in asked if differ[name][number])
        warnings = tuple(stack_warnings((first,), run, affine))
        yield Uniform(begin + order, first, affine, warnings, run.deviation, others)


def _placed(positions: geometry.Float, orientation: Sequence[float], decimals: int) -> tuple[Rows, Run] | None:
    """The order along the normal, and the one regular run that all positions are; None where they are not one."""
    distances = positions @ geometry.slice_normal(orientation)
    order = np.argsort(distances, kind="stable")
    if np.diff(distances[order]).min() <= geometry.SAME_PLACE:
        return None
    runs = regular_runs(positions[order], decimals)
    if len(runs) != 1 or len(runs[0].slices) != len(positions) or not runs[0].usable:
        return None
    return order, runs[0]


def _firsts(table: pa.Table, begins: Rows, series: Rows) -> Iterator[tuple[int, Instance]]:
    """The first row of each of these series as an object."""
    for start in range(0, len(series), _AT_ONCE):
        some = series[start : start + _AT_ONCE]
        yield from zip(some.tolist(), from_table(table.take(pa.array(begins[some]))), strict=True)


def _some(flags: NDArray[np.bool_], begins: Rows) -> NDArray[np.bool_]:
    """Of each series: is the flag of any of its rows set?"""
    found: NDArray[np.bool_] = np.logical_or.reduceat(flags, begins)
    return found


def _changes(column: pa.Array) -> NDArray[np.bool_]:
    """Of each row: is the value another than that of the row before?"""
    changes = np.ones(len(column), bool)
    if not pa.types.is_list(column.type):
        changes[1:] = np.asarray(pc.not_equal(column[1:], column[:-1]))
        return changes
    lengths = _lengths(column)
    changes[1:] = lengths[1:] != lengths[:-1]
    values, rows = column.flatten(), np.repeat(np.arange(len(column)), lengths)
    # Where a row is as long as the one before, each value has its counterpart as far back as a row is long.
    for length in np.unique(lengths[lengths > 0]).tolist():
        of_these = np.flatnonzero((lengths[rows] == length) & ~changes[rows])
        if len(of_these):
            other = np.asarray(pc.not_equal(values.take(pa.array(of_these)), values.take(pa.array(of_these - length))))
            changes[rows[of_these[other]]] = True
    return changes


def _lengths(column: pa.Array) -> NDArray[Any]:
    return np.asarray(pc.list_value_length(column))
