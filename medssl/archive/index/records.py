"""What the index says of a volume, and a volume with its voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, eq=False)
class VolumeRecord:
    """One row of the public volume table. Names are keyed pseudonyms: stable within an index, safe as file names."""

    volume: str
    patient: str
    study: str
    series: str
    modality: str
    kind: Literal["dicom", "nifti", "picture"]
    shape: tuple[int, ...]
    """Voxels along the affine's axes, one along the third of a 2D image; a fourth side counts the values that a voxel has, where it has
    several: those of a NIfTI file, or frames times colours of an image."""
    spacing: tuple[float, ...]
    """Millimetres along the affine's axes; two of a 2D image, and none where it is unknown: then the affine counts pixels."""
    affine: NDArray[np.float64]
    """(4, 4) voxel -> RAS+ mm."""
    instances: int
    """Files that the volume is made of."""
    split_by: str | None
    """What told this volume apart from the others of its series."""
    warnings: tuple[str, ...]
    dimensions: int = 3
    """2 of an image by itself, a radiograph, photograph or picture; 3 of a volume."""
    frames: int = 1
    """Of a 2D image, how many there are of it over time."""
    colours: int = 1
    """3 where a frame has red, green and blue."""
    inverted: bool = False
    """Are low values of a 2D image meant to be bright (MONOCHROME1)?"""
    deviation: float = 0.0
    """Millimetres by which the slice that fits worst lies off its place on the affine."""

    study_number: int | None = None
    """Which of the patient's studies, by date; this and all below is None where the headers do not say."""
    series_number: int | None = None
    body_part: str | None = None
    sequence: str | None = None
    """ScanningSequence: SE, IR, GR, EP, RM, several with slashes."""
    variant: str | None = None
    """SequenceVariant, likewise."""
    echo_time: float | None = None
    """Milliseconds, as the other times."""
    repetition_time: float | None = None
    inversion_time: float | None = None
    flip_angle: float | None = None
    b_value: float | None = None
    contrast: str | None = None
    """"yes" or "no"."""
    kernel: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    field_strength: float | None = None
    """Tesla."""
    kvp: float | None = None

    @property
    def is_image(self) -> bool:
        """Is it a 2D image, with frames and colours? A flat NIfTI file is none: it is read as a volume of one slice."""
        return self.dimensions == 2 and self.kind != "nifti"

    def document(self) -> dict[str, Any]:
        """The volume as `medssl index --json` prints it."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VolumeRecord) and self.document() == other.document()

    def __hash__(self) -> int:
        return hash(self.volume)


def without_previews(records: Sequence[VolumeRecord]) -> list[VolumeRecord]:
    """The same, but no pictures (PNG, JPEG) where DICOM or NIfTI is among them: there they are previews and reports."""
    scans = [one for one in records if one.kind != "picture"]
    return scans or list(records)


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume with its voxels."""

    record: VolumeRecord
    array: NDArray[Any]
    """(X, Y, Z), or (C, X, Y, Z) where the record has a fourth side C: rescaled values, int16 where all are whole and in its range, else
    float32."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) voxel -> RAS+ mm."""
        return self.record.affine


@dataclass(frozen=True)
class IndexSummary:
    """What an archive holds: every slice of every file is in one of `volumes`, or its file is counted in `rejected`."""

    files: int
    """Files seen."""
    instances: int
    """Files that are DICOM objects or NIfTI images, usable or not."""
    volumes: list[VolumeRecord]
    rejected: dict[str, int]
    """Reason -> files, for all that are in no volume: duplicates, objects that are no images, and what cannot be used."""

    @property
    def by(self) -> dict[str, dict[str, dict[str, int]]]:
        """ "modality", "body_part" and "manufacturer" -> value, the commonest first -> how many "volumes" and "files"; the value is empty
        where the headers do not say."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        for name in ("modality", "body_part", "manufacturer"):
            counts: dict[str, dict[str, int]] = {}
            for record in self.volumes:
                count = counts.setdefault(getattr(record, name) or "", {"volumes": 0, "files": 0})
                count["volumes"] += 1
                count["files"] += record.instances
            found[name] = dict(sorted(counts.items(), key=lambda item: (-item[1]["volumes"], item[0])))
        return found

    def document(self) -> dict[str, Any]:
        """The JSON document of `medssl index`."""
        return {
            "files": self.files,
            "instances": self.instances,
            "by": self.by,
            "volumes": [record.document() for record in self.volumes],
            "rejected": dict(self.rejected),
        }
