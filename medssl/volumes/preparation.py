"""Image preparation as data: what turns raw values into what a network sees.

The same `Preparation` travels from the store through checkpoints to fine-tuning and prediction, so that a volume looks alike
everywhere. It is one clip and one straight line for each channel of a volume, fixed by the channel's name or modality and by
statistics taken over its foreground.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from medssl.archive.narrowing import narrow
from medssl.config import BaseOptions
from medssl.volumes.distribution import Distribution, distribution
from medssl.volumes.unusable import STEPS, has_steps

BINS = STEPS
PIECE = 1 << 17
"""Voxels that are prepared at a time."""


@dataclass(frozen=True)
class Channel:
    """One channel of what a network sees."""

    name: str
    """Such as "T1" or "CT[-160,240]"."""
    modality: str
    """DICOM modality; with the name it picks the rule that prepares the values."""
    array: int = 0
    """Which array of the volume it shows: several intensity windows may show one."""


@dataclass(frozen=True)
class Statistics:
    """Numbers of one array of a volume, over its foreground: the voxels above `threshold`."""

    mean: float
    """Of the foreground's values clipped to [low, high], so that a few wild voxels do not set the scale."""
    std: float
    low: float
    """0.5th percentile of the foreground."""
    high: float
    """99.5th percentile of the foreground."""
    threshold: float
    """Values above it are body."""
    minimum: float
    """Of all voxels: what a crop that reaches beyond the volume is filled with."""

    def foreground(self, array: NDArray[Any]) -> NDArray[np.bool_]:
        """Mask of the body, in the shape of `array`."""
        return array > self.threshold


def statistics(array: NDArray[Any]) -> Statistics:
    """Statistics of a volume with finite values that are not all equal; independent of the order of its voxels.

    The body's threshold is Otsu's (IEEE Trans. SMC 9, 1979), taken only where the lower class is as narrow as air is. An image
    that the body fills, such as a crop of a head, has no such class and is foreground everywhere.
    """
    everything = distribution(array)
    minimum = everything.quantile(0)
    threshold = _air_threshold(everything, minimum, array.dtype)
    body = everything.above(threshold)
    low, high = body.quantile(0.005), body.quantile(0.995)
    if not low < high:
        low, high = body.quantile(0), body.quantile(1)
    mean, std = body.moments(low, high)
    return Statistics(mean, std if std > 0 else 1.0, low, high, threshold, minimum)


def _air_threshold(values: Distribution, minimum: float, dtype: np.dtype[Any]) -> float:
    everything = float(minimum - max(1.0, abs(minimum) * 1e-3))
    top = values.quantile(0.995)
    if not minimum < top or (dtype == np.float32 and not has_steps(np.float32(minimum), np.float32(top))):
        return everything
    counts, edges = np.histogram(values.values, bins=BINS, range=(minimum, top), weights=values.counts)
    counts = counts.astype(np.float64)
    centres = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts), counts.sum()
    weighted = np.cumsum(counts * centres)
    above = total - below
    valid = (below > 0) & (above > 0)
    mean_below = np.divide(weighted, below, out=np.zeros(BINS), where=valid)
    mean_above = np.divide(weighted[-1] - weighted, above, out=np.zeros(BINS), where=valid)
    between = np.where(valid, below * above * (mean_above - mean_below) ** 2, -1.0)
    cut = int(np.argmax(between))
    if between[cut] < 0:
        return everything
    spread = np.sqrt(np.sum(counts[: cut + 1] * (centres[: cut + 1] - mean_below[cut]) ** 2) / below[cut])
    narrow = spread < 0.25 * (mean_above[cut] - mean_below[cut])
    return float(edges[cut + 1]) if narrow else everything


class IntensityRule(BaseOptions):
    """How the values of one modality become what the network sees."""

    kind: Literal["window", "percentile", "z-score", "raw"] = "z-score"
    """window: clip to [low, high], then that range to [-1, 1]. percentile: the same with the foreground's percentiles 0.5 and 99.5.
    z-score: clip to these percentiles, subtract the foreground's mean, divide by its standard deviation. raw: leave the values as they
    are."""
    low: float = -1000.0
    """Lower end of the window, in the modality's own unit (HU in CT)."""
    high: float = 1000.0
    """Upper end of the window."""

    @model_validator(mode="after")
    def _ordered(self) -> IntensityRule:
        if not self.low < self.high:
            raise ValueError(f"the window's low {self.low} must be less than its high {self.high}")
        return self


