"""The grid of a volume: resampling to another spacing, and the way back for label maps.

Size convention: a side of n voxels at spacing s becomes `max(1, round(n * s / t))` voxels at exactly the spacing t, and both
grids share the centre of the field of view. So the new field of view may differ from the old one by half a voxel at each end,
where the edge value is repeated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medssl.archive.geometry import voxel_spacing
from medssl.errors import UsageError

Array = NDArray[Any]
WHOLE_RANGE = 200.0
BAND = 8
"""New layers that are made by one product: many would multiply zeros, few would read each old layer several times."""
WIDE_BAND = 32
"""The same along the axis that lies closest in memory, where narrow products are slow."""

AT_ONCE = 4
"""Old layers that are brought into the processor's cache at a time."""


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
    whole = np.issubdtype(array.dtype, np.integer) and _spans(array, WHOLE_RANGE)
    where = [positions(side, a, b) for side, a, b in zip(array.shape, old, spacing, strict=True)]
    # z before y before x whatever the order in memory, since another order rounds otherwise; series and NIfTI lie in this one.
    lines = [
        bands(where[axis], array.shape[axis], max(1.0, spacing[axis] / old[axis]), side)
        for axis, side in zip((2, 1, 0), (BAND, BAND, WIDE_BAND), strict=True)
    ]
    result = np.empty([len(one) for one in where[::-1]], array.dtype if whole else np.float32)
    resampled_into(result, array.T, lines)
    return result.T, _affine(affine, array.shape, old, spacing)


def _spans(array: Array, least: float) -> bool:
    """Whether the values span at least so much; a part of the voxels mostly answers it."""
    parts = (array[::7, ::7, ::7], array)
    return any(float(part.max()) - float(part.min()) >= least for part in parts)


def _affine(affine: Array, shape: Sequence[int], old: Sequence[float], new: Sequence[float]) -> Array:
    scale = np.eye(4)
    for axis in range(3):
        scale[axis, axis] = new[axis] / old[axis]
        scale[axis, 3] = positions(shape[axis], old[axis], new[axis])[0]
    return np.asarray(affine, float) @ scale


@dataclass(frozen=True)
class Band:
    """New voxels [first, end) of a line as a product with its old voxels [low, high) alone: most weights of a line are zero."""

    first: int
    end: int
    low: int
    high: int
    weights: NDArray[np.float32]
    """(end - first, high - low)"""


def bands(centres: NDArray[np.float64], size: int, width: float, side: int) -> list[Band]:
    """The values at `centres` of a line of `size` voxels, `side` of them a band, for a triangle `width` voxels wide.

    Weights sum to one and, inside the line, keep straight lines straight; beyond its ends the value there is repeated.
    """
    centres = np.clip(centres, 0, size - 1)
    reach = math.ceil(width)
    taps = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 2)
    offset = taps - centres[:, None]
    weight = np.where((taps >= 0) & (taps < size), np.maximum(0.0, 1.0 - np.abs(offset) / width), 0.0)
    inside = (centres >= width) & (centres <= size - 1 - width)
    m1, m2 = ((weight * offset**power).sum(1) for power in (1, 2))
    bend = np.where(inside & (m2 > 1e-9), -m1 / np.maximum(m2, 1e-9), 0.0)
    weight = weight * (1.0 + bend[:, None] * offset)
    weight /= weight.sum(1, keepdims=True)
    return [_band(first, taps[first : first + side], weight[first : first + side]) for first in range(0, len(centres), side)]


def _band(first: int, taps: NDArray[np.int64], weight: NDArray[np.float64]) -> Band:
    rows, columns = np.nonzero(weight)
    low, high = int(taps[rows, columns].min()), int(taps[rows, columns].max()) + 1
    weights = np.zeros((len(taps), high - low), np.float32)
    weights[rows, taps[rows, columns] - low] = weight[rows, columns]
    return Band(first, first + len(taps), low, high, weights)


def resampled_into(out: Array, array: Array, lines: Sequence[Sequence[Band]]) -> None:
    """`out` = the 3D `array` by the `lines` of its axes, which go in bands of at most `BAND`, `BAND` and `WIDE_BAND`.

    The second axis in each layer, then the first and the third in a few layers at a time: next to nothing is held beside both arrays.
    numpy is the faster one for many small products, torch for few large ones.
    """
    along, across, close = lines
    # Where the layers' axis lies closest in memory, single layers would fetch everything many times.
    at_once = AT_ONCE if abs(array.strides[0]) > min(map(abs, array.strides)) else 8 * AT_ONCE
    deep, sides = max(band.high - band.low for band in along), (out.shape[1], array.shape[2])
    layers, raw = np.empty((deep, *sides), np.float32), np.empty((at_once, *array.shape[1:]), np.float32)
    rows, done = torch.empty(BAND, math.prod(sides)), torch.empty(BAND * sides[0], out.shape[2])
    low = ready = 0
    for band in along:
        kept = max(0, ready - band.low)
        layers[:kept] = layers[band.low - low : band.low - low + kept].copy()
        low, ready = band.low, max(ready, band.low)
        for first in range(ready, band.high, at_once):
            end = min(first + at_once, band.high)
            np.copyto(raw[: end - first], array[first:end])
            for part in across:
                old, new = raw[: end - first, part.low : part.high], layers[first - low : end - low, part.first : part.end]
                np.matmul(part.weights, old, out=new)
        ready = max(ready, band.high)
        count = band.end - band.first
        used = torch.from_numpy(layers[: band.high - low]).flatten(1)
        lying = torch.mm(torch.from_numpy(band.weights), used, out=rows[:count]).view(-1, sides[1])
        for part in close:
            torch.mm(lying[:, part.low : part.high], torch.from_numpy(part.weights).T, out=done[: len(lying), part.first : part.end])
        values = done[: len(lying)].view(count, *out.shape[1:]).numpy()
        out[band.first : band.end] = values if out.dtype == np.float32 else np.rint(values, out=values)


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
