"""Volumes as NIfTI files with a JSON sidecar, as the index says them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np

from medssl.archive.index.reading import Index
from medssl.archive.nifti.files import Nifti, write_nifti
from medssl.errors import ArchiveError, DataError, MedsslError, UsageError
from medssl.faults import fault
from medssl.files import take_folder, write_atomically


class UnreadableVolume(UserWarning):
    """A volume of the index whose voxels cannot be read was left out."""


def write_volumes(index: Index, folder: str | Path, where: str | None = None) -> list[Path]:
    """Write each volume (those for which `where` holds) as `VOLUME.nii.gz` beside `VOLUME.json`; returns the NIfTI files.

    Grid and values are the index's: RAS+ mm affine, rescaled, int16 or float32, no further scaling.
    A volume that cannot be read is left out with an `UnreadableVolume` warning. Raises `UsageError` for a wrong condition.
    """
    out = Path(folder)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file. Give a folder for the NIfTI files.")
    try:
        return _written(index, out, where)
    except MedsslError:  # MissingInput is an OSError too, and says more
        raise
    except OSError as error:
        raise UsageError(fault(error, f"the NIfTI files cannot be written to {out}")) from error


def _written(index: Index, out: Path, where: str | None) -> list[Path]:
    records = index.volumes(where)
    if not out.exists():
        take_folder(out)
    written: list[Path] = []
    for record in records:
        try:
            volume = index.read(record.volume)
            # In NIfTI the values of a voxel are the fourth axis.
            array = np.moveaxis(volume.array, 0, 3) if volume.array.ndim == 4 else volume.array
            file = write_nifti(Nifti(array, volume.affine), out / f"{record.volume}.nii.gz")
        except DataError as error:
            warnings.warn(f"volume {record.volume} cannot be written: {error}. It is left out.", UnreadableVolume, stacklevel=3)
            continue
        except ArchiveError as error:
            warnings.warn(f"{error} It is left out.", UnreadableVolume, stacklevel=3)
            continue
        write_atomically(out / f"{record.volume}.json", json.dumps(record.document(), indent=1).encode())
        written.append(file)
    return written
