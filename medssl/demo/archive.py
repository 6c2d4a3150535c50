"""Writing the made-up patients as a hospital would have them: DICOM of mixed order with what does not belong, labels as NIfTI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from numpy.typing import NDArray

from medssl.demo.anatomy import Scan
from medssl.errors import DataError
from medssl.testing.dicom import write_localizer, write_secondary_capture, write_series

TOLERANCE_MM = 1e-2
"""Two grids are the same where their corners agree to this many millimetres; DICOM writes decimal strings."""


def write_archive(scans: Sequence[Scan], folder: str | Path) -> None:
    """One folder a patient with the series in shuffled file order; a localizer, a secondary capture and a corrupt file among them."""
    folder = Path(folder)
    for number, scan in enumerate(scans):
        patient = folder / f"patient{number:02d}"
        write_series(patient / "T1", scan.image, scan.affine, modality="MR", patient=f"DEMO{number:02d}", series="T1", seed=number)
    write_localizer(folder / "patient00", modality="MR", patient="DEMO00", series="scout")
    write_secondary_capture(folder / "patient01", patient="DEMO01")
    whole = sorted((folder / "patient02" / "T1").iterdir())[0].read_bytes()
    (folder / "patient02" / "broken.dcm").write_bytes(whole[: len(whole) // 3])


def write_pairs(scans: Sequence[Scan], folder: str | Path) -> None:
    """Image and label NIfTI of each scan, `images/pNN.nii.gz` and `labels/pNN.nii.gz`."""
    for number, scan in enumerate(scans):
        for kind, data in (("images", scan.image), ("labels", scan.labels)):
            _save(data, scan.affine, Path(folder) / kind / f"p{number:02d}.nii.gz")


def write_labels(
    scans: Sequence[Scan], images: Sequence[Path], folder: str | Path, groups: Mapping[str, Sequence[int]]
) -> dict[str, list[str]]:
    """For each group of patients `GROUP/images` and `GROUP/labels` with equal names; returns the names by group.

    An image file is matched to its patient by the grid, since its name is a pseudonym. The label map is turned onto the image's
    axes by flips and exchanges alone.
    """
    opened = [nib.load(path) for path in images]
    names: dict[str, list[str]] = {}
    for group, patients in groups.items():
        names[group] = []
        for patient in patients:
            place = _match(scans[patient], opened)
            image = opened[place]
            turn = ornt_transform(io_orientation(scans[patient].affine), io_orientation(image.affine))
            labels = apply_orientation(scans[patient].labels, turn).astype(np.uint8)
            name = images[place].name
            for kind, data in (("images", np.asarray(image.dataobj)), ("labels", labels)):
                _save(data, image.affine, Path(folder) / group / kind / name)
            names[group].append(name)
    return names


def _save(data: NDArray[Any], affine: NDArray[np.float64], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)


def _match(scan: Scan, images: Sequence[nib.Nifti1Image]) -> int:
    wanted = _corners(scan.image.shape, scan.affine)
    for place, image in enumerate(images):
        found = _corners(image.shape, image.affine)
        if found.shape == wanted.shape and np.abs(found - wanted).max() < TOLERANCE_MM:
            return place
    raise DataError("a made-up patient's grid is not among the indexed volumes. This is a fault in medssl: please report it.")


def _corners(shape: Sequence[int], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The grid's two RAS+ extremes in mm, whichever way its axes run."""
    index = np.stack(np.meshgrid(*([0, side - 1] for side in shape), indexing="ij"), -1).reshape(-1, 3)
    corners = index @ affine[:3, :3].T + affine[:3, 3]
    order = np.lexsort(np.round(corners, 1).T)
    return np.asarray(corners[order], dtype=np.float64)
