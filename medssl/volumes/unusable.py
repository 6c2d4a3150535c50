"""What makes a volume unusable for training, as a reason to record; None where it is sound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.archive.geometry import usable_spacing

LONGEST = 65_535
STEPS = 1024
"""Bins of the histogram that the body's threshold is taken from."""


def why_unusable(array: NDArray[Any], affine: NDArray[Any], names: Mapping[int, str] | None = None, flat: bool = False) -> str | None:
    """Why (X, Y, Z) or (A, X, Y, Z) values with a (4, 4) affine in mm cannot be used; `names` those of the arrays, by number.

    `flat`: one slice is an image, and can be used.
    """
    if array.ndim not in (3, 4):
        return f"{array.ndim} dimensions, not 3 and channels"
    shape = list(array.shape[-3:])
    if flat and shape[2] == 1:
        if min(shape[:2]) < 2:
            return f"one row or column of pixels: shape {shape[:2]}"
    elif min(shape) < 2:
        return f"one slice: shape {shape}"
    if max(shape) > LONGEST:
        return f"a side longer than {LONGEST} voxels: shape {shape}"
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        return f"values of type {array.dtype}, not numbers"
    return _about_affine(np.asarray(affine, float)) or _about_values(array.reshape(-1, *shape), names or {})


def has_steps(low: Any, high: Any) -> bool:
    """Whether two values of one type lie far enough apart for a histogram of `STEPS` bins between them, as they are stored."""
    low, high = np.asarray(low), np.asarray(high)
    if np.issubdtype(low.dtype, np.integer) and low >= -(2**15) and high < 2**15:
        return bool(low < high)
    first, last = np.float32(low), np.float32(high)
    return float(last) - float(first) > STEPS * float(np.spacing(max(abs(first), abs(last))))


def _about_affine(affine: NDArray[np.float64]) -> str | None:
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return "an affine that is not finite"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not usable_spacing(spacing.tolist()):
        return f"spacing {[float(f'{side:.4g}') for side in spacing]} mm"
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        return "a singular affine"
    return None


def _about_values(arrays: NDArray[Any], names: Mapping[int, str]) -> str | None:
    for number, array in enumerate(arrays):
        of_channel = f" (channel {names.get(number, number)})" if len(arrays) > 1 else ""
        low, high = array.min(), array.max()
        if not np.isfinite(low) or not np.isfinite(high):
            return f"voxels that are NaN or infinite{of_channel}"
        if low == high:
            return f"constant: every voxel is {low:g}{of_channel}"
        if max(abs(float(low)), abs(float(high))) > 3e38:
            return f"values beyond the range of float32{of_channel}"
        if not has_steps(low, high):
            return f"without contrast: every voxel is between {low:.9g} and {high:.9g}{of_channel}"
    return None
