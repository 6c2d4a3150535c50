"""Made radiographs, ultrasound and photographs as DICOM objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CR, DX, MG, US_CINE, US, XA, SKIN, EYE, CT = (
    f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("1", "1.1", "1.2", "3.1", "6.1", "12.1", "77.1.7", "77.1.5.1", "2")
)


def image(array: NDArray[Any], sop_class: str = CR, modality: str = "CR", **elements: Any) -> Dataset:
    """(rows, columns), (F, rows, columns) or the same with three colours last, as one object."""
    colours = array.ndim > 2 and array.shape[-1] == 3
    planes = array.shape[:-1] if colours else array.shape
    dataset = Dataset()
    dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "P", "1.2.5", "1.2.6"
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = sop_class, generate_uid(), modality
    dataset.Rows, dataset.Columns = planes[-2:]
    if len(planes) == 3:
        dataset.NumberOfFrames = planes[0]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3, "RGB") if colours else (1, "MONOCHROME2")
    if colours:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * array.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(array.dtype.kind == "i")
    dataset.add_new("PixelData", "OW" if array.itemsize == 2 else "OB", array.tobytes() + b"\0" * (array.nbytes % 2))
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def save(dataset: Dataset, file: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(file, enforce_file_format=True)
    return file


def grey(rows: int = 20, columns: int = 30, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 4096, (rows, columns)).astype(np.uint16)


def colour(rows: int = 20, columns: int = 30, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3)).astype(np.uint8)


def smooth_colour(rows: int = 48, columns: int = 64) -> NDArray[np.uint8]:
    """Channels that differ, smooth enough for lossy codecs."""
    y, x = np.indices((rows, columns))
    return np.stack([128 + 100 * np.sin(x / 20), 128 + 100 * np.cos(y / 15), 60 + x + y / 2], axis=2).astype(np.uint8)
