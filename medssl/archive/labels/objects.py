"""What a label object is, whatever its format: named segments, the images that it refers to, and each segment as a mask on a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medssl.archive.labels.placing import Grid

Kind = Literal["SEG", "SURFACE", "RTSTRUCT", "NRRD"]


@dataclass(frozen=True)
class Segment:
    """One named region of a label object."""

    number: int
    """SegmentNumber, ROINumber or label value."""
    name: str
    """Free text of whoever drew it: private, kept nowhere."""


@dataclass(frozen=True)
class Refers:
    """The images that a label object says it was drawn on. Real UIDs: private."""

    series: frozenset[str] = frozenset()
    instances: frozenset[str] = frozenset()
    frames: frozenset[str] = frozenset()
    """Frames of reference."""


@dataclass(frozen=True, eq=False)
class Mask:
    """A segment on the grid of an image."""

    inside: NDArray[np.bool_]
    outside: int = 0
    """Voxels of the segment that lie beyond the image."""
    notes: tuple[str, ...] = ()
    """What a person should know, without any name."""


def no_mask(segment: Segment, grid: Grid, resample: bool) -> Mask:
    """The masks of an object of which only the header was read."""
    raise ValueError("only the header was read")


@dataclass(frozen=True, eq=False)
class LabelObject:
    """A file with labels."""

    kind: Kind
    segments: tuple[Segment, ...]
    refers: Refers
    mask: Callable[[Segment, Grid, bool], Mask]
    """(segment, image's grid, whether another grid may be resampled) -> its mask; raises `LabelProblem`."""
