"""Surface segmentations: closed surfaces in patient space, each segment as the voxels whose centres lie within its surfaces.

Triangles are read, and strips, fans and facets of them. Points and lines enclose nothing. Any grid will do: a surface has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from medssl.archive.headers.dicom import read_dataset
from medssl.archive.headers.elements import count, tag_of, text, values
from medssl.archive.labels.elements import item, items, reading, series_referred, uids
from medssl.archive.labels.meshes import enclosed, lines_through
from medssl.archive.labels.objects import LabelObject, Mask, Refers, Segment, no_mask
from medssl.archive.labels.placing import Grid, LabelProblem

HEADER = ["SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID", "SegmentSequence", "ReferencedSeriesSequence", "SpecificCharacterSet"]
MOST_TRIANGLES = 20_000_000
MOST_VOXELS = 2**31
MOST_CROSSINGS = 2.0**28
"""Lines through triangles that are followed: an organ has a million."""
OPEN = 0.001
"""Share of the lines through a surface that may end inside: coordinates are rounded to 32 bits."""
UNDEFINED = 0xFFFFFFFF
"""As a length: until a mark says so."""
_OPEN_PRIMITIVES = ("LongVertexPointIndexList", "VertexPointIndexList", "LongEdgePointIndexList", "EdgePointIndexList", "LineSequence")
"""Points, edges and lines."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class _Surface:
    triangles: NDArray[np.float64]
    """(T, 3, 3) corners, RAS mm."""
    finite: bool


def read_surface(stream: BinaryIO, surfaces: bool = True) -> LabelObject:
    """The surface segmentation of an open file; without `surfaces` it has no masks. Raises `LabelProblem`."""
    with reading("surface segmentation"):
        dataset = read_dataset(stream, [*HEADER, *(["SurfaceSequence"] if surfaces else [])], pixels=False)
        segments, parts = _segments(dataset)
        mask = partial(_mask, parts, _by_number(dataset)) if surfaces else no_mask
        return LabelObject("SURFACE", segments, _refers(dataset), mask)


def _segments(dataset: Dataset) -> tuple[tuple[Segment, ...], dict[int, tuple[int, ...]]]:
    """The segments, and by their numbers those of their surfaces."""
    found: dict[int, tuple[int, ...]] = {}
    segments: list[Segment] = []
    for one in items(dataset, "SegmentSequence"):
        number = count(one, "SegmentNumber", -1) if values(one, "SegmentNumber") else -1
        if number < 0 or number in found:
            raise LabelProblem("its segments have no numbers of their own. Export it again, or leave it out.")
        found[number] = tuple(count(part, "ReferencedSurfaceNumber", -1) for part in items(one, "ReferencedSurfaceSequence"))
        segments.append(Segment(number, text(one, "SegmentLabel")))
    if not segments:
        raise LabelProblem("it has no segments. Copy or export it again.")
    return tuple(segments), found


def _refers(dataset: Dataset) -> Refers:
    named = series_referred(items(dataset, "ReferencedSeriesSequence"), "ReferencedInstanceSequence")
    parts = [part for one in items(dataset, "SegmentSequence") for part in items(one, "ReferencedSurfaceSequence")]
    sources = [source for part in parts for source in items(part, "SegmentSurfaceSourceInstanceSequence")]
    instances = named.instances | uids(sources, "ReferencedSOPInstanceUID")
    return Refers(named.series, instances, uids([dataset], "FrameOfReferenceUID"))


def _by_number(dataset: Dataset) -> dict[int, Dataset]:
    return {count(one, "SurfaceNumber", -1): one for one in items(dataset, "SurfaceSequence")}


def _mask(parts: Mapping[int, tuple[int, ...]], surfaces: Mapping[int, Dataset], segment: Segment, grid: Grid, resample: bool) -> Mask:
    with reading("surface segmentation"):
        numbers = parts[segment.number]
        if not numbers or any(number not in surfaces for number in numbers):
            raise LabelProblem("a segment names surfaces that are not there. Export it again, or leave it out.")
        found = [_surface(surfaces[number]) for number in numbers]
        inside, outside = np.zeros(grid.shape, np.bool_), 0
        for one in found:
            if one.finite and len(one.triangles):
                beyond = _fill(one.triangles, grid, inside)
                outside += beyond
        bare = sum(1 for one in found if not one.finite or not len(one.triangles))
        return Mask(inside, outside, (f"{bare} surfaces enclose nothing and were left out",) if bare else ())


