"""What makes a volume unusable for training, as a reason to record; None where it is sound."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LONGEST = 65_535


def fault(array: NDArray[Any], affine: NDArray[Any]) -> str | None:
    """Why a single-channel 3D array with a (4, 4) affine in mm cannot be used."""
    if array.ndim != 3:
        return f"{array.ndim} dimensions, not 3"
    if min(array.shape) < 2:
        return f"one slice: shape {list(array.shape)}"
    if max(array.shape) > LONGEST:
        return f"a side longer than {LONGEST} voxels: shape {list(array.shape)}"
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        return f"values of type {array.dtype}, not numbers"
    return _affine_fault(np.asarray(affine, float)) or _value_fault(array)


def _affine_fault(affine: NDArray[np.float64]) -> str | None:
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return "an affine that is not finite"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not ((spacing >= 1e-3) & (spacing <= 1e3)).all():
        return f"spacing {[float(f'{side:.4g}') for side in spacing]} mm"
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        return "a singular affine"
    return None


def _value_fault(array: NDArray[Any]) -> str | None:
    low, high = array.min(), array.max()
    if not np.isfinite(low) or not np.isfinite(high):
        return "voxels that are NaN or infinite"
    if low == high:
        return f"constant: every voxel is {low:g}"
    if max(abs(float(low)), abs(float(high))) > 3e38:
        return "values beyond the range of float32"
    return None


def compact(array: NDArray[Any]) -> NDArray[Any]:
    """int16 where all values are whole numbers in its range, else float32."""
    if array.dtype == np.int16:
        return array
    info = np.iinfo(np.int16)
    if info.min <= array.min() and array.max() <= info.max:
        small = array.astype(np.int16)
        if np.issubdtype(array.dtype, np.integer) or np.array_equal(small, array):
            return small
    return array.astype(np.float32)
