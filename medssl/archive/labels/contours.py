"""Polygons to voxels: a voxel belongs to a contour where its centre lies inside, by the even-odd rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_EDGES = 2**12
"""Edges that are followed at a time."""


def inside(polygon: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(A, B) whose voxel centres (whole numbers) lie inside the closed polygon of (N, 2) points.

    A contour that runs into itself by a channel of no width (a keyhole) leaves the hole out, as the even-odd rule does. A centre on
    the border counts where the border is the region's lower one along either axis, so that two regions with a common border share
    no voxel.
    """
    sides = np.array(shape)
    # One cell a voxel row: how often a line from the left crosses the contour before each voxel, modulo 2.
    crossed = np.zeros((shape[0] + 1, shape[1]), np.bool_)
    for first in range(0, len(polygon), _EDGES):
        start = polygon[first : first + _EDGES]
        _cross(start, _next(polygon, first), sides, crossed)
    return np.logical_xor.accumulate(crossed, axis=0)[:-1]


def _next(polygon: NDArray[np.float64], first: int) -> NDArray[np.float64]:
    after = polygon[first + 1 : first + _EDGES + 1]
    return after if first + _EDGES < len(polygon) else np.concatenate([after, polygon[:1]])


def _cross(start: NDArray[np.float64], end: NDArray[np.float64], sides: NDArray[np.int64], crossed: NDArray[np.bool_]) -> None:
    """Toggle, for each edge and each line of voxels along axis 0 that it crosses, the first voxel behind the crossing."""
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    # An edge owns its lower end and not its upper one: a corner is crossed once.
    lines = np.clip(np.ceil(np.stack([low, high])), 0, sides[1]).astype(np.int64)
    counts = lines[1] - lines[0]
    edges = np.repeat(np.arange(len(start)), counts)
    if not len(edges):
        return
    at = lines[0][edges] + np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts)
    a, b = start[edges], end[edges]
    where = a[:, 0] + (at - a[:, 1]) / (b[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0])
    first = np.clip(np.ceil(where), 0, sides[0]).astype(np.int64)
    np.logical_xor.at(crossed, (first, at), True)


def joined(parts: Sequence[tuple[NDArray[np.bool_], bool]]) -> tuple[NDArray[np.bool_], int]:
    """Contours of one region and plane as one mask, and how many voxels two contours share that neither holds whole.

    Each part is a contour's voxels, and whether the file says that contours exclude each other (CLOSEDPLANAR_XOR). Where it does not
    say, one inside another is a hole, one beside another a further part, and the same one twice is one; contours that cross are joined.
    """
    largest_first = sorted(parts, key=lambda part: -int(part[0].sum()))
    region = np.zeros_like(largest_first[0][0])
    seen: set[bytes] = set()
    shared = 0
    for part, excludes in largest_first:
        packed = np.packbits(part).tobytes()
        if excludes:
            region ^= part
            continue
        if packed in seen:
            continue
        seen.add(packed)
        common = region & part
        if common.any() and np.array_equal(common, part):
            region &= ~part
        else:
            shared += int(common.sum())
            region |= part
    return region, shared