def _surface(dataset: Dataset) -> _Surface:
    points = _floats(item([dataset], "SurfacePointsSequence") or Dataset())
    primitives = item([dataset], "SurfaceMeshPrimitivesSequence") or Dataset()
    corners = [*_triangles(primitives)]
    indices = np.concatenate(corners) if corners else np.zeros((0, 3), np.int64)
    if not len(indices) and not any(name in primitives for name in _OPEN_PRIMITIVES):
        raise LabelProblem("a surface has neither triangles nor anything else. Copy or export it again.")
    if len(indices) > MOST_TRIANGLES:
        raise LabelProblem(f"a surface has more than {MOST_TRIANGLES} triangles, which are not read. Make it coarser.")
    if len(indices) and not (indices.min() >= 1 and indices.max() <= len(points)):
        raise LabelProblem("a surface names points that are not there. Export it again, or leave it out.")
    used = points[indices - 1] if len(indices) else np.zeros((0, 3, 3))
    if not np.isfinite(used).all() or np.abs(used).max(initial=0) > 1e6:
        raise LabelProblem("a surface has points that lie nowhere. Export it again, or leave it out.")
    return _Surface(used @ _LPS_TO_RAS, text(dataset, "FiniteVolume").upper() != "NO")


def _floats(points: Dataset) -> NDArray[np.float64]:
    """(N, 3) LPS mm."""
    double = _content(points, "DoublePointCoordinatesData")
    content, kind = (double, "<f8") if double else (_content(points, "PointCoordinatesData"), "<f4")
    if len(content) % (3 * np.dtype(kind).itemsize):
        raise LabelProblem("the points of a surface are no triples of numbers. Export it again, or leave it out.")
    return np.frombuffer(content, kind).reshape(-1, 3).astype(np.float64)


def _content(dataset: Dataset, name: str) -> bytes:
    element = dataset.get_item(tag_of(name))
    content = b"" if element is None else element.value
    if isinstance(element, RawDataElement) and len(content or b"") < element.length < UNDEFINED:
        raise LabelProblem("its surfaces end too early. Copy or export it again.")
    return content if isinstance(content, bytes) else b""


def _triangles(primitives: Dataset) -> Iterator[NDArray[np.int64]]:
    """(T, 3) numbers of points, counted from 1."""
    whole = _indices(primitives, "TrianglePointIndexList")
    if len(whole) % 3:
        raise LabelProblem("the triangles of a surface lack corners. Export it again, or leave it out.")
    yield whole.reshape(-1, 3)
    for one in items(primitives, "TriangleStripSequence"):
        strip = _indices(one, "PrimitivePointIndexList")
        yield np.stack([strip[:-2], strip[1:-1], strip[2:]], axis=1) if len(strip) > 2 else np.zeros((0, 3), np.int64)
    for name in ("TriangleFanSequence", "FacetSequence"):
        for one in items(primitives, name):
            yield _fan(_indices(one, "PrimitivePointIndexList"))


def _fan(points: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(points) < 3:
        return np.zeros((0, 3), np.int64)
    return np.stack([np.full(len(points) - 2, points[0]), points[1:-1], points[2:]], axis=1)


def _indices(dataset: Dataset, name: str) -> NDArray[np.int64]:
    """In 32 bits, or in the 16 of older objects."""
    wide = _content(dataset, f"Long{name}")
    content, kind = (wide, "<u4") if wide else (_content(dataset, name), "<u2")
    usable = len(content) - len(content) % np.dtype(kind).itemsize
    return np.frombuffer(content[:usable], kind).astype(np.int64)


def _fill(triangles: NDArray[np.float64], grid: Grid, inside: NDArray[np.bool_]) -> int:
    """Add what a surface encloses; returns how many voxels of it lie beyond the image."""
    back = np.linalg.inv(grid.affine)
    voxels = triangles @ back[:3, :3].T + back[:3, 3]
    low = np.floor(voxels.min(axis=(0, 1)))
    shape = _sides(np.ceil(voxels.max(axis=(0, 1))) - low + 1)
    if np.prod([float(side) for side in shape]) > MOST_VOXELS or lines_through(voxels) > MOST_CROSSINGS:
        raise LabelProblem("a surface spans more voxels than are read: it was drawn on another image, or is broken.")
    found, ending = enclosed(voxels - low, shape)
    if ending > OPEN * shape[0] * shape[1]:
        raise LabelProblem("a surface is not closed, so that nothing is inside of it. Close it, or leave it out.")
    starts = np.maximum(low, 0).astype(int)
    ends = np.minimum(low + shape, grid.shape).astype(int)
    total = int(np.count_nonzero(found))
    if (ends <= starts).any():
        return total
    part = found[tuple(slice(start, end) for start, end in zip(starts - low.astype(int), ends - low.astype(int), strict=True))]
    inside[tuple(slice(start, end) for start, end in zip(starts, ends, strict=True))] |= part
    return total - int(np.count_nonzero(part))


def _sides(values: NDArray[np.float64]) -> tuple[int, int, int]:
    x, y, z = (int(value) for value in values)
    return x, y, z
