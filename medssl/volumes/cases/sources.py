"""Where the images and labels of a case are: files, or volumes of an index with the label objects that were drawn on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.archive import Index, VolumeRecord, read_nifti_channels
from medssl.archive.geometry import image_affine
from medssl.archive.labels.files import RawLabels, read_label
from medssl.archive.labels.finding import Found, Pairing, labels_of, pair_labels
from medssl.archive.labels.merging import Classes, ClassMap
from medssl.archive.labels.nrrd import is_nrrd_name, read_nrrd
from medssl.archive.labels.placing import Grid
from medssl.archive.nifti.files import is_unplaced
from medssl.archive.nifti.names import is_nifti_name, is_picture_name
from medssl.archive.pictures.files import picture_shape, read_picture
from medssl.errors import DataError
from medssl.faults import faults_as
from medssl.files import open_regular
from medssl.volumes.ingest import Unusable
from medssl.volumes.ingest.channels import Group
from medssl.volumes.ingest.sources import load_group
from medssl.volumes.preparation import Preparation, as_grey

Affine = NDArray[np.float64]


@dataclass(frozen=True)
class IndexedImage:
    """A volume of an index."""

    index: Index
    record: VolumeRecord

    @property
    def name(self) -> str:
        """The volume's pseudonym, which tells no path."""
        return self.record.volume

    def __str__(self) -> str:
        return f"volume {self.name}"


@dataclass(frozen=True)
class IndexedLabels:
    """The label objects of a volume of an index."""

    image: IndexedImage
    objects: tuple[Found, ...]

    @property
    def name(self) -> str:
        """The volume's pseudonym."""
        return self.image.name

    def __str__(self) -> str:
        return f"{len(self.objects)} label object(s) of the index"


Image = Path | IndexedImage
Labels = Path | IndexedLabels


def indexed_cases(index: Index, where: str | None) -> tuple[list[IndexedLabels], Pairing]:
    """The label objects of the volumes of an index, or of those for which SQL `where` holds, and how they were paired."""
    records = {record.volume: record for record in index.volumes(where)}
    pairing = pair_labels(index, list(records.values()))
    return [IndexedLabels(IndexedImage(index, records[volume]), objects) for volume, objects in pairing.objects.items()], pairing


def header(image: Image) -> tuple[tuple[int, ...], Affine | None]:
    """Shape (trailing single axes dropped) and affine without the voxels; no affine where a file says not where it lies (qform and sform
    codes 0). Raises `DataError`."""
    if isinstance(image, IndexedImage):
        return image.record.shape, image.record.affine
    if is_picture_name(image.name):
        return picture_shape(image), image_affine(())
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        with faults_as(DataError, f"{image} cannot be read"):
            open_regular(image).close()
        read: Any = nibabel.load(image)
        shape, affine = tuple(int(side) for side in read.shape), np.asarray(read.affine, np.float64)
        unplaced = hasattr(read, "get_qform") and is_unplaced(read.header)
    except (ImageFileError, OSError, ValueError, EOFError, AttributeError) as error:
        raise DataError(f"{image} cannot be read as NIfTI: {error}. Convert it again, or leave it out.") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape, None if unplaced else affine


def label_grid(label: Labels) -> tuple[tuple[int, ...], Affine | None] | None:
    """The grid of a label map that should have all voxels of its image; None for what is placed piece by piece (segments, contours)."""
    if isinstance(label, Path) and is_nifti_name(label.name):
        return header(label)
    if isinstance(label, Path) and is_picture_name(label.name):
        return picture_shape(label)[:3], image_affine(())
    if isinstance(label, Path) and is_nrrd_name(label.name):
        read = read_nrrd(label, voxels=False)
        return None if read.segments else (read.grid.shape, read.grid.affine)
    return None


def grid_of_image(images: Sequence[Image], placed_by: Path | None = None) -> Grid:
    """The grid of a case; `placed_by` is the file that says where its images lie, where they do not."""
    shape, affine = header(images[0])
    if affine is None and placed_by is not None:
        affine = header(placed_by)[1]
    if affine is None:
        raise Unusable("its image says not where it lies (qform and sform codes are 0)")
    return grid_of(shape, affine)


def grid_of(shape: Sequence[int], affine: Affine) -> Grid:
    """The grid of an array of two axes or more: of a missing third one voxel, a fourth does not count."""
    x, y, z = (*shape[:3], *(1,) * (3 - len(shape)))
    return Grid((x, y, z), affine)


def is_scaled(images: Sequence[Image]) -> bool:
    """Is it known how large a voxel is? A picture does not say."""
    return all(bool(one.record.spacing) if isinstance(one, IndexedImage) else not is_picture_name(one.name) for one in images)


def is_coloured(image: Image) -> bool:
    """Has it red, green and blue?"""
    if isinstance(image, IndexedImage):
        return image.record.colours > 1
    return is_picture_name(image.name) and len(picture_shape(image)) > 3


def read_images(
    images: Sequence[Image], placed_by: Path | None = None, preparation: Preparation | None = None
) -> tuple[NDArray[Any], Affine]:
    """(A, X, Y, Z) values and affine of the images of a case; 2D images greyed and turned round as `preparation` says."""
    unplaced = None if placed_by is None else header(placed_by)[1]
    read = [_read_image(image, unplaced, preparation or Preparation()) for image in images]
    shapes = {array.shape[1:] for array, _ in read}
    if len(shapes) > 1:
        raise Unusable(f"its images have different shapes: {', '.join(str(list(shape)) for shape in sorted(shapes))}")
    return read[0][0] if len(read) == 1 else np.concatenate([array for array, _ in read]), read[0][1]


def _read_image(image: Image, unplaced: Affine | None, preparation: Preparation) -> tuple[NDArray[Any], Affine]:
    if isinstance(image, Path) and is_picture_name(image.name):
        picture = read_picture(image)
        return as_grey(picture.array)[None] if preparation.grey and len(picture.array) > 1 else picture.array, picture.affine
    if isinstance(image, Path):
        found = read_nifti_channels(image, unplaced)
        return found.array, found.affine
    array, affine = load_group(image.index, Group((image.record,)), preparation)
    return array.reshape(-1, *array.shape[-3:]), affine


def read_labels(label: Labels, grid: Callable[[], Grid], classes: Classes | None, resample: bool) -> RawLabels | ClassMap:
    """What a case's label says of the voxels of its image; raises `DataError`."""
    if isinstance(label, Path):
        return read_label(label, grid(), classes, resample)
    if classes is None:
        raise Unusable("has named segments, and data.classes names none")
    return labels_of(label.image.index, label.image.record, label.objects, classes, resample)


def fingerprint(source: Image | Labels) -> str:
    """Sizes and times: what tells that files were changed."""
    if isinstance(source, Path):
        found = source.stat()
        return f"{found.st_size}/{found.st_mtime_ns}"
    if isinstance(source, IndexedLabels):
        return " ".join(f"{one.instance.uid}/{one.instance.size}/{one.instance.version}" for one in source.objects)
    return source.name
