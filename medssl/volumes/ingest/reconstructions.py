"""Which volumes are reconstructions of one acquisition, and which of them stands for it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medssl.volumes.ingest import image_types

if TYPE_CHECKING:
    from medssl.archive import VolumeRecord

_ALL_OF_A_SERIES = frozenset({"CT"})
"""Modalities of which one acquisition gives one image, whatever is made of it. What PET and MR make of one are many: time points, gates,
echoes, components, directions; only volumes of different series can show the same."""
_RECONSTRUCTED = frozenset({"CT", "PT", "MR"})
"""Modalities of which a scanner makes several images of the same raw data."""
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
    image: tuple[str, ...] = ()
    """What tells images of one acquisition apart: component, echo, inversion, flip angle, b-value and direction, time point, trigger."""
    corrected: tuple[str, ...] = ()
    """CorrectedImage: what PET takes into account."""

    @property
    def is_attenuation_corrected(self) -> bool:
        """Does the header of a PET say so?"""
        return "ATTN" in self.corrected

    @property
    def slices(self) -> int | None:
        """How many lie above one another; None for a single image."""
        sides = self.record.shape
        return sides[2] if len(sides) > 2 and sides[2] > 1 else None


def acquisitions(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Candidates that are reconstructions of one acquisition together; every other one by itself. The order has no influence."""
    groups: dict[Hashable, list[Candidate]] = defaultdict(list)
    for one in candidates:
        groups[_shared(one)].append(one)
    return [part for group in groups.values() for whole in _connected(group) for part in _told_apart(whole)]


def _shared(one: Candidate) -> Hashable:
    """What reconstructions of one acquisition agree in; what is no reconstruction agrees with nothing."""
    if one.modality not in _RECONSTRUCTED or one.record.kind != "dicom":
        return one.record.volume
    shared = *_place(one), one.record.kvp
    if one.modality in _ALL_OF_A_SERIES:
        return shared
    if one.modality == "PT":
        return *shared, one.image
    return *shared, one.image, one.record.repetition_time, one.record.contrast, image_types.content(one.image_type)


def _place(one: Candidate) -> tuple[str, str, str]:
    """Images that have to do with each other agree in it."""
    return one.record.study, one.modality, one.frame_of_reference


def _told_apart(acquisition: list[Candidate]) -> list[list[Candidate]]:
    """Where volumes of one series are among them, no header says which is which; and two MR images of which none says that it was
    processed otherwise may be two images."""
    one = acquisition[0]
    if len(acquisition) == 1 or one.modality in _ALL_OF_A_SERIES:
        return [acquisition]
    series = {other.record.series for other in acquisition}
    ways = {image_types.processing(other.image_type) for other in acquisition} if one.modality == "MR" else series
    return [acquisition] if len(series) == len(ways) == len(acquisition) else [[other] for other in acquisition]


def computed(candidates: Sequence[Candidate]) -> set[str]:
    """Volumes that were worked out of others that are here too: maps, and several images in one."""
    found = [one for one in candidates if one.record.kind == "dicom"]
    together: dict[Hashable, list[Candidate]] = defaultdict(list)
    for one in _of_whole_series(found):
        together[_place(one)].append(one)
    derived = (one for one in found if image_types.degree(one.image_type))
    return {one.record.volume for one in derived if any(_made_of(one, other) for other in together[_place(one)])}


def _of_whole_series(candidates: Sequence[Candidate]) -> list[Candidate]:
    """With the time that all of its series took, whose number of the acquisition may count directions or time points."""
    times: dict[str, list[str]] = defaultdict(list)
    for one in candidates:
        times[one.record.series] += filter(None, (one.first, one.last))
    spans = {series: (min(every, default=""), max(every, default="")) for series, every in times.items()}
    return [replace(one, first=spans[one.record.series][0], last=spans[one.record.series][1], acquisition="") for one in candidates]


def _made_of(one: Candidate, other: Candidate) -> bool:
    """Of those of one place."""
    return image_types.degree(one.image_type) > image_types.degree(other.image_type) and _same_acquisition(one, other)


def best(acquisition: Sequence[Candidate]) -> Candidate:
    """The one that stands for an acquisition: of PET with attenuation corrected; thin, axial, of a soft kernel, and not of a part only; of
    MR rather an original, and corrected most."""
    acquisition = [one for one in acquisition if one.is_attenuation_corrected] or acquisition
    largest = max(_volume(one) for one in acquisition)
    whole = [one for one in acquisition if _volume(one) >= _MOST * largest]
    thinnest = min(_thickness(one) for one in whole)
    thin = [one for one in whole if _thickness(one) <= _NEARLY * thinnest]
    return min(thin, key=_rank)


def _rank(one: Candidate) -> tuple[object, ...]:
    """The first in this order is the best."""
    processed = one.image_type[:1] == ("DERIVED",), -image_types.corrections(one.image_type), -len(one.corrected)
    return not _axial(one), *processed, _sharpness(one), _thickness(one), -(one.slices or 1), one.record.volume


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
