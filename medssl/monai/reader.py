"""A reader for MONAI's `LoadImage`: a series as the volume that medssl's archive makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils import MetaKeys, SpaceKeys
from numpy.typing import NDArray

from medssl.archive import Single, read_single
from medssl.errors import DataError, MedsslError, UsageError

PHOTOMETRIC = "photometric_interpretation"
"""Where the metadata of an image says whether low values are meant to be bright."""


class MedsslReader(ImageReader):  # type: ignore[misc]
    """`LoadImaged("image", reader="medssl.monai.MedsslReader")`: DICOM series and NIfTI files as medssl reads them, along RAS+ affines.

    A folder, zip or tar of DICOM becomes its volume: slices sorted by their positions, rescaled, nothing stacked over a gap. One that holds
    no volume is an error with the reason; of several the one meant is named by `modality`, or they are put into folders of their own.

    Args:
        modality: which volume of a folder is read, by its DICOM modality.
    """

    def __init__(self, modality: str | None = None) -> None:
        super().__init__()
        if not (modality is None or isinstance(modality, str)):
            raise UsageError(f'modality is {modality!r}. Give a DICOM modality, such as "CT".')
        self.modality = modality

    def verify_suffix(self, filename: Any) -> bool:
        """Whether this reader takes it: any folder, zip, tar, DICOM or NIfTI file."""
        paths = _paths(filename)
        return all(Path(path).is_dir() or Path(path).suffix.lower() in (".dcm", ".zip", ".tar", ".gz", ".nii", "") for path in paths)

    def read(self, data: Any, **kwargs: Any) -> list[Single | MedsslError]:
        """The volume of each of the paths, or why there is none: `get_data` raises that.

        MONAI's `LoadImage` takes an error raised here for "try another reader", and the next one stacks whatever lies in the folder.
        """
        paths = _paths(data)
        return [_read(path, self.modality) for path in paths]

    def get_data(self, img: Sequence[Single | MedsslError]) -> tuple[NDArray[Any], dict[str, Any]]:
        """The values, several channels first, and what a MetaTensor needs to know of them.

        Raises `DataError`, `UsageError` or another `MedsslError` where `read` found no volume, or several.
        """
        found: list[Single] = []
        for one in img:
            if isinstance(one, MedsslError):
                raise one
            found.append(one)
        if not found:
            raise UsageError("there is no path to read. Give the folder, or the file, of an image.")
        arrays, affine = [one.array for one in found], found[0].affine
        if any(one.array.shape != arrays[0].shape or not np.allclose(one.affine, affine, atol=1e-3) for one in found):
            raise DataError("these images lie on different grids and cannot be the channels of one. Load each under a key of its own.")
        several = len(arrays) > 1 or arrays[0].ndim == 4
        array = (np.concatenate if arrays[0].ndim == 4 else np.stack)(arrays) if several else arrays[0]
        return array, {
            MetaKeys.AFFINE: affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape[-3:]),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: 0 if several else float("nan"),
            PHOTOMETRIC: "MONOCHROME1" if found[0].inverted else "MONOCHROME2",
        }


def _paths(given: Any) -> list[str | Path]:
    paths = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    wrong = next((path for path in paths if not isinstance(path, str | PurePath)), None)
    if wrong is not None or not paths:
        raise UsageError(f"{'nothing' if not paths else type(wrong).__name__} is no path. Give the folder, or the file, of an image.")
    return paths


def _read(path: str | Path, modality: str | None) -> Single | MedsslError:
    try:
        return read_single(path, modality)
    except MedsslError as error:
        return error