@dataclass(frozen=True)
class Line:
    """Clip to [low, high], then `value * scale + shift`; low and high may be infinite."""

    low: float
    high: float
    scale: float
    shift: float

    def into(self, raw: NDArray[Any], out: NDArray[np.float32]) -> None:
        """`out` = the prepared `raw`, same shape; the GIL is released.

        In pieces that stay in the processor's cache: `out` is too large for it, and so is met once and not by every operation.
        """
        low, high = sorted((self.low * self.scale + self.shift, self.high * self.scale + self.shift))
        layers = max(1, PIECE // max(1, math.prod(raw.shape[1:])))
        piece = np.empty((min(layers, len(raw)), *raw.shape[1:]), np.float32)
        for first in range(0, len(raw), layers):
            part, done = raw[first : first + layers], out[first : first + layers]
            values = piece[: len(part)]
            np.copyto(values, part)
            np.multiply(values, np.float32(self.scale), out=values)
            if np.isfinite(low):
                np.add(values, np.float32(self.shift), out=values)
                np.clip(values, np.float32(low), np.float32(high), out=done)
            else:
                np.add(values, np.float32(self.shift), out=done)

    def value(self, raw: float) -> float:
        """One prepared value."""
        return float(np.clip(raw, self.low, self.high)) * self.scale + self.shift

    @property
    def back(self) -> tuple[float, float]:
        """(scale, shift) of the line from prepared to raw values; what was clipped stays clipped."""
        return 1.0 / self.scale, -self.shift / self.scale


class Preparation(BaseOptions):
    """A rule for each channel: by its name, else by its modality; what has neither follows `other`."""

    version: Literal[2] = 2
    """Version of what the rules mean."""
    channels: dict[str, IntensityRule] = Field(default_factory=dict)
    """Rule by name of a channel, such as `lung: {kind: window, low: -1000, high: 200}`; it goes before the modality's."""
    modalities: dict[str, IntensityRule] = Field(default_factory=lambda: {"CT": IntensityRule(kind="window")})
    """Rule by DICOM modality, such as `CT: {kind: window, low: -160, high: 240}`."""
    other: IntensityRule = IntensityRule()
    """The rule of every modality that is not named: MR has no unit, so z-score."""
    grey: bool = False
    """2D images in colour become grey: 0.299 red + 0.587 green + 0.114 blue."""
    invert_monochrome1: bool = False
    """2D images of which low values are meant to be bright (MONOCHROME1) are turned round: lowest + highest - value."""

    @field_validator("modalities")
    @classmethod
    def _in_capitals(cls, modalities: dict[str, IntensityRule]) -> dict[str, IntensityRule]:
        return {name.upper(): rule for name, rule in modalities.items()}

    @model_validator(mode="before")
    @classmethod
    def _of_this_version(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("version") == 1:
            raise ValueError(
                "it is of version 1, which prepared a volume as a whole and does not say how each of its channels is prepared. "
                "Train again with this version of medssl"
            )
        return values

    def rule(self, modality: str, channel: str = "") -> IntensityRule:
        """The rule of a channel of that modality and name."""
        return self.channels.get(channel) or self.modalities.get(modality.upper(), self.other)

    def line(self, statistics: Statistics, modality: str, channel: str = "") -> Line:
        """The clip and line that prepare a channel of that modality and name with these statistics."""
        rule = self.rule(modality, channel)
        if rule.kind == "raw":
            return Line(-np.inf, np.inf, 1.0, 0.0)
        if rule.kind != "z-score":
            low, high = (rule.low, rule.high) if rule.kind == "window" else (statistics.low, statistics.high)
            scale = 2.0 / (high - low)
            return Line(low, high, scale, -1.0 - low * scale)
        return Line(statistics.low, statistics.high, 1.0 / statistics.std, -statistics.mean / statistics.std)

    def apply(self, array: NDArray[Any], statistics: Statistics, modality: str, channel: str = "") -> NDArray[np.float32]:
        """The prepared `array` of one channel, float32, same shape."""
        out = np.empty(array.shape, np.float32)
        self.line(statistics, modality, channel).into(array, out)
        return out


COLOURS = ("R", "G", "B")
"""Channels of a 2D image in colour."""
_LUMINANCE = (0.299, 0.587, 0.114)
_RADIOGRAPHS = ("CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA")


def usual_preparation(dimensions: int) -> Preparation:
    """What is prepared how unless something else is asked for: of volumes (3) what `Preparation()` says; of 2D images also radiographs by
    their percentiles and the 8 bits of a colour as a whole, so that colours keep their balance."""
    if dimensions == 3:
        return Preparation()
    percentile, whole = IntensityRule(kind="percentile"), IntensityRule(kind="window", low=0, high=255)
    modalities = Preparation().modalities | dict.fromkeys(_RADIOGRAPHS, percentile)
    return Preparation(channels=dict.fromkeys(COLOURS, whole), modalities=modalities)


def as_grey(colours: NDArray[Any]) -> NDArray[Any]:
    """(3, ...) red, green and blue -> (...) whole numbers."""
    weighted = sum(weight * colour.astype(np.float32) for weight, colour in zip(_LUMINANCE, colours, strict=True))
    grey: NDArray[Any] = np.rint(weighted).astype(np.int16)
    return grey


def turned_round(values: NDArray[Any]) -> NDArray[Any]:
    """Lowest + highest - value: bright becomes dark."""
    ends: NDArray[Any] = narrow(np.asarray(values.min(), np.float64) + values.max() - values)
    return ends


Windows = Mapping[str, tuple[tuple[float, float], ...]]
"""Intensity windows by modality."""


def window_name(modality: str, low: float, high: float) -> str:
    """Such as CT[-160,240]."""
    return f"{modality.upper()}[{low:g},{high:g}]"


def windowed(channels: Iterable[Channel], windows: Windows) -> tuple[Channel, ...]:
    """Each channel of a modality that has windows as one channel a window, of the same array."""
    of_modality = {key.upper(): value for key, value in windows.items()}
    found: list[Channel] = []
    for one in channels:
        kind = one.modality.upper()
        found += [Channel(window_name(kind, *window), one.modality, one.array) for window in of_modality.get(kind, ())] or [one]
    return tuple(found)


def with_windows(preparation: Preparation, windows: Windows) -> Preparation:
    """The preparation with a rule for each window."""
    rules = {
        window_name(modality, low, high): IntensityRule(kind="window", low=low, high=high)
        for modality, several in windows.items()
        for low, high in several
    }
    return preparation.model_copy(update={"channels": {**rules, **preparation.channels}}) if rules else preparation


def check_windows(windows: Windows) -> None:
    """Raises `ValueError` for what is no window."""
    for modality, several in windows.items():
        for low, high in several:
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"the window [{low}, {high}] of {modality} is none: its low must be less than its high")
