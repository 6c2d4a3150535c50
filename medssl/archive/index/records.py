"""What the index says of a volume, and a volume with its voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class VolumeRecord:
    """One row of the public volume table. Names are keyed pseudonyms: stable within an index, safe as file names."""

    volume: str
    patient: str
    study: str
    series: str
    modality: str
    kind: Literal["dicom", "nifti"]
    shape: tuple[int, ...]
    """Voxels along the affine's axes; a fourth side counts the values a voxel of a NIfTI file has, where it has several."""
    spacing: tuple[float, ...]
    """Millimetres along the affine's axes."""
    affine: NDArray[np.float64]
    """(4, 4) voxel -> RAS+ mm."""
    instances: int
    """Files that the volume is made of."""
    split_by: str | None
    """What told this volume apart from the others of its series."""
    warnings: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """The volume as `medssl index --json` prints it."""
        return {
            "volume": self.volume,
            "patient": self.patient,
            "study": self.study,
            "series": self.series,
            "modality": self.modality,
            "kind": self.kind,
            "shape": list(self.shape),
            "spacing": list(self.spacing),
            "affine": self.affine.tolist(),
            "instances": self.instances,
            "split_by": self.split_by,
            "warnings": list(self.warnings),
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VolumeRecord) and self.document() == other.document()

    def __hash__(self) -> int:
        return hash(self.volume)


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
    """What an archive holds: every file is in `volumes` or counted once in `rejected`."""

    files: int
    """Files seen."""
    instances: int
    """Files that are DICOM objects or NIfTI images, usable or not."""
    volumes: list[VolumeRecord]
    rejected: dict[str, int]
    """Reason -> files, for all that are in no volume: duplicates, objects that are no images, and what cannot be used."""

    def document(self) -> dict[str, Any]:
        """The JSON document of `medssl index`."""
        return {
            "files": self.files,
            "instances": self.instances,
            "volumes": [record.document() for record in self.volumes],
            "rejected": dict(self.rejected),
        }
