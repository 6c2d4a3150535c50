"""Label files of any format, by their names: what they hold, on the grid of their image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from numpy.typing import NDArray

from medssl.archive.labels.finding import read_dicom_file
from medssl.archive.labels.merging import Classes, ClassMap, class_map
from medssl.archive.labels.nrrd import as_object, is_nrrd_name, read_nrrd
from medssl.archive.labels.objects import LabelObject
from medssl.archive.labels.placing import WAY_OUT, Grid, LabelProblem, OtherGrid, onto, place_of
from medssl.archive.nifti.files import read_nifti
from medssl.archive.nifti.names import is_nifti_name, is_picture_name, stem
from medssl.archive.pictures.files import read_picture_labels

_ENDING = re.compile(r"(\.seg)?\.nrrd$|\.dcm$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class RawLabels:
    """A file of values without names, on the grid of the image."""

    array: NDArray[Any]


def is_label_name(name: str) -> bool:
    """Does the name end as files of labels do: NIfTI, NRRD, DICOM, pictures?"""
    return is_nifti_name(name) or is_picture_name(name) or _ENDING.search(name) is not None


def label_files(folder: Path) -> list[Path]:
    """The files in a folder that are called as labels are, sorted; hidden ones are left out."""
    return sorted(path for path in folder.iterdir() if is_label_name(path.name) and not path.name.startswith(".") and path.is_file())


def label_stem(name: str | PurePath) -> str:
    """The name of the case: without folders and ending."""
    return _ENDING.sub("", stem(name))


def read_label(path: Path, image: Grid, classes: Classes | None, resample: bool = False) -> RawLabels | ClassMap:
    """What a file says of the voxels of an image: values, or classes where it has named segments.

    A picture, and a NIfTI file without a place of its own, is taken to lie where the image does, if it has its shape. Raises
    `MissingInput`, or `DataError` for what is broken, lies on another grid (unless `resample`), or has segments that nobody named.
    """
    if is_nifti_name(path.name):
        found = read_nifti(path, image.affine)
        return RawLabels(_whole(found.array, Grid(found.array.shape, found.affine), image, resample))
    if is_picture_name(path.name):
        array = read_picture_labels(path)
        return RawLabels(_whole(array, Grid((array.shape[0], array.shape[1], 1), image.affine), image, resample))
    if is_nrrd_name(path.name):
        read = read_nrrd(path)
        if not read.segments and len(read.array) == 1:
            return RawLabels(_whole(read.array[0], read.grid, image, resample))
        return _named(as_object(read), image, classes, resample)
    return _named(read_dicom_file(path), image, classes, resample)


def read_names(path: Path) -> LabelObject | None:
    """The segments of a file without their voxels; None where its format has no names."""
    if is_nifti_name(path.name) or is_picture_name(path.name):
        return None
    if is_nrrd_name(path.name):
        read = read_nrrd(path, voxels=False)
        return as_object(read) if read.segments else None
    return read_dicom_file(path, header=True)


def _whole(array: NDArray[Any], label: Grid, image: Grid, resample: bool) -> NDArray[Any]:
    """A map that should have all voxels of the image, turned as these are."""
    place = place_of(label, image)
    if place is not None and place.is_whole(array.shape, image.shape):
        return place.flips.apply(array)
    if not resample:
        raise OtherGrid(f"the label's grid differs from the image's: the image {image}; the label {label}. {WAY_OUT}")
    return onto(array, label, image, resample)[0]


def _named(found: LabelObject, image: Grid, classes: Classes | None, resample: bool) -> ClassMap:
    if classes is None:
        raise LabelProblem(
            "the label has named segments. Say by data.classes which become which class, such as data.classes={liver: [Liver, hepar]}; "
            "`medssl labels FILE` lists the names."
        )
    return class_map([found], classes, image, resample)
