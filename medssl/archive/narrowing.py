"""The type that voxels are kept in: int16 where nothing is lost by it, else float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.errors import DataError

_LIMITS = np.iinfo(np.int16)
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
"""Of float32; the smallest with all its digits."""


def fits_float32(smallest: float, largest: float) -> bool:
    """Can float32 hold both, neither as infinite nor as nothing? NaN and infinite ones it cannot."""
    return bool(abs(smallest) >= _SMALLEST and abs(largest) <= _LARGEST)


def narrow(array: NDArray[Any]) -> NDArray[Any]:
    """The same values as int16 where all are whole and in its range, else as float32; NaN and infinite values stay.

    An array that has the type already is returned itself, not copied. Beside the result at most one slab of the array is held.
    Raises `DataError` where finite values would become infinite.
    """
    if array.dtype == np.int16 or array.size == 0:
        return array.astype(np.int16, copy=False)
    # A comparison with NaN is false, so such an array is never cast to integers.
    low, high = array.min(), array.max()
    within = bool(low >= _LIMITS.min and high <= _LIMITS.max)
    if any(np.isfinite(value) and abs(float(value)) > _LARGEST for value in (low, high)):
        raise DataError(f"values from {low:g} to {high:g} are beyond the range of float32")
    if within and (array.dtype.kind in "iub" or _whole(array)):
        return array.astype(np.int16)
    return array.astype(np.float32, copy=False)


def _whole(array: NDArray[Any]) -> bool:
    if array.ndim == 0:
        return bool(array == np.rint(array))
    # Slab by slab along the axis that lies slowest in memory; the first slab with a fraction ends it.
    slabs = np.moveaxis(array, int(np.argmax(np.abs(array.strides))), 0)
    return all(bool(np.array_equal(slab, np.rint(slab))) for slab in slabs)
