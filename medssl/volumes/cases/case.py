"""A labelled case: its images, its label, and whose it is."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from medssl.archive.labels.placing import Grid
from medssl.volumes.cases.sources import Image, Labels, grid_of_image

OWN = ""
"""How the patient of a case is known of which nothing says whose it is."""


@dataclass(frozen=True)
class Case:
    """The images of one case, with its label where it has one."""

    name: str
    images: tuple[Image, ...]
    """One file or volume of an index, of which a fourth axis counts channels, or one file a channel."""
    label: Labels | None
    patient: str
    """Cases of one patient never lie on both sides of a split."""
    patient_by: str = OWN
    """How the patient is known."""
    placed_by: Path | None = None
    """The file that says where images lie which do not say it themselves."""
    resample: bool = False
    """Whether the label may be put onto the image's grid to the nearest voxel."""

    @property
    def grid(self) -> Grid:
        """That of its images; raises `DataError`."""
        return grid_of_image(self.images, self.placed_by)

    @property
    def volume(self) -> str:
        """Its name in a store, which tells neither path nor case."""
        return pseudonym(self.name)


def pseudonym(name: str) -> str:
    """What a store calls a case or patient of that name; the same on every machine."""
    return blake2b(name.encode(), digest_size=8).hexdigest()
