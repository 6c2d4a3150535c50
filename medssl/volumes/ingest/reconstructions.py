"""Which volumes are reconstructions of one acquisition, and which of them stands for it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from medssl.archive import VolumeRecord

RECONSTRUCTED = frozenset({"CT"})
"""Modalities of which a scanner makes several images of the same raw data. What MR makes of one acquisition are different images: echoes,
components, maps."""
_REFORMATS = frozenset(("MPR", "REFORMATTED", "REFORMAT", "CURVED", "CPR", "MIP", "MINIP", "MNIP", "AVERAGE", "PROJECTION", "VRT", "SSD"))
_SHARP = frozenset(("BONE", "BONEPLUS", "LUNG", "EDGE", "SHARP", "ULTRA", "CHEST", "DETAIL", "D", "E", "L", "YA", "YB", "YC"))
_NEARLY = 1.25
"""Up to so many times the thinnest is as thin: then the kernel counts."""
_AXIAL = 0.8
"""Least part of the slice normal along the body of a volume that is axial; a gantry tilts by up to 30 degrees."""
_MOST = 0.5
"""Share of the largest volume of an acquisition that stands for it at least: a part of it that was magnified does not."""


@dataclass(frozen=True)
class Candidate:
    """A volume that may go into a store, with what the private part of the index knows of its origin; that is only ever compared."""

    record: VolumeRecord
    modality: str
    image_type: tuple[str, ...] = ()
    acquisition: str = ""
    """AcquisitionNumber."""
    first: str = ""
    """Acquisition date and time of the earliest slice."""
    last: str = ""
    thickness: float = 0.0
    """SliceThickness in mm; 0 where it is not known."""
    frame_of_reference: str = ""
    description: str = ""
    """SeriesDescription, for rules."""

    @property
    def is_reformat(self) -> bool:
        """A reformat, projection or rendering of another volume, by its ImageType."""
        return any(word in _REFORMATS for value in self.image_type for word in re.split(r"[^A-Z]+", value))

    @property
    def is_derived(self) -> bool:
        """Made after the examination of other images, by its ImageType."""
        return self.image_type[:2] == ("DERIVED", "SECONDARY")

    @property
    def slices(self) -> int | None:
        """How many lie above one another; None for a single image."""
        sides = self.record.shape
        return sides[2] if len(sides) > 2 and sides[2] > 1 else None


def acquisitions(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Candidates that are reconstructions of one acquisition together; every other one by itself. The order has no influence."""
    groups: dict[Hashable, list[Candidate]] = defaultdict(list)
    alone: list[list[Candidate]] = []
    for one in candidates:
        if one.modality in RECONSTRUCTED and one.record.kind == "dicom":
            groups[one.record.study, one.modality, one.frame_of_reference, one.record.kvp].append(one)
        else:
            alone.append([one])
    return [*alone, *(part for group in groups.values() for part in _connected(group))]


def best(acquisition: Sequence[Candidate]) -> Candidate:
    """The one that stands for an acquisition: thin, axial, of a soft kernel, and not of a part only."""
    largest = max(_volume(one) for one in acquisition)
    whole = [one for one in acquisition if _volume(one) >= _MOST * largest]
    thinnest = min(_thickness(one) for one in whole)
    thin = [one for one in whole if _thickness(one) <= _NEARLY * thinnest]
    return min(thin, key=lambda one: (not _axial(one), _sharpness(one), _thickness(one), -(one.slices or 1), one.record.volume))


def _connected(group: Sequence[Candidate]) -> list[list[Candidate]]:
    parts: list[list[Candidate]] = []
    for one in group:
        near = [part for part in parts if any(_same_acquisition(one, other) for other in part)]
        parts = [part for part in parts if part not in near]
        parts.append([one, *(other for part in near for other in part)])
    return parts


def _same_acquisition(one: Candidate, other: Candidate) -> bool:
    """Of one study and frame of reference: taken at the same time and place, as far as the headers say; where they say neither the
    time nor the number of the acquisition, nothing shows it."""
    if one.acquisition and other.acquisition and one.acquisition != other.acquisition:
        return False
    if one.first and other.first:
        told = one.first <= other.last and other.first <= one.last
    else:
        told = bool(one.acquisition and other.acquisition) and one.record.contrast == other.record.contrast
    return told and _overlap(one, other)


def _overlap(one: Candidate, other: Candidate) -> bool:
    """Does the smaller one lie in the other, for the greater part?"""
    boxes = [_box(one), _box(other)]
    common = np.minimum(boxes[0][1], boxes[1][1]) - np.maximum(boxes[0][0], boxes[1][0])
    smaller = min(float(np.prod(high - low)) for low, high in boxes)
    return bool((common > 0).all()) and float(np.prod(common)) > 0.5 * smaller


def _box(one: Candidate) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest RAS+ mm of a volume, with the outer halves of its voxels."""
    sides = np.array(one.record.shape[:3], float)
    corners = np.array(np.meshgrid(*((-0.5, side - 0.5) for side in sides), indexing="ij")).reshape(3, -1)
    places = one.record.affine[:3, :3] @ corners + one.record.affine[:3, 3:]
    return places.min(1), places.max(1)


def _volume(one: Candidate) -> float:
    return float(abs(np.linalg.det(one.record.affine[:3, :3])) * np.prod(one.record.shape[:3]))


def _thickness(one: Candidate) -> float:
    """Thick slices may overlap, thin ones lie apart: both are coarse."""
    return max(one.thickness, one.record.spacing[2])


def _axial(one: Candidate) -> bool:
    normal = np.cross(one.record.affine[:3, 0], one.record.affine[:3, 1])
    return bool(abs(normal[2]) >= _AXIAL * np.linalg.norm(normal))


def _sharpness(one: Candidate) -> int:
    """0 for a soft kernel, 1 where it is not known, 2 for one that shows bone or lung."""
    kernel = one.record.kernel
    if kernel is None:
        return 1
    numbered = re.match(r"([A-Z]{1,2})(\d{2})", kernel)
    if numbered is not None:
        # Siemens counts to 90, Canon's FC to 86 in groups by the part of the body.
        return 2 if int(numbered[2]) >= (30 if numbered[1] == "FC" else 50) else 0
    return 2 if kernel.upper() in _SHARP else 0
