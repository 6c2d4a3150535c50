"""DICOM SEG: binary, fractional and label map segmentations, frame by frame onto the voxels of the image that they were drawn on.

A frame lies where its own position says, whatever its number: frames that are left out, that overlap, or that run in another order or
direction than the image's slices need no rule of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset

from medssl.archive.geometry import affine_from_dicom, slice_normal, usable_orientation, usable_position, usable_spacing
from medssl.archive.headers.dicom import read_dataset, transfer_syntax
from medssl.archive.headers.elements import count, number, numbers, text, values
from medssl.archive.headers.pixel_element import UNCOMPRESSED
from medssl.archive.instance import Instance
from medssl.archive.labels.elements import item, items, reading, series_referred, uids
from medssl.archive.labels.objects import LabelObject, Mask, Refers, Segment, no_mask
from medssl.archive.labels.placing import WAY_OUT, Grid, LabelProblem, OtherGrid, nearest, paste, place_of
from medssl.archive.pixels.values import frame_values

_SHARED, _EACH = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
HEADER = (
    "SOPClassUID SOPInstanceUID FrameOfReferenceUID Rows Columns NumberOfFrames BitsAllocated SamplesPerPixel SegmentationType "
    f"MaximumFractionalValue SegmentSequence ReferencedSeriesSequence {_SHARED} {_EACH} SpecificCharacterSet"
).split()
MOST_PLANES = 4096
"""Planes of a stack that is resampled."""
MOST_VOXELS = 2**31
_STEP = 0.02
"""Share of the distance between planes by which a plane may lie off its place in a stack that is resampled."""


@dataclass(frozen=True)
class _Frame:
    number: int
    segment: int | None
    """None in a label map, whose values are the segments."""
    position: tuple[float, ...]
    """LPS mm."""
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]

    def affine(self, step: NDArray[np.float64]) -> NDArray[np.float64]:
        return affine_from_dicom(self.orientation, self.spacing, np.array(self.position), step)


@dataclass(frozen=True, eq=False)
class _Seg:
    """A SEG as read, with what tells one voxel's meaning."""

    dataset: Dataset
    kind: str
    rows: int
    columns: int
    bits: int
    frames: tuple[_Frame, ...]
    top: float
    """MaximumFractionalValue."""


def read_seg(stream: BinaryIO, pixels: bool = True) -> LabelObject:
    """The SEG of an open file; without `pixels` it has no masks. Raises `LabelProblem`."""
    with reading("segmentation"):
        dataset = read_dataset(stream, [*HEADER, *(["PixelData"] if pixels else [])], pixels=pixels)
        segments = tuple(_segments(dataset))
        series = items(dataset, "ReferencedSeriesSequence")
        refers = series_referred(series, "ReferencedInstanceSequence")
        refers = Refers(refers.series, refers.instances, uids([dataset], "FrameOfReferenceUID"))
        if not pixels:
            return LabelObject("SEG", segments, refers, no_mask)
        seg = _opened(dataset)
    return LabelObject("SEG", segments, refers, partial(_mask, seg))


def _segments(dataset: Dataset) -> Iterator[Segment]:
    seen: set[int] = set()
    for one in items(dataset, "SegmentSequence"):
        found = Segment(count(one, "SegmentNumber", -1) if values(one, "SegmentNumber") else -1, text(one, "SegmentLabel"))
        if found.number == 0:
            continue  # the background of a label map
        if found.number in seen or found.number < 0:
            raise LabelProblem("its segments have no numbers of their own. Export it again, or leave it out.")
        seen.add(found.number)
        yield found


def _opened(dataset: Dataset) -> _Seg:
    kind = text(dataset, "SegmentationType").upper()
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise LabelProblem("its segmentation type is none of BINARY, FRACTIONAL and LABELMAP. Export it again, or leave it out.")
    rows, columns, bits = (count(dataset, name, 0) for name in ("Rows", "Columns", "BitsAllocated"))
    frames = tuple(_frames(dataset, labelled=kind != "LABELMAP"))
    if not frames or min(rows, columns) < 1 or count(dataset, "SamplesPerPixel", 1) != 1 or bits not in (1, 8, 16):
        raise LabelProblem(f"it says that it has {len(frames)} frames of {rows} x {columns} pixels with {bits} bits. Export it again.")
    if "PixelData" not in dataset:
        raise LabelProblem("it has no pixels. Export it again.")
    seg = _Seg(dataset, kind, rows, columns, bits, frames, number(dataset, "MaximumFractionalValue", 255))
    missing = (len(frames) * rows * columns * bits + 7) // 8 - len(dataset["PixelData"].value)
    if transfer_syntax(dataset) in UNCOMPRESSED and missing > 0:
        raise LabelProblem(f"its pixels end {missing} bytes too early. Copy or export it again.")
    return seg


