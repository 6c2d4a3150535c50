"""Reconstructed slices of nuclear medicine: frames of one object that vectors place and tell apart.

The detector says where the first slice lies. The others follow at SpacingBetweenSlices along the normal of the plane, behind the
first where it is positive and in front of it where it is negative (PS3.3 C.8.4.15).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from pydicom import Dataset

from medssl.archive.geometry import slice_normal, usable_orientation, usable_spacing
from medssl.archive.headers.elements import Header, number, numbers, tag_of, text, texts, values

_NUCLEAR = "1.2.840.10008.5.1.4.1.1.20"
_RECONSTRUCTED = ("RECON TOMO", "RECON GATED TOMO")
_DETECTOR, _POINTER, _SLICES = "DetectorInformationSequence", "FrameIncrementPointer", "SliceVector"
_VECTORS = (
    *("EnergyWindowVector", "DetectorVector", "PhaseVector", "RotationVector", "RRIntervalVector", "TimeSlotVector"),
    *("AngularViewVector", "TimeSliceVector"),
)
ELEMENTS = (_DETECTOR, _POINTER, _SLICES, *_VECTORS)


class Placed(NamedTuple):
    """Where the frames lie, by number."""

    orientation: tuple[float, ...]
    positions: tuple[tuple[float, ...], ...]
    dimensions: tuple[str, ...]
    """What else the vectors say: gate, time slot, energy window."""


def is_reconstruction(dataset: Header) -> bool:
    """Are the frames slices, as opposed to projections?"""
    types = [value.upper() for value in texts(dataset, "ImageType")]
    return text(dataset, "SOPClassUID") == _NUCLEAR and len(types) > 2 and types[2] in _RECONSTRUCTED


def placed_frames(dataset: Dataset, frames: int) -> Placed | None:
    """None where the header does not place them; raises `ValueError` for numbers that contradict each other."""
    pointed = _pointed(dataset)
    vectors = {name: texts(dataset, name) for name in (_SLICES, *_VECTORS) if tag_of(name) in pointed}
    if any(len(vector) != frames for vector in vectors.values()):
        raise ValueError(f"a vector that does not say something of each of {frames} frames")
    detectors = values(dataset, _DETECTOR)
    # Another detector would have another place, and vectors beyond these another meaning.
    if len(detectors) != 1 or _SLICES not in vectors or len(vectors) != len(pointed):
        return None
    slices = [int(value) for value in vectors.pop(_SLICES)]
    position, orientation = numbers(detectors[0], "ImagePositionPatient"), numbers(detectors[0], "ImageOrientationPatient")
    between = number(dataset, "SpacingBetweenSlices", math.nan)
    if len(position) != 3 or not usable_orientation(orientation) or not usable_spacing([abs(between)]):
        return None
    if frames > 1 and slices[0] != 1:
        # The position is that of the first frame and of the first slice, which are two.
        return None
    step = slice_normal(orientation) * between
    positions = (tuple((np.array(position) + (place - slices[0]) * step).tolist()) for place in slices)
    return Placed(orientation, tuple(positions), tuple("\\".join(one) for one in zip(*vectors.values(), strict=True)) or ("",) * frames)


def _pointed(dataset: Dataset) -> set[int]:
    found = [int(value) for value in values(dataset, _POINTER)]
    if found and max(found) <= 0xFFFF:
        # Halves, as they lie in the file.
        found = [group << 16 | element for group, element in zip(found[::2], found[1::2], strict=True)]
    return set(found)
