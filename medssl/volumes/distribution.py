"""Which values a volume holds, and how often: what its statistics are taken from, in little memory beside the volume itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 2**20


@dataclass(frozen=True)
class Distribution:
    """Values in rising order."""

    values: NDArray[Any]
    counts: NDArray[np.int64] | None
    """How often each comes; None: once, and equal ones stand side by side."""

    @property
    def size(self) -> int:
        """How many values there are, equal ones counted."""
        return len(self.values) if self.counts is None else int(self.counts.sum())

    def above(self, threshold: float) -> Distribution:
        """Those that are greater."""
        # A float64 beside float32 values would make numpy copy them all.
        least = self.values.dtype.type(threshold) if self.values.dtype.kind == "f" else threshold
        first = int(np.searchsorted(self.values, least, "right"))
        return Distribution(self.values[first:], None if self.counts is None else self.counts[first:])

    def quantile(self, share: float) -> float:
        """The value below which that share lies; between two values on the straight line, as numpy has it."""
        place = share * (self.size - 1)
        below = math.floor(place)
        low, high = self._at(below), self._at(min(below + 1, self.size - 1))
        return low + (high - low) * (place - below)

    def _at(self, place: int) -> float:
        if self.counts is None:
            return float(self.values[place])
        return float(self.values[int(np.searchsorted(np.cumsum(self.counts), place, "right"))])

    def moments(self, low: float, high: float) -> tuple[float, float]:
        """Mean and standard deviation of the values clipped to [low, high]."""
        mean = self._mean(low, high, 0.0, 1)
        return mean, math.sqrt(self._mean(low, high, mean, 2))

    def _mean(self, low: float, high: float, centre: float, power: int) -> float:
        sums = []
        for start in range(0, len(self.values), _BLOCK):
            block = np.clip(self.values[start : start + _BLOCK].astype(np.float64), low, high) - centre
            weights = 1 if self.counts is None else self.counts[start : start + _BLOCK]
            sums.append(float(np.sum(block**power * weights)))
        return math.fsum(sums) / self.size


def distribution(array: NDArray[Any]) -> Distribution:
    """Of an array of one axis or more: int16 and uint8 are counted, slab by slab; others sorted, which takes a copy."""
    if array.dtype not in (np.int16, np.uint8):
        ordered = array.flatten()
        ordered.sort()
        return Distribution(ordered, None)
    ends = np.iinfo(array.dtype)
    counts = np.zeros(int(ends.max) - int(ends.min) + 1, np.int64)
    for slab in slabs(array):
        counts += np.bincount(slab.ravel().astype(np.intp) - int(ends.min), minlength=len(counts))
    held = np.flatnonzero(counts)
    return Distribution(held + int(ends.min), counts[held])


def slabs(array: NDArray[Any]) -> list[NDArray[Any]]:
    """The array in parts along all but its last two axes: views that together are the whole in C order."""
    return [array[place] for place in np.ndindex(array.shape[:-2])] if array.ndim > 2 else [array]