def _frames(dataset: Dataset, labelled: bool) -> Iterator[_Frame]:
    shared = items(dataset, _SHARED)
    groups = items(dataset, _EACH)
    if len(groups) != int(number(dataset, "NumberOfFrames", 1)):
        raise LabelProblem(f"it describes {len(groups)} frames and says that it has another number. Export it again.")
    for place, own in enumerate(groups):
        both = [own, *shared]
        plane, turned, measures = (
            item(both, f"{name}Sequence") or Dataset() for name in ("PlanePosition", "PlaneOrientation", "PixelMeasures")
        )
        identity = item(both, "SegmentIdentificationSequence") if labelled else None
        frame = _Frame(
            place,
            count(identity, "ReferencedSegmentNumber", -1) if identity is not None else None,
            numbers(plane, "ImagePositionPatient"),
            numbers(turned, "ImageOrientationPatient"),
            numbers(measures, "PixelSpacing"),
        )
        sound = len(frame.position) == 3 and usable_position(frame.position) and usable_orientation(frame.orientation)
        if not sound or len(frame.spacing) != 2 or not usable_spacing(frame.spacing):
            raise LabelProblem(f"frame {place + 1} does not say where it lies. Export it again with positions, orientation and spacing.")
        if labelled and frame.segment is None:
            raise LabelProblem(f"frame {place + 1} does not say which segment it shows. Export it again.")
        yield frame


def _plane(seg: _Seg, frame: _Frame, segment: int) -> NDArray[np.bool_]:
    """(columns, rows): where the frame shows the segment."""
    stored = _stored(seg, frame.number)
    if seg.kind == "FRACTIONAL":
        return np.asarray(stored >= seg.top / 2, np.bool_).T
    return np.asarray(stored == segment if seg.kind == "LABELMAP" else stored != 0, np.bool_).T


def _stored(seg: _Seg, frame: int) -> NDArray[Any]:
    """(rows, columns) values as the file has them."""
    element, size = seg.dataset["PixelData"], seg.rows * seg.columns
    syntax = transfer_syntax(seg.dataset)
    content = memoryview(element.value)
    if seg.bits == 1:
        if syntax not in UNCOMPRESSED:
            raise LabelProblem("its single bits are compressed, which is not read. Export it without compression.")
        # Frames follow each other bit by bit: one need not begin with a byte.
        first = frame * size
        part = np.frombuffer(content[first // 8 : (first + size + 7) // 8], np.uint8)
        return np.unpackbits(part, bitorder="little")[first % 8 : first % 8 + size].reshape(seg.rows, seg.columns)
    if syntax in UNCOMPRESSED:
        length = size * seg.bits // 8
        packed = bytes(content[frame * length : (frame + 1) * length])
    else:
        packed = pydicom.encaps.get_frame(element.value, frame, number_of_frames=len(seg.frames))
    pixels = Instance(
        0,
        b"",
        rows=seg.rows,
        columns=seg.columns,
        bits_allocated=seg.bits,
        bits_stored=seg.bits,
        high_bit=seg.bits - 1,
        photometric="MONOCHROME2",
        syntax=syntax,
    )
    return frame_values(packed, pixels)


def _mask(seg: _Seg, segment: Segment, grid: Grid, resample: bool) -> Mask:
    with reading("segmentation"):
        frames = [frame for frame in seg.frames if frame.segment in (None, segment.number)]
        places = [place_of(Grid((seg.columns, seg.rows, 1), frame.affine(_normal(frame))), grid) for frame in frames]
        if None in places:
            if not resample:
                raise OtherGrid(
                    f"the segmentation has frames that lie between the voxels of the image. {WAY_OUT} The image {grid}; the first frame "
                    f"{Grid((seg.columns, seg.rows, 1), frames[0].affine(_normal(frames[0])))}"
                )
            return _resampled(seg, segment.number, frames, grid)
        inside, outside = np.zeros(grid.shape, np.bool_), 0
        for frame, place in zip(frames, places, strict=True):
            assert place is not None
            outside += paste(_plane(seg, frame, segment.number)[:, :, None], place, inside)
        return Mask(inside, outside)


def _normal(frame: _Frame) -> NDArray[np.float64]:
    return slice_normal(frame.orientation)


def _resampled(seg: _Seg, segment: int, frames: Sequence[_Frame], grid: Grid) -> Mask:
    """The frames as one stack of planes at equal distances, and each voxel of the image as the nearest of the stack."""
    first = frames[0]
    if any(not np.allclose(frame.orientation, first.orientation, atol=1e-3) or frame.spacing != first.spacing for frame in frames):
        raise OtherGrid("the segmentation's frames run in several directions, none of them the image's. Resample it onto the image's grid.")
    normal = _normal(first)
    along = np.array([np.dot(frame.position, normal) for frame in frames])
    gaps = np.diff(np.unique(np.round(along, 3)))
    step = float(gaps.min()) if len(gaps) else _thickness(seg, frames[0])
    index = (along - along.min()) / step
    places = np.rint(index).astype(np.int64)
    planes = int(places.max()) + 1
    if planes > MOST_PLANES or planes * seg.rows * seg.columns > MOST_VOXELS or np.abs(index - places).max() > max(_STEP * planes, 0.1):
        raise OtherGrid("the segmentation's frames lie at no equal distances. Resample it onto the image's grid.")
    stack = np.zeros((seg.columns, seg.rows, planes), np.bool_)
    for frame, place in zip(frames, places, strict=True):
        stack[:, :, place] |= _plane(seg, frame, segment)
    lowest = replace(first, position=tuple(frames[int(along.argmin())].position))
    return Mask(nearest(stack, Grid((seg.columns, seg.rows, planes), lowest.affine(normal * step)), grid))


def _thickness(seg: _Seg, frame: _Frame) -> float:
    """Of a single plane."""
    both = [*items(seg.dataset, _EACH)[frame.number : frame.number + 1], *items(seg.dataset, _SHARED)]
    measures = item(both, "PixelMeasuresSequence") or Dataset()
    found = numbers(measures, "SpacingBetweenSlices") or numbers(measures, "SliceThickness")
    return found[0] if found and usable_spacing(found) else 1.0
