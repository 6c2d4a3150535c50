"""From the slices of one series to its volumes: split by what makes slices incomparable, sort by position, cut at gaps."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medssl.archive import geometry
from medssl.archive.instance import Instance
from medssl.archive.outcomes import Reason
from medssl.archive.series.repetitions import told_apart
from medssl.archive.series.runs import Run, regular_runs

_ALWAYS: tuple[tuple[str, Callable[[Instance], Hashable]], ...] = (
    ("matrix", lambda one: (one.rows, one.columns)),
    ("pixel spacing", lambda one: tuple(round(value, 4) for value in one.pixel_spacing)),
    ("frame of reference", lambda one: one.frame_of_reference),
    ("image type", lambda one: one.component),
    ("echo", lambda one: one.echo),
    ("photometric interpretation", lambda one: one.photometric),
    ("kind of object", lambda one: (one.sop_class, one.modality)),
)
"""Slices that differ in one of these are never of one volume."""


@dataclass(frozen=True)
class Stack:
    """A volume: slices in order along the third axis."""

    slices: tuple[Instance, ...]
    affine: NDArray[np.float64]
    """(4, 4) voxel -> RAS+ mm."""
    split_by: tuple[str, ...]
    warnings: tuple[str, ...]
    deviation: float
    """Millimetres by which the slice that fits worst lies off its place on the affine."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        return self.slices[0].columns, self.slices[0].rows, len(self.slices)


@dataclass(frozen=True)
class Left:
    """A slice in no volume."""

    instance: Instance
    reason: Reason


Outcome = tuple[list[Stack], list[Left]]


def split_volumes(instances: Sequence[Instance]) -> Outcome:
    """The volumes of one series and the slices left over; every instance is in exactly one of the two.

    The order of `instances` has no influence. Each needs a usable position, orientation and pixel spacing.
    """
    ordered = sorted(instances, key=lambda one: (one.orientation, one.uid, one.identity))
    groups = _alike(ordered)
    stacks: list[Stack] = []
    left: list[Left] = []
    for group, split_by in groups:
        found, rest = _stacks(group, split_by)
        stacks += found
        left += rest
    return stacks, left


def _alike(instances: Sequence[Instance]) -> list[tuple[list[Instance], tuple[str, ...]]]:
    """Groups that agree in everything of `_ALWAYS` and in orientation, with the names of what differs within the series."""
    names: list[str] = [name for name, value in _ALWAYS if len({value(one) for one in instances}) > 1]
    by_key: dict[Hashable, list[list[Instance]]] = defaultdict(list)
    for one in instances:
        clusters = by_key[tuple(value(one) for _, value in _ALWAYS)]
        for cluster in clusters:
            if cluster[0].orientation == one.orientation or _turned([cluster[0], one]) <= geometry.COSINE:
                cluster.append(one)
                break
        else:
            clusters.append([one])
    if _turned(instances) > geometry.COSINE:
        names.insert(0, "orientation")
    return [(cluster, tuple(names)) for clusters in by_key.values() for cluster in clusters]


def _turned(slices: Sequence[Instance]) -> float:
    """The largest difference between direction cosines of the slices."""
    return float(np.ptp(list({one.orientation for one in slices}), axis=0).max())


def _stacks(group: list[Instance], split_by: tuple[str, ...]) -> Outcome:
    normal = geometry.slice_normal(group[0].orientation)
    positions = np.array([one.position for one in group])
    order = geometry.sort_along_normal(positions, normal)
    group = [group[index] for index in order]
    places = geometry.place_labels(positions[order] @ normal).tolist()
    if len(set(places)) == len(group):
        stacks, left = _runs(group, split_by)
        if len(stacks) == 1 and not left:
            return stacks, left
    elif len(set(places)) == 1:
        return [], [Left(one, Reason.REPEATED_POSITION) for one in group]
    parting = told_apart(group, places, _placed)
    outcomes = [_runs(list(part), (*split_by, *parting.by), parting.warnings) for part in parting.parts]
    outcomes.append(([], [Left(one, Reason.REPEATED_POSITION) for one in parting.beyond]))
    return [stack for stacks, _ in outcomes for stack in stacks], [one for _, left in outcomes for one in left]


