"""One volume, for whoever has a path in hand and no index: the volume that `medssl index` would find there, or why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medssl.archive.index.build import build_index
from medssl.archive.index.reading import Index
from medssl.archive.index.records import VolumeRecord, without_previews
from medssl.archive.nifti.files import read_nifti_channels
from medssl.archive.nifti.modality import UNKNOWN, modality_of
from medssl.archive.nifti.names import is_nifti_name
from medssl.archive.outcomes import counted
from medssl.archive.sources.folder import FolderSource
from medssl.errors import ArchiveError, DataError, UsageError


class Single(NamedTuple):
    """A volume that was read."""

    array: NDArray[Any]
    """(X, Y, Z), or (C, X, Y, Z) where a voxel has several values."""
    affine: NDArray[np.float64]
    """(4, 4) voxel -> RAS+ mm."""
    modality: str
    """By its DICOM headers; of a NIfTI file by what lies beside it or its name, else "unknown"."""
    inverted: bool = False
    """Whether low values are meant to be bright (MONOCHROME1)."""


def read_single(path: str | Path, modality: str | None = None) -> Single:
    """The volume of a NIfTI file or of a folder, zip or tar of DICOM; of several the one of that DICOM `modality`.

    Raises `DataError` with the reason where there is none, `UsageError` where there are several.
    """
    place = Path(path)
    if is_nifti_name(place.name):
        found = read_nifti_channels(place)
        return Single(found.array if len(found.array) > 1 else found.array[0], found.affine, single_modality(place))
    with _indexed(place, modality) as (index, record):
        volume = index.read(record.volume)
        return Single(volume.array, np.asarray(volume.affine, np.float64), record.modality, record.inverted)


def single_modality(path: str | Path) -> str:
    """The modality of what `read_single` would read, without its voxels; "unknown" where it reads nothing."""
    place = Path(path)
    if is_nifti_name(place.name):
        return modality_of(FolderSource(str(place.parent)), place.name, {})
    try:
        with _indexed(place, None) as (_, record):
            return record.modality
    except (ArchiveError, DataError, UsageError):
        return UNKNOWN


@contextmanager
def _indexed(place: Path, modality: str | None) -> Iterator[tuple[Index, VolumeRecord]]:
    with TemporaryDirectory(prefix="medssl-") as folder:
        build_index([place], folder, workers=1)  # a worker process of a loader may have no workers of its own
        index = Index(folder)
        records = [one for one in without_previews(index.volumes()) if modality is None or one.modality == modality.upper()]
        if not records:
            raise DataError(no_volume(index, place, modality))
        if len(records) > 1:
            listed = ", ".join(f"{one.modality} {'x'.join(map(str, one.shape))} ({one.instances} files)" for one in records)
            raise UsageError(f"{place} holds {len(records)} volumes: {listed}. Give each series a folder, or name one: modality=...")
        yield index, records[0]


def no_volume(index: Index, place: Path, modality: str | None = None) -> str:
    """The message where `index`, made of `place`, holds no volume, or none of that modality."""
    others = ", ".join(sorted({one.modality for one in index.volumes()}))
    of_it = f" of {modality}, only {others}" if others else ""
    return f"{place} holds no volume{of_it}: {counted(index.rejected()) or 'no file'}. Give a folder with a whole series."
