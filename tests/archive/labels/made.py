"""Label objects to read: SEG written by highdicom, structure sets by hand as planning systems write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RTStructureSetStorage

from medssl.testing.dicom import uid

LPS = np.diag([-1.0, -1.0, 1.0])
Adjust = Callable[[Dataset], None]


def slices_of(files: Sequence[Path]) -> list[Dataset]:
    """The datasets of files, in the order of `write_series`: that of the volume's slices."""
    return [pydicom.dcmread(file) for file in files]


def write_seg(
    file: Path,
    images: Sequence[Dataset],
    masks: Mapping[str, NDArray[Any]],
    kind: str = "BINARY",
    *,
    omit_empty: bool = True,
    syntax: str = ExplicitVRLittleEndian,
    adjust: Adjust | None = None,
    **more: Any,
) -> Path:
    """A SEG by highdicom: each mask (X, Y, Z) is a segment of that name, drawn on the slices `images`."""
    descriptions = [
        hd.seg.SegmentDescription(
            number,
            name,
            codes.SCT.Organ,
            codes.SCT.Liver,
            hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in enumerate(masks, 1)
    ]
    frames = np.stack([mask.transpose(2, 1, 0) for mask in masks.values()], axis=-1)
    if kind == "LABELMAP":
        frames = sum(frames[..., place].astype(np.uint8) * (place + 1) for place in range(frames.shape[-1]))
    elif kind == "BINARY":
        frames = frames.astype(np.uint8)
    seg = hd.seg.Segmentation(
        source_images=list(images),
        pixel_array=frames,
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=uid(file.name),
        series_number=7,
        sop_instance_uid=uid(file.name, "object"),
        instance_number=1,
        manufacturer="medssl",
        manufacturer_model_name="made",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=omit_empty,
        transfer_syntax_uid=syntax,
        **more,
    )
    if adjust is not None:
        adjust(seg)
    seg.save_as(file)
    return file


def contour(points: NDArray[Any], affine: NDArray[Any], kind: str = "CLOSED_PLANAR") -> tuple[str, list[str]]:
    """Kind and LPS coordinates of a contour given in voxels (N, 3)."""
    world = (np.asarray(points, float) @ affine[:3, :3].T + affine[:3, 3]) @ LPS
    return kind, [f"{value:.6g}" for value in world.ravel()]


def write_rtstruct(
    file: Path,
    regions: Mapping[str, Sequence[tuple[str, Sequence[str]]]],
    images: Sequence[Dataset],
    *,
    adjust: Adjust | None = None,
    implicit: bool = True,
) -> Path:
    """A structure set with these contours, by region, drawn on the slices `images`."""
    first = images[0]
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = RTStructureSetStorage, uid(file.name, "rt"), "RTSTRUCT"
    for name in ("PatientID", "PatientName", "StudyInstanceUID"):
        setattr(dataset, name, getattr(first, name))
    dataset.SeriesInstanceUID = uid(file.name, "rt series")
    dataset.StructureSetLabel = "made"
    images_of_series = [_item(ReferencedSOPClassUID=one.SOPClassUID, ReferencedSOPInstanceUID=one.SOPInstanceUID) for one in images]
    series = _item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images_of_series)
    study = _item(ReferencedSOPInstanceUID=first.StudyInstanceUID, RTReferencedSeriesSequence=[series])
    frame = first.FrameOfReferenceUID
    dataset.ReferencedFrameOfReferenceSequence = [_item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[study])]
    dataset.StructureSetROISequence = [
        _item(ROINumber=number, ReferencedFrameOfReferenceUID=frame, ROIName=name) for number, name in enumerate(regions, 1)
    ]
    dataset.ROIContourSequence = [
        _item(
            ReferencedROINumber=number,
            ContourSequence=[
                _item(ContourGeometricType=kind, NumberOfContourPoints=len(data) // 3, ContourData=list(data)) for kind, data in contours
            ],
        )
        for number, contours in enumerate(regions.values(), 1)
    ]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    if adjust is not None:
        adjust(dataset)
    dataset.save_as(file, enforce_file_format=True)
    return file


def _item(**elements: Any) -> Dataset:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def ball(shape: Sequence[int], centre: Sequence[float], radius: float) -> NDArray[np.bool_]:
    """(X, Y, Z) voxels within `radius` of `centre`."""
    grid = np.indices(tuple(shape)).reshape(3, -1) - np.asarray(centre, float)[:, None]
    return (np.square(grid).sum(0) <= radius**2).reshape(tuple(shape))
