"""Label maps as DICOM SEG on the series that they were made for, written by highdicom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import generate_uid

from medssl.archive.index.reading import Index
from medssl.archive.index.records import VolumeRecord
from medssl.archive.instance import Instance
from medssl.archive.labels.elements import reading
from medssl.archive.labels.placing import LabelProblem
from medssl.errors import UsageError
from medssl.files import replacing

if TYPE_CHECKING:
    import highdicom

_UNFIT = (ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError)
"""What highdicom raises for series that it cannot refer to."""


def write_seg(index: Index, record: VolumeRecord, classes: NDArray[Any], names: Mapping[int, str], file: str | Path) -> Path:
    """Write (X, Y, Z) classes on the grid of a volume as a binary SEG that refers to its original images, a segment a class of `names`
    (from 1, without gaps). Returns the path.

    Unlike all else that medssl writes it says whose it is, as the images do. Raises `LabelProblem` for volumes that a SEG cannot refer to.
    """
    slices = index.slices(record.volume)
    if record.kind != "dicom" or record.dimensions != 3 or any(one.tile for one in slices):
        raise LabelProblem(f"volume {record.volume} is no series of DICOM slices, on which a SEG could be written. Write NIfTI instead.")
    hd = _highdicom()
    with reading("series"):
        images, frames = _images(index, slices)
        array = np.zeros((frames, *classes.shape[1::-1]), np.uint8)
        array[[max(one.frame, 0) if len(images) == 1 else place for place, one in enumerate(slices)]] = classes.transpose(2, 1, 0)
    try:
        seg = _segmentation(hd, images, array, names)
    except _UNFIT as error:
        raise LabelProblem(
            f"volume {record.volume} cannot be referred to by a SEG: {type(error).__name__}: {str(error)[:200]}. Write NIfTI instead."
        ) from error
    path = Path(file)
    with replacing(path) as stream:
        seg.save_as(stream)
    return path


def _highdicom() -> Any:
    try:
        import highdicom
    except ImportError as error:
        raise UsageError("writing DICOM SEG needs the package highdicom. Install it with: pip install 'medssl[labels]'") from error
    return highdicom


def _images(index: Index, slices: Sequence[Instance]) -> tuple[list[Dataset], int]:
    """The headers of the images, and how many planes they have together."""
    keys = list(dict.fromkeys((one.source, one.key) for one in slices))
    if len(keys) > 1 and len(keys) != len(slices):
        raise LabelProblem("the volume lies in several files of several frames, to which no SEG is written. Write NIfTI instead.")
    found: list[Dataset] = []
    for one in slices[: len(keys)] if len(keys) == 1 else slices:
        try:
            with index.open(one) as stream:
                found.append(pydicom.dcmread(stream, stop_before_pixels=True, force=True))
        except OSError as error:
            raise LabelProblem("an image of the series cannot be opened: moved or deleted? Index the archive again.") from error
    return found, len(slices) if len(found) > 1 else int(found[0].get("NumberOfFrames") or 1)


def _segmentation(hd: Any, images: Sequence[Dataset], array: NDArray[np.uint8], names: Mapping[int, str]) -> Dataset:
    from pydicom.sr.codedict import codes

    version = metadata.version("medssl")
    made = hd.AlgorithmIdentificationSequence("medssl", codes.cid7162.ArtificialIntelligence, version)
    segments = [
        hd.seg.SegmentDescription(
            number,
            names[number][:64],
            codes.SCT.AnatomicalStructure,
            codes.SCT.Tissue,
            hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            made,
        )
        for number in sorted(names)
    ]
    # The same map of the same images is the same object.
    origin = [str(image.SOPInstanceUID) for image in images] + [blake2b(array.tobytes()).hexdigest(), *names.values()]
    seg: highdicom.seg.Segmentation = hd.seg.Segmentation(
        source_images=list(images),
        pixel_array=array,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=generate_uid(entropy_srcs=["series", *origin]),
        series_number=1,
        sop_instance_uid=generate_uid(entropy_srcs=["object", *origin]),
        instance_number=1,
        manufacturer="medssl",
        manufacturer_model_name="medssl",
        software_versions=version,
        device_serial_number="none",
        series_description="medssl prediction",
    )
    return seg