def _placed(part: list[Instance]) -> tuple[int, int]:
    stacks, _ = _runs(part, ())
    return sum(len(stack.slices) for stack in stacks), -len(stacks)


def _runs(group: list[Instance], split_by: tuple[str, ...], told: tuple[str, ...] = ()) -> Outcome:
    """Volumes from slices that are sorted and at different positions; `told` are warnings of each."""
    if len(group) == 1:
        return [], [Left(group[0], Reason.SINGLE_SLICE)]
    if len(group) == 2 and _far_apart(group):
        return [], [Left(one, Reason.FAR_APART) for one in group]
    runs = regular_runs(np.array([one.position for one in group]), _decimals(group))
    used = {index for run in runs for index in run.slices}
    left = [Left(one, Reason.IRREGULAR) for index, one in enumerate(group) if index not in used]
    left += [Left(group[index], Reason.BAD_GEOMETRY) for run in runs if not run.usable for index in run.slices]
    cut = () if len(runs) == 1 and not left else ("gap",)
    runs = [run for run in runs if run.usable]
    stacks = [_stack(group, run, (*split_by, *cut), told) for run in runs]
    if cut:
        text = f"the slices have gaps or uneven distances: cut into {len(runs)} regular runs, {len(left)} slices left over"
        stacks = [replace(stack, warnings=(text, *stack.warnings)) for stack in stacks]
    return stacks, left


def _far_apart(pair: Sequence[Instance]) -> bool:
    """Two slices prove no spacing by themselves: where the header knows better, they must not lie far beyond it."""
    stated = [value for one in pair for values in (one.between_slices, one.thickness) for value in values if value > 0]
    return bool(stated) and float(np.linalg.norm(np.subtract(pair[0].position, pair[1].position))) > 3 * max(stated)


def _decimals(group: Sequence[Instance]) -> int:
    """Trailing zeros may have been left out, so what any position shows counts for all."""
    written = [one.decimals for one in group]
    return max(written) if min(written) >= 0 else -1


def _stack(group: list[Instance], run: Run, split_by: tuple[str, ...], told: tuple[str, ...]) -> Stack:
    slices = tuple(group[index] for index in run.slices)
    affine = geometry.affine_from_dicom(slices[0].orientation, slices[0].pixel_spacing, run.origin, run.step)
    return Stack(slices, affine, split_by, (*told, *stack_warnings(slices, run, affine)), run.deviation)


def stack_warnings(slices: Sequence[Instance], run: Run, affine: NDArray[np.float64]) -> Iterable[str]:
    """What a person should know of the volume that these slices are."""
    yield from sorted({text for one in slices for text in one.warnings})
    if run.nearly:
        yield f"the slices lie up to {run.deviation:.3f} mm off even distances; the affine is the line of least squares"
    turned = _turned(slices)
    if turned > 1e-4:
        yield f"the orientation varies by {turned:.4f} between slices; that of the first counts"
    tilt = geometry.shear_degrees(affine)
    if tilt > 0.1:
        yield f"sheared by {tilt:.1f} degrees (gantry tilt or shifted slices); the affine keeps it exactly"
    step = geometry.voxel_spacing(affine)[2]
    stated = Counter(one.between_slices[0] for one in slices if one.between_slices and one.between_slices[0] > 0)
    if stated:
        between = stated.most_common(1)[0][0]
        if abs(between - step) > max(0.05 * step, 0.01):
            yield f"SpacingBetweenSlices says {between:.3f} mm, the positions say {step:.3f} mm; the positions count"
    if slices[0].is_inverted:
        yield "MONOCHROME1: low values are meant to be bright"
    padded = sorted({one.padding[0] for one in slices if one.padding})
    if padded:
        named = ", ".join(f"{value:g}" for value in padded)
        yield f"pixel padding value {named} (stored) marks voxels without data, which a store fills with the lowest of the others"
