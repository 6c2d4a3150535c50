"""The type that voxels are kept in: int16 where nothing is lost by it, else float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LIMITS = np.iinfo(np.int16)


def narrow(array: NDArray[Any]) -> NDArray[Any]:
    """The same values as int16 where all are whole and in its range, else as float32; NaN and infinite values stay.

    An array that has the type already is returned itself, not copied. Beside the result at most one slab of the array is held.
    """
    if array.dtype == np.int16 or array.size == 0:
        return array.astype(np.int16, copy=False)
    # A comparison with NaN is false, so such an array is never cast to integers.
    within = bool(array.min() >= _LIMITS.min and array.max() <= _LIMITS.max)
    if within and (array.dtype.kind in "iub" or _whole(array)):
        return array.astype(np.int16)
    return array.astype(np.float32, copy=False)


def _whole(array: NDArray[Any]) -> bool:
    if array.ndim == 0:
        return bool(array == np.rint(array))
    # Slab by slab along the axis that lies slowest in memory; the first slab with a fraction ends it.
    slabs = np.moveaxis(array, int(np.argmax(np.abs(array.strides))), 0)
    return all(bool(np.array_equal(slab, np.rint(slab))) for slab in slabs)
