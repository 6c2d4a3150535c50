"""Files of cases, NIfTI or pictures: their grids without their values, their values as channels, and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.archive import read_nifti, read_nifti_channels
from medssl.archive.geometry import image_affine
from medssl.archive.nifti.names import is_picture_name
from medssl.archive.pictures.files import picture_shape, read_picture, read_picture_labels
from medssl.errors import DataError
from medssl.faults import faults_as
from medssl.files import open_regular
from medssl.volumes.ingest import Unusable
from medssl.volumes.preparation import COLOURS, as_grey

Array = NDArray[Any]
Affine = NDArray[np.float64]


def header(path: Path) -> tuple[tuple[int, ...], Affine]:
    """Shape, three sides and a fourth where there are several values a voxel, and affine, without the voxels; raises `DataError`."""
    if is_picture_name(path.name):
        return picture_shape(path), image_affine(())
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        with faults_as(DataError, f"{path} cannot be read"):
            open_regular(path).close()
        image = nibabel.load(path)
        shape, affine = tuple(int(side) for side in image.shape), np.asarray(image.affine, np.float64)
    except (ImageFileError, OSError, ValueError, EOFError, AttributeError) as error:
        raise DataError(f"{path} cannot be read as NIfTI: {error}. Convert it again, or leave it out.") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape + (1,) * (3 - len(shape)), affine


def is_scaled(paths: Sequence[Path]) -> bool:
    """Do these files say how large a voxel is? A picture does not."""
    return not any(is_picture_name(path.name) for path in paths)


def is_coloured(path: Path) -> bool:
    """A picture with red, green and blue."""
    return is_picture_name(path.name) and len(picture_shape(path)) == 1 + len(COLOURS)


def read_images(paths: Sequence[Path], grey: bool = False) -> tuple[Array, Affine]:
    """(A, X, Y, Z) values and affine of the images of a case; `grey`: of a picture its colours are one channel."""
    images = [_channels(path, grey) for path in paths]
    shapes = {array.shape[1:] for array, _ in images}
    if len(shapes) > 1:
        raise Unusable(f"its images have different shapes: {', '.join(str(list(shape)) for shape in sorted(shapes))}")
    array, affine = images[0]
    return array if len(images) == 1 else np.concatenate([array for array, _ in images]), affine


def _channels(path: Path, grey: bool) -> tuple[Array, Affine]:
    if not is_picture_name(path.name):
        return read_nifti_channels(path)
    picture = read_picture(path)
    return as_grey(picture.array)[None] if grey and len(picture.array) > 1 else picture.array, picture.affine


def read_label(path: Path) -> tuple[Array, Affine]:
    """(X, Y, Z) values and affine of a label map."""
    return (read_picture_labels(path), image_affine(())) if is_picture_name(path.name) else read_nifti(path)
