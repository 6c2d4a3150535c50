"""RTSTRUCT: planar contours in patient space, onto the slices of the image that they were drawn on.

Contours are taken where their points lie, along whichever axis of the image they are flat. Contours oblique to all of them, or between
the slices, are refused unless the caller allows another grid; then each slice takes the contours nearest to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from medssl.archive.headers.dicom import read_dataset
from medssl.archive.headers.elements import tag_of, text, texts, values, whole
from medssl.archive.labels.contours import inside, joined
from medssl.archive.labels.elements import items, reading, series_referred, uids
from medssl.archive.labels.objects import LabelObject, Mask, Refers, Segment, no_mask
from medssl.archive.labels.placing import IN_PLACE, WAY_OUT, Grid, LabelProblem, OtherGrid

_REFERENCES = "ReferencedFrameOfReferenceSequence"
HEADER = f"SOPClassUID SOPInstanceUID FrameOfReferenceUID StructureSetROISequence {_REFERENCES} SpecificCharacterSet".split()
MOST_POINTS = 5_000_000
"""Points of one object that are read: structure sets have some hundred thousand."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class _Contour:
    points: NDArray[np.float64]
    """(N, 3) RAS mm."""
    excludes: bool


@dataclass(frozen=True, eq=False)
class _Flat:
    """A contour in the image: flat along one axis, at a place along it."""

    axis: int
    place: float
    polygon: NDArray[np.float64]
    excludes: bool


def read_rtstruct(stream: BinaryIO, contours: bool = True) -> LabelObject:
    """The structure set of an open file; without `contours` it has no masks. Raises `LabelProblem`."""
    with reading("structure set"):
        dataset = read_dataset(stream, [*HEADER, *(["ROIContourSequence"] if contours else [])], pixels=False)
        segments = tuple(_rois(dataset))
        mask = partial(_mask, _by_number(dataset)) if contours else no_mask
        refers = _refers(dataset)
    return LabelObject("RTSTRUCT", segments, refers, mask)


def _rois(dataset: Dataset) -> Iterator[Segment]:
    for one in items(dataset, "StructureSetROISequence"):
        number = whole(one, "ROINumber", -1)
        if number < 0:
            raise LabelProblem("its regions have no numbers of their own. Export it again, or leave it out.")
        yield Segment(number, text(one, "ROIName"))


def _by_number(dataset: Dataset) -> dict[int, list[Dataset]]:
    """Number of a region -> its contours, unread."""
    found: dict[int, list[Dataset]] = defaultdict(list)
    points = 0
    for roi in items(dataset, "ROIContourSequence"):
        contours = items(roi, "ContourSequence")
        points += sum(_count(contour) for contour in contours)
        if points > MOST_POINTS:
            raise LabelProblem(f"its contours have more than {MOST_POINTS} points, which are not read. Export it again, or leave it out.")
        found[whole(roi, "ReferencedROINumber", -1)] += contours
    return found


def _count(contour: Dataset) -> int:
    """Points, at least: without reading them."""
    element = contour.get_item(tag_of("ContourData"))
    if isinstance(element, RawDataElement):
        return ((element.value or b"").count(b"\\") + 1) // 3
    return len(values(contour, "ContourData")) // 3


def _refers(dataset: Dataset) -> Refers:
    frames = items(dataset, _REFERENCES)
    studies = [study for frame in frames for study in items(frame, "RTReferencedStudySequence")]
    series = [one for study in studies for one in items(study, "RTReferencedSeriesSequence")]
    found = series_referred(series, "ContourImageSequence")
    named = uids(frames, "FrameOfReferenceUID") | uids([dataset], "FrameOfReferenceUID")
    of_regions = uids(items(dataset, "StructureSetROISequence"), "ReferencedFrameOfReferenceUID")
    return Refers(found.series, found.instances, named | of_regions)


def _contours(contours: Sequence[Dataset]) -> Iterator[_Contour | None]:
    """The closed ones; None for each point or open line, which has no inside."""
    for contour in contours:
        kind = text(contour, "ContourGeometricType").upper().replace("_", "").replace(" ", "")
        if kind not in ("CLOSEDPLANAR", "CLOSEDPLANARXOR"):
            yield None
            continue
        points = _points(contour)
        if len(points) < 3:
            yield None
            continue
        yield _Contour(points @ _LPS_TO_RAS, kind == "CLOSEDPLANARXOR")


