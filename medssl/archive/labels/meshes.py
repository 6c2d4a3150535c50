"""Surfaces to voxels: a voxel is inside where its centre is, which a line along the third axis tells by what it crosses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 2**20
"""Crossings that are worked out at a time."""

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def enclosed(triangles: Floats, shape: tuple[int, int, int]) -> tuple[NDArray[np.bool_], int]:
    """(X, Y, Z) whose voxel centres (whole numbers) lie within the (T, 3, 3) corners, by the even-odd rule; and how many lines along the
    third axis end inside, which none does where the surface is closed.

    A centre on a side counts where the side is the region's lower one, so that two regions with a common side share no voxel.
    """
    crossed = np.zeros((*shape[:2], shape[2] + 1), np.bool_)
    for x, y, z in _crossings(triangles, shape):
        flat = np.ravel_multi_index((x, y, np.clip(np.ceil(z), 0, shape[2]).astype(np.int64)), crossed.shape)
        places, times = np.unique(flat, return_counts=True)
        crossed.reshape(-1)[places[times % 2 == 1]] ^= True
    np.logical_xor.accumulate(crossed, axis=2, out=crossed)
    return crossed[:, :, :-1], int(np.count_nonzero(crossed[:, :, -1]))


def lines_through(triangles: Floats) -> float:
    """How many crossings there are to work out, about."""
    sides = np.ptp(triangles[:, :, :2], axis=1) + 1
    return float(np.prod(sides, axis=1).sum())


def _crossings(triangles: Floats, shape: tuple[int, int, int]) -> Iterator[tuple[Counts, Counts, Floats]]:
    """Column, row and height of each crossing of a line along the third axis."""
    low, high = (np.clip(np.ceil(end(triangles[:, :, 1], axis=1)), 0, shape[1]).astype(np.int64) for end in (np.min, np.max))
    for numbers, row in _spread(low, high):
        left, right = _between(triangles[numbers], row)
        first, last = (np.clip(np.ceil(x), 0, shape[0]).astype(np.int64) for x in (left, right))
        for places, column in _spread(first, last):
            yield column, row[places], _height(triangles[numbers[places]], column, row[places])


def _spread(first: Counts, end: Counts) -> Iterator[tuple[Counts, Counts]]:
    """The number of each range and each whole number in it, `AT_ONCE` at a time or those of one range."""
    counts = np.maximum(end - first, 0)
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + AT_ONCE, side="right")))
        part = counts[start:stop]
        numbers = np.repeat(np.arange(start, stop), part)
        if len(numbers):
            yield numbers, first[numbers] + np.arange(len(numbers)) - np.repeat(np.cumsum(part) - part, part)
        start = stop


def _between(triangles: Floats, row: Counts) -> tuple[Floats, Floats]:
    """From where to where along the first axis the row runs through each triangle; nowhere if both are equal."""
    found = np.full((len(triangles), 3), np.nan)
    for side in range(3):
        ends = triangles[:, [side, (side + 1) % 3], :2]
        # Both triangles of an edge must find the same place: its ends are taken in one order.
        turned = (ends[:, 0, 1] > ends[:, 1, 1]) | ((ends[:, 0, 1] == ends[:, 1, 1]) & (ends[:, 0, 0] > ends[:, 1, 0]))
        ends[turned] = ends[turned, ::-1]
        a, b = ends[:, 0], ends[:, 1]
        # An edge owns its lower end and not its upper one: a corner is crossed once.
        hit = (a[:, 1] <= row) & (row < b[:, 1])
        share = (row[hit] - a[hit, 1]) / (b[hit, 1] - a[hit, 1])
        found[hit, side] = a[hit, 0] + share * (b[hit, 0] - a[hit, 0])
    none = np.isnan(found).all(axis=1)
    found[none] = 0
    return np.nanmin(found, axis=1), np.nanmax(found, axis=1)


def _height(triangles: Floats, column: Counts, row: Counts) -> Floats:
    first = triangles[:, 0]
    normal = np.cross(triangles[:, 1] - first, triangles[:, 2] - first)
    with np.errstate(divide="ignore", invalid="ignore"):
        height = first[:, 2] - (normal[:, 0] * (column - first[:, 0]) + normal[:, 1] * (row - first[:, 1])) / normal[:, 2]
    # Of one that stands upright any of its heights will do.
    low, high = triangles[:, :, 2].min(axis=1), triangles[:, :, 2].max(axis=1)
    return np.clip(np.where(np.isfinite(height), height, low), low, high)
