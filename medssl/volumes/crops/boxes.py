"""Which voxels of a volume a crop shows: as they are stored, or interpolated where the crop has a spacing of its own.

A crop's first voxel begins where its box does, at the edge of a whole voxel of the volume, so that a box of mm is placed as any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.volumes.grid import BAND, WIDE_BAND, bands, resampled_into


@dataclass(frozen=True)
class Along:
    """One axis of a crop."""

    lo: int
    hi: int
    """Voxels [lo, hi) of the crop lie in the volume; the others are padding."""
    first: int
    end: int
    """Voxels [first, end) of the volume that they are made of."""
    where: NDArray[np.float64] | None = None
    """(hi - lo,) where they lie among those; None: they are those."""
    width: float = 1.0
    """Voxels of the volume that one voxel of the crop covers, at least one."""

    def nearest(self, array: NDArray[Any], axis: int) -> NDArray[Any]:
        """Values of [first, end) along an axis as the crop's voxels have them, without interpolation."""
        if self.where is None:
            return array
        return array.take(np.clip(np.floor(self.where + 0.5).astype(np.int64), 0, self.end - self.first - 1), axis)


def covered(size: Sequence[int], spacing: Sequence[float], own: Sequence[float]) -> tuple[int, ...]:
    """How many voxels of a volume, each `own` mm, a crop of `size` voxels of `spacing` mm covers; the last perhaps in part."""
    return tuple(max(1, math.ceil(side * mm / one - 1e-6)) for side, mm, one in zip(size, spacing, own, strict=True))


def along(corner: int, size: int, side: int) -> Along:
    """Of a crop whose voxels are those of the volume, which has `side` of them."""
    lo, hi = max(0, -corner), min(size, side - corner)
    return Along(lo, hi, corner + lo, corner + hi)


def along_at(corner: int, size: int, side: int, ratio: float) -> Along:
    """Of a crop whose voxels are each `ratio` voxels of the volume."""
    where = corner - 0.5 + (np.arange(size) + 0.5) * ratio
    inside = (where >= -0.5) & (where <= side - 0.5)
    if not inside.any():
        # The whole volume lies between the centres of two voxels.
        inside[np.argmin(np.abs(where - (side - 1) / 2))] = True
    lo = int(np.argmax(inside))
    hi = lo + int(np.count_nonzero(inside))
    width = max(1.0, ratio)
    first = min(max(0, math.floor(where[lo] - width)), side - 1)
    end = max(min(side, math.floor(where[hi - 1] + width) + 2), first + 1)
    return Along(lo, hi, first, end, where[lo:hi] - first, width)


def interpolated(arrays: NDArray[Any], axes: Sequence[Along]) -> NDArray[Any]:
    """(A, ...) raw values of the voxels that are read, as the crop's voxels have them: float32 where they lie elsewhere."""
    if all(axis.where is None for axis in axes):
        return arrays
    sides = (*[1] * (3 - len(axes)), *(axis.end - axis.first for axis in axes))
    plain = Along(0, 1, 0, 1, np.zeros(1))
    padded = [*[plain] * (3 - len(axes)), *axes]
    lines = [
        bands(np.arange(float(n)) if one.where is None else one.where, n, one.width, side)
        for one, n, side in zip(padded, sides, (BAND, BAND, WIDE_BAND), strict=True)
    ]
    out = np.empty((len(arrays), *(one.hi - one.lo for one in padded)), np.float32)
    for made, array in zip(out, arrays, strict=True):
        resampled_into(made, array.reshape(sides), lines)
    return out.reshape(len(arrays), *out.shape[-len(axes) :])