def _points(contour: Dataset) -> NDArray[np.float64]:
    written = texts(contour, "ContourData")
    if len(written) % 3:
        raise LabelProblem("a contour has a point without three coordinates. Export it again, or leave it out.")
    try:
        points = np.array([value.replace(",", ".") for value in written], np.float64).reshape(-1, 3)
    except ValueError:
        points = np.full((1, 3), np.nan)
    if not np.isfinite(points).all() or np.abs(points).max(initial=0) > 1e6:
        raise LabelProblem("a contour has coordinates that are no numbers, or lie too far away for any body. Export it again.")
    return points


def _mask(regions: Mapping[int, Sequence[Dataset]], segment: Segment, grid: Grid, resample: bool) -> Mask:
    with reading("structure set"):
        found = list(_contours(regions.get(segment.number, ())))
    closed = [contour for contour in found if contour is not None]
    notes = [f"{len(found) - len(closed)} contours that enclose nothing (points, open lines)"] if len(closed) < len(found) else []
    flat = [_flat(contour, grid) for contour in closed]
    planes = _planes(flat, grid, resample)
    mask = np.zeros(grid.shape, np.bool_)
    outside = shared = 0
    for (axis, place), parts in planes.items():
        shape = _others(grid.shape, axis)
        region, crossed = joined([(inside(one.polygon, shape), one.excludes) for one in parts])
        shared += crossed
        if 0 <= place < grid.shape[axis]:
            into = np.moveaxis(mask, axis, 0)[place]
            into |= region
        else:
            outside += int(region.sum())
    notes += [f"contours that cross share {shared} voxels, which count as inside"] if shared else []
    notes += _gaps(planes)
    return Mask(mask, outside, tuple(notes))


def _others(sides: Sequence[int], axis: int) -> tuple[int, int]:
    first, second = (side for other, side in enumerate(sides) if other != axis)
    return first, second


def _flat(contour: _Contour, grid: Grid) -> _Flat:
    points = np.linalg.solve(grid.affine[:3, :3], (contour.points - grid.affine[:3, 3]).T).T
    spread = np.ptp(points, axis=0)
    axis = int(np.argmin(spread))
    if spread[axis] > 2 * IN_PLACE:
        raise OtherGrid(
            "the structure set has contours that are oblique to the image's slices along all three axes. "
            "Draw or export them on this image, or convert them to a label map on its grid."
        )
    return _Flat(axis, float(points[:, axis].mean()), np.delete(points, axis, axis=1), contour.excludes)


def _planes(flat: Sequence[_Flat], grid: Grid, resample: bool) -> dict[tuple[int, int], list[_Flat]]:
    """(axis, slice of the image) -> the contours that lie on it."""
    planes: dict[tuple[int, int], list[_Flat]] = defaultdict(list)
    between = [one for one in flat if abs(one.place - round(one.place)) > IN_PLACE]
    if not between:
        for one in flat:
            planes[one.axis, round(one.place)].append(one)
        return planes
    if not resample:
        raise OtherGrid(
            f"the structure set has {len(between)} of {len(flat)} contours of a region between the slices of the image: it was drawn on "
            f"another one. {WAY_OUT}"
        )
    for axis in sorted({one.axis for one in flat}):
        here = [one for one in flat if one.axis == axis]
        drawn = np.unique(np.round([one.place for one in here], 3))
        reach = max(float(np.diff(drawn).min()) if len(drawn) > 1 else 1.0, 1.0) / 2
        for number in range(grid.shape[axis]):
            near = drawn[np.argmin(np.abs(drawn - number))]
            if abs(near - number) <= reach:
                planes[axis, number] = [one for one in here if abs(one.place - near) < 1e-2]
    return planes


def _gaps(planes: Mapping[tuple[int, int], object]) -> list[str]:
    """Slices without a contour between others with one: drawn on every second slice, or two parts of a region."""
    drawn = sorted({place for _, place in planes})
    if not drawn or len({axis for axis, _ in planes}) > 1:
        return []
    empty = drawn[-1] - drawn[0] + 1 - len(drawn)
    return [f"{empty} slices without a contour between the first and the last one with one"] if empty else []
