"""The grid of a volume: resampling to another spacing, and the way back for label maps.

Size convention: a side of n voxels at spacing s becomes `max(1, round(n * s / t))` voxels at exactly the spacing t, and both
grids share the centre of the field of view. So the new field of view may differ from the old one by half a voxel at each end,
where the edge value is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from medssl.archive.geometry import voxel_spacing
from medssl.errors import UsageError

Array = NDArray[Any]
WHOLE_RANGE = 200.0
SLAB = 16
"""Layers that are resampled at a time."""


def as_spacing(spacing: float | Sequence[float] | None) -> tuple[float, float, float] | None:
    """Three sides in mm from one number or three; None keeps the grid. Raises `UsageError` for what is no spacing."""
    if spacing is None:
        return None
    sides = (float(spacing),) * 3 if isinstance(spacing, int | float) else tuple(float(side) for side in spacing)
    if len(sides) != 3 or not all(0.01 <= side <= 1000 for side in sides):
        raise UsageError(f"spacing {spacing} is not one number or three, each from 0.01 to 1000 mm. For example: --spacing 1.5")
    return sides[0], sides[1], sides[2]


def new_size(size: int, old: float, new: float) -> int:
    """Voxels of a side after resampling: see the module's size convention."""
    return max(1, round(size * old / new))


def positions(size: int, old: float, new: float) -> NDArray[np.float64]:
    """Where the new voxels' centres lie on the old axis, in old voxels."""
    count = new_size(size, old, new)
    where: NDArray[np.float64] = (np.arange(count, dtype=np.float64) + 0.5 - count / 2) * (new / old) + size / 2 - 0.5
    return where


def resample(array: Array, affine: Array, spacing: Sequence[float]) -> tuple[Array, Array]:
    """(..., X, Y, Z) values and affine on the grid with `spacing` mm.

    Linear; where it shrinks, the triangle is as wide as a new voxel, so that fine structure is averaged and does not alias.
    Whole numbers that span 200 or more stay whole numbers (int16), others become float32.
    """
    old = voxel_spacing(affine)
    if np.allclose(old, spacing, rtol=1e-4):
        return array, np.asarray(affine, float)
    if array.ndim > 3:
        parts = [resample(part, affine, spacing) for part in array]
        return np.stack([part for part, _ in parts]), parts[0][1]
    whole = np.issubdtype(array.dtype, np.integer) and float(array.max()) - float(array.min()) >= WHOLE_RANGE
    result = array
    for axis in sorted(range(3), key=lambda axis: old[axis] / spacing[axis]):
        result = _along(result, axis, _weights(array.shape[axis], old[axis], spacing[axis]))
    if whole:
        result = np.rint(result, out=result).astype(array.dtype)
    return np.ascontiguousarray(result), _affine(affine, array.shape, old, spacing)


def _affine(affine: Array, shape: Sequence[int], old: Sequence[float], new: Sequence[float]) -> Array:
    scale = np.eye(4)
    for axis in range(3):
        scale[axis, axis] = new[axis] / old[axis]
        scale[axis, 3] = positions(shape[axis], old[axis], new[axis])[0]
    return np.asarray(affine, float) @ scale


def _weights(size: int, old: float, new: float) -> csr_matrix:
    """(new size, size) rows that sum to one and, inside the volume, keep straight lines straight."""
    centres = np.clip(positions(size, old, new), 0, size - 1)
    width = max(1.0, new / old)
    reach = int(np.ceil(width))
    taps = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 2)
    offset = taps - centres[:, None]
    weight = np.where((taps >= 0) & (taps < size), np.maximum(0.0, 1.0 - np.abs(offset) / width), 0.0)
    inside = (centres >= width) & (centres <= size - 1 - width)
    m1, m2 = ((weight * offset**power).sum(1) for power in (1, 2))
    bend = np.where(inside & (m2 > 1e-9), -m1 / np.maximum(m2, 1e-9), 0.0)
    weight = weight * (1.0 + bend[:, None] * offset)
    weight /= weight.sum(1, keepdims=True)
    rows = np.repeat(np.arange(len(centres)), taps.shape[1])
    kept = weight.reshape(-1) != 0
    entries = (weight.reshape(-1)[kept].astype(np.float32), (rows[kept], taps.reshape(-1)[kept]))
    return csr_matrix(entries, shape=(len(centres), size))


def _along(array: Array, axis: int, weights: csr_matrix) -> NDArray[np.float32]:
    """In parts of the axis that lies slowest in memory, so that little is held beside array and result."""
    front = np.moveaxis(array, axis, 0)
    done = np.empty((weights.shape[0], *front.shape[1:]), np.float32)
    cut = 1 + int(np.argmax(np.abs(front.strides[1:])))
    for first in range(0, front.shape[cut], SLAB):
        part = (slice(None),) * cut + (slice(first, first + SLAB),)
        piece = np.ascontiguousarray(front[part], np.float32)
        done[part] = (weights @ piece.reshape(piece.shape[0], -1)).reshape(weights.shape[0], *piece.shape[1:])
    return np.moveaxis(done, 0, axis)


def resample_labels(labels: Array, old: Sequence[float], new: Sequence[float]) -> Array:
    """(X, Y, Z) label map on the grid with spacing `new`, nearest voxel."""
    picks = [_nearest(positions(side, a, b), side) for side, a, b in zip(labels.shape, old, new, strict=True)]
    return np.ascontiguousarray(labels[np.ix_(*picks)])


def restore_nearest(labels: Array, shape: Sequence[int], old: Sequence[float], new: Sequence[float]) -> Array:
    """A label map of the resampled grid back on the grid of `shape` at spacing `old`, nearest voxel."""
    picks = []
    for side, a, b, count in zip(shape, old, new, labels.shape, strict=True):
        where = (np.arange(side) + 0.5 - side / 2) * (a / b) + count / 2 - 0.5
        picks.append(_nearest(where, count))
    return np.ascontiguousarray(labels[np.ix_(*picks)])


def _nearest(where: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    return np.clip(np.floor(where + 0.5), 0, size - 1).astype(np.int64)
