"""The values that a network saw, and whether those of another image are of that kind: in the same unit, normalised or not.

A checkpoint holds them of every channel, as they were before the preparation. A window reads values in their unit, and `raw` shows them
as they are: an image in another unit is an error there. z-score and percentiles take out scale and offset, so that an image which seems
normalised already may still be right: a warning, said once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch.utils.data import get_worker_info

from medssl.volumes.preparation import IntensityRule, Statistics

Range = tuple[float, float]

RESCALED = 0.05
"""An image whose values span less than this share of the narrowest that was seen, or the other way round, is in another unit."""
BELOW_ZERO = 0.1
"""Share of its span that an image reaches below zero which has negative values, and not only those that resampling makes at edges."""
NEGATIVE = 0.05
"""The same of all volumes that were seen."""
BEYOND = 0.5
"""Share of the widest span by which values lie outside of all that was seen."""
SPREAD = 3.0
"""How many times wider or narrower than ever seen values scatter that are doubtful."""


@dataclass(frozen=True)
class Values:
    """One channel over the volumes that were seen, before they were prepared: the least and the greatest of each of their numbers."""

    minimum: Range
    low: Range
    """The 0.5th percentile of the foreground."""
    high: Range
    """The 99.5th percentile of the foreground."""
    span: Range
    """high - low."""
    mean: Range
    std: Range

    @classmethod
    def of(cls, every: Iterable[Statistics]) -> Values:
        """Those of volumes, one at least."""
        rows = [(one.minimum, one.low, one.high, one.high - one.low, one.mean, one.std) for one in every]
        return cls(*((float(min(column)), float(max(column))) for column in zip(*rows, strict=True)))

    def __str__(self) -> str:
        return f"between {self.low[0]:.4g} and {self.high[1]:.4g} (least {self.minimum[0]:.4g})"


def unlike(numbers: Statistics, seen: Sequence[Values], rule: IntensityRule) -> bool:
    """Whether values, prepared by `rule`, are plainly of another kind than each of those that were seen."""
    plainly = _UNLIKE.get(rule.kind, _is_normalised)
    return bool(seen) and all(plainly(numbers, one) for one in seen)


def doubtful(numbers: Statistics, seen: Sequence[Values]) -> bool:
    """Whether values that are shown as they are lie where none were seen, or scatter otherwise, so that they may be of another kind."""
    return bool(seen) and all(_is_beyond(numbers, one) for one in seen)


@dataclass
class Doubts:
    """Says the first doubt, and no further one; of the workers of a loader the first alone."""

    said: bool = False

    def say(self, doubt: str | None) -> None:
        """Warn of `doubt`, if there is one and it is the first."""
        worker = get_worker_info()
        if doubt is None or self.said or (worker is not None and worker.id > 0):
            return
        self.said = True
        warnings.warn(doubt, stacklevel=3)


def _is_narrow(numbers: Statistics, seen: Values) -> bool:
    return numbers.high - numbers.low < RESCALED * seen.span[0]


def _is_out_of_the_window(numbers: Statistics, seen: Values) -> bool:
    return _is_narrow(numbers, seen) or (numbers.minimum >= 0 and seen.minimum[1] < 0)


def _is_another_unit(numbers: Statistics, seen: Values) -> bool:
    """Of values that are shown as they are."""
    span = numbers.high - numbers.low
    lost = numbers.minimum >= 0 and seen.minimum[1] < -NEGATIVE * seen.span[0]
    return lost or _is_narrow(numbers, seen) or span * RESCALED > seen.span[1] or _is_below(numbers, seen)


def _is_normalised(numbers: Statistics, seen: Values) -> bool:
    """Of values whose scale and offset do not count: small ones with negatives among them, or within 0 and 1, or below zero."""
    small = _is_narrow(numbers, seen) and (numbers.minimum < 0 or numbers.high <= 1)
    return small or _is_below(numbers, seen)


def _is_below(numbers: Statistics, seen: Values) -> bool:
    none_seen = seen.minimum[0] >= -NEGATIVE * seen.span[0]
    return none_seen and numbers.minimum < -BELOW_ZERO * (numbers.high - numbers.low)


def _is_beyond(numbers: Statistics, seen: Values) -> bool:
    margin = BEYOND * seen.span[1]
    outside = numbers.high > seen.high[1] + margin or numbers.low < seen.low[0] - margin
    return outside or numbers.std > SPREAD * seen.std[1] or numbers.std * SPREAD < seen.std[0]


_UNLIKE: dict[str, Callable[[Statistics, Values], bool]] = {"window": _is_out_of_the_window, "raw": _is_another_unit}
