"""What each reader makes of a folder, and whether that is right."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np

from medssl.archive import Index, build_index
from medssl.archive.geometry import to_ras
from staged.cases import Volume

Verdict = Literal["right", "wrong", "refused"]
Reader = Callable[[Path, Path], Sequence[Volume]]
"""The volumes of a folder; the second path is for what is written on the way."""
_NEAR = 0.06
"""Millimetres by which a voxel may lie off: half the last digit of the coarsest positions that a case writes."""


def medssl(folder: Path, scratch: Path) -> list[Volume]:
    """Through an index."""
    build_index([folder], scratch / "index", workers=1)
    index = Index(scratch / "index")
    volumes = [index.read(record.volume) for record in index.volumes()]
    return [(volume.array, volume.affine) for volume in volumes]


def monai_pydicom(folder: Path, scratch: Path) -> list[Volume]:
    """MONAI's LoadImage with its PydicomReader."""
    from monai.transforms import LoadImage

    return [_of_monai(LoadImage(reader="PydicomReader", image_only=True)(str(folder)))]


def monai_itk(folder: Path, scratch: Path) -> list[Volume]:
    """MONAI's LoadImage with its ITKReader."""
    from monai.transforms import LoadImage

    return [_of_monai(LoadImage(reader="ITKReader", image_only=True)(str(folder)))]


def _of_monai(image: object) -> Volume:
    array = np.asarray(image)
    return array.reshape(array.shape[:3]) if array.ndim > 3 and array.shape[3:] == (1,) else array, np.asarray(image.affine)  # type: ignore[attr-defined]


def dcm2niix(folder: Path, scratch: Path, *options: str) -> list[Volume]:
    """The command, with further options; an image of four dimensions is as many volumes."""
    scratch.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dcm2niix", "-b", "n", "-z", "n", "-d", "9", *options, "-o", str(scratch), str(folder)]
    subprocess.run(command, capture_output=True, check=False, timeout=120)
    found: list[Volume] = []
    for file in sorted(scratch.glob("*.nii")):
        image = nibabel.load(file)
        array = np.asanyarray(image.dataobj)
        if array.dtype.fields is None:
            array = array.reshape(*array.shape[:3], -1) if array.ndim >= 3 else array.reshape(*array.shape, 1, 1)
            found += [(array[..., t], image.affine) for t in range(array.shape[3])]
    return found


READERS: dict[str, Reader] = {
    "medssl": medssl,
    "MONAI PydicomReader": monai_pydicom,
    "MONAI ITKReader": monai_itk,
    "dcm2niix": dcm2niix,
}


def verdict(reader: Reader, folder: Path, scratch: Path, wanted: Sequence[Volume] | None) -> Verdict:
    """Right: exactly the volumes that are there, every voxel's position and value; where none is right, a refusal is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = list(reader(folder, scratch))
    except Exception:  # noqa: BLE001 - readers raise what they like
        found = []
    if not found:
        return "refused" if wanted else "right"
    left = [canonical(one) for one in wanted or ()]
    for one in map(canonical, found):
        place = next((index for index, other in enumerate(left) if same(one, other, _NEAR)), None)
        if place is None:
            return "wrong"
        del left[place]
    return "wrong" if left else "right"


def canonical(volume: Volume) -> Volume:
    """Along the closest axes of RAS+."""
    array, affine = volume
    if array.ndim != 3:
        return array, np.asarray(affine)
    flips = to_ras(np.asarray(affine, float))
    return flips.apply(array), flips.affine(affine, array.shape)


def same(one: Volume, other: Volume, near: float) -> bool:
    """Is every voxel of two canonical volumes alike, and at most so many millimetres off?"""
    if one[0].shape != other[0].shape:
        return False
    corners = np.array([[x, y, z, 1.0] for x in (0, one[0].shape[0]) for y in (0, one[0].shape[1]) for z in (0, one[0].shape[2])]).T
    apart = np.abs((one[1] - other[1]) @ corners).max()
    return bool(apart <= near and np.allclose(one[0], other[0], rtol=1e-5, atol=1e-4))
