"""Regular runs among the slices of a group: which slices lie on a line at equal distances, and how far off it they are.

A slice is in its place if it lies there exactly, or as nearly as its position is written, or nearly. A gap, a missing or a doubled
slice is far beyond all three, and cuts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medssl.archive.geometry import Float, usable_spacing

RELATIVE = 0.01
"""Share of the slice spacing by which a slice may lie off its place and still be exactly there."""
ABSOLUTE = 0.01
"""Millimetres by which it always may."""
WRITTEN = 2.0
"""How often half the last written digit a slice may lie off the line: the line through rounded positions is a little off as well."""
MOST_WRITTEN = 0.4
"""Share of the spacing beyond which rounding tells nothing any more."""
ONE_DIGIT = 1.01
"""By how many of the last written digits the steps of one run may differ, and a little for binary fractions."""
NEARLY = 0.1
"""Share of the spacing by which a slice may lie off its place, which is then said of the volume."""


@dataclass(frozen=True)
class Run:
    """Slices at equal distances: indices into the sorted positions, and the line of least squares through them (LPS mm)."""

    slices: tuple[int, ...]
    origin: Float
    """Where the first slice lies on the line."""
    step: Float
    """From slice to slice."""
    deviation: float = 0.0
    """Millimetres by which the slice that fits worst lies off its place."""
    nearly: bool = False
    """Is that more than rounding explains?"""

    @property
    def usable(self) -> bool:
        """Is the step one that an image of a body can have?"""
        return usable_spacing([float(np.linalg.norm(self.step))])


def regular_runs(positions: Float, decimals: int = -1) -> list[Run]:
    """The regular runs among (N, 3) positions sorted along the normal, in that order; slices in no run are left over.

    `decimals`: digits after the point that the positions are written with, -1 where that is unknown. No run reaches over a gap.
    A run of two proves no regularity by itself: beside others it counts only where its step is that of a run of three or more.
    """
    if len(positions) < 2:
        return []
    written = WRITTEN * 0.5 * 10.0**-decimals if decimals >= 0 else 0.0  # one digit
    whole = _fit(positions, tuple(range(len(positions))), written)
    if whole is not None:
        return [whole]
    runs = _assign(positions, _stretches(positions, written), written)
    regular = [run for run in runs if len(run.slices) > 2]
    kept = regular + [run for run in runs if len(run.slices) == 2 and any(_same_step(run.step, other.step, written) for other in regular)]
    return sorted(kept, key=lambda run: run.slices[0])


def _same_step(one: Float, other: Float, written: float) -> bool:
    """May these be steps of one run, of which `other` says the spacing?"""
    spacing, apart = float(np.linalg.norm(other)), one - other
    rounded = written <= MOST_WRITTEN * spacing and float(np.abs(apart).max()) <= ONE_DIGIT * written
    return rounded or float(np.linalg.norm(apart)) <= 2 * max(NEARLY * spacing, ABSOLUTE)


def _line(points: Float) -> tuple[Float, Float, Float]:
    """Origin and step of the line of least squares through points that are numbered, and how far each is off: (N, 3)."""
    numbers = np.arange(len(points)) - (len(points) - 1) / 2
    middle = points.mean(axis=0)
    step: Float = numbers @ (points - middle) / (numbers @ numbers)
    return middle + numbers[0] * step, step, points - middle - numbers[:, None] * step


def _fit(positions: Float, slices: tuple[int, ...], written: float) -> Run | None:
    """The run through these slices, if each lies in its place."""
    origin, step, off = _line(positions[list(slices)])
    spacing = float(np.linalg.norm(step))
    deviation = float(np.linalg.norm(off, axis=1).max())
    exactly = deviation <= max(RELATIVE * spacing, ABSOLUTE)
    rounded = written <= MOST_WRITTEN * spacing and float(np.abs(off).max()) <= written
    # Rounding makes of equal steps two that are a digit apart, never three: a gap does, though the line may run between its two sides.
    rounded = rounded and float(np.ptp(np.diff(off, axis=0), axis=0).max()) <= ONE_DIGIT * written
    if not (exactly or rounded or deviation <= NEARLY * spacing):
        return None
    return Run(slices, origin, step, deviation, nearly=not (exactly or rounded))


def _stretches(positions: Float, written: float) -> list[tuple[int, ...]]:
    """Maximal stretches of consecutive slices whose steps agree; neighbours share their border slice."""
    steps = np.diff(positions, axis=0)
    stretches: list[tuple[int, ...]] = []
    start = 0
    for index in range(1, len(steps) + 1):
        if index == len(steps) or not _same_step(steps[index], steps[start], written):
            stretches.append(tuple(range(start, index + 1)))
            start = index
    return stretches


def _assign(positions: Float, stretches: list[tuple[int, ...]], written: float) -> list[Run]:
    """Give each border slice to the longer stretch (then to the one with the commoner step), so that no slice is used twice."""
    usual = float(np.median(np.linalg.norm(np.diff(positions, axis=0), axis=1)))
    waiting = list(stretches)
    taken: set[int] = set()
    runs: list[Run] = []
    while waiting:
        waiting.sort(key=lambda stretch: (-len(stretch), abs(float(np.linalg.norm(_step(positions, stretch))) - usual), stretch[0]))
        stretch = waiting.pop(0)
        free = tuple(index for index in stretch if index not in taken)
        if len(free) < len(stretch):
            if len(free) > 1:
                waiting.append(free)
            continue
        run = _fit(positions, stretch, written)
        if run is None:
            waiting.extend(_halves(positions, stretch))
            continue
        runs.append(run)
        taken.update(stretch)
    return runs


def _step(positions: Float, stretch: tuple[int, ...]) -> Float:
    step: Float = (positions[stretch[-1]] - positions[stretch[0]]) / (len(stretch) - 1)
    return step


def _halves(positions: Float, stretch: tuple[int, ...]) -> list[tuple[int, ...]]:
    """A stretch that drifts is cut where it lies farthest from the straight line between its ends."""
    points = positions[list(stretch)]
    off = points - points[0] - np.arange(len(points))[:, None] * _step(positions, stretch)
    worst = int(np.linalg.norm(off, axis=1)[1:-1].argmax()) + 1
    return [stretch[: worst + 1], stretch[worst:]]
