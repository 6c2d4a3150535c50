"""Made DICOM for tests and the demo: proper series, localizers and secondary captures from an array and an affine. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

SOP_CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}
Adjust = Callable[[Dataset, int], None]


def write_series(
    folder: str | Path,
    array: NDArray[Any],
    affine: NDArray[Any],
    *,
    modality: str = "CT",
    patient: str = "MADE-1",
    study: str = "study 1",
    series: str = "series 1",
    frame_of_reference: str = "frame 1",
    image_type: Sequence[str] = ("ORIGINAL", "PRIMARY", "AXIAL"),
    slope: float = 1.0,
    intercept: float = 0.0,
    signed: bool = True,
    bits_stored: int = 16,
    skip: Sequence[int] = (),
    seed: int = 0,
    syntax: str = ExplicitVRLittleEndian,
    adjust: Adjust | None = None,
) -> list[Path]:
    """One file a slice of `array` (X, Y, Z), whose `affine` (4, 4) maps voxels to RAS+ mm; returns the files in slice order.

    The first two axes of the affine must be at right angles; the third may be sheared, as of a tilted gantry. Stored values are
    (array - intercept) / slope and must be whole. `patient`, `study`, `series` and `frame_of_reference` are names from which UIDs
    are derived, so equal names give equal UIDs. Slices in `skip` are not written. File names and instance numbers are shuffled by
    `seed`: only positions tell the order. `adjust(dataset, z)` may change each dataset before it is written.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    stored = _stored(np.asarray(array), slope, intercept, signed, bits_stored)
    geometry = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, float)
    shuffled = np.random.default_rng(seed).permutation(stored.shape[2])
    files: list[Path] = []
    for z in range(stored.shape[2]):
        if z in skip:
            continue
        dataset = _patient(modality, patient, study, series)
        dataset.SOPClassUID = SOP_CLASSES[modality]
        dataset.SOPInstanceUID = uid(patient, study, series, "slice", z)
        dataset.FrameOfReferenceUID = uid(patient, study, frame_of_reference)
        dataset.ImageType = list(image_type)
        dataset.InstanceNumber = int(shuffled[z]) + 1
        dataset.AcquisitionNumber = 1
        _place(dataset, geometry, z)
        _pixels(dataset, stored[:, :, z].T, bits_stored, signed)
        dataset.RescaleSlope, dataset.RescaleIntercept = _decimal(slope), _decimal(intercept)
        if adjust is not None:
            adjust(dataset, z)
        files.append(_save(dataset, out / f"IM{shuffled[z]:05d}", syntax))
    return files


def write_localizer(folder: str | Path, *, modality: str = "CT", patient: str = "MADE-1", study: str = "study 1", series: str) -> Path:
    """One coronal scout image, marked as a localizer; give the CT's `series` to mix it into the CT's own series."""
    affine = np.array([[-4.0, 0, 0, 120], [0, 0, -4, 0], [0, -4, 0, 120], [0, 0, 0, 1]])
    picture = np.add.outer(np.arange(48), np.arange(64))[:, :, None]
    image_type = ("ORIGINAL", "PRIMARY", "LOCALIZER")

    def rename(dataset: Dataset, _: int) -> None:
        dataset.SOPInstanceUID = uid(patient, study, series, "localizer")

    (file,) = write_series(
        Path(folder) / "scout",
        picture,
        affine,
        modality=modality,
        patient=patient,
        study=study,
        series=series,
        image_type=image_type,
        adjust=rename,
    )
    return file


def write_secondary_capture(folder: str | Path, *, patient: str = "MADE-1", study: str = "study 1", series: str = "capture") -> Path:
    """One RGB screenshot without a position in space."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    dataset = _patient("OT", patient, study, series)
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = uid(patient, study, series, "capture")
    dataset.ConversionType = "WSD"
    dataset.InstanceNumber = 1
    picture = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    _pixels(dataset, picture, 8, False)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    return _save(dataset, out / "capture.dcm", ExplicitVRLittleEndian)


def uid(*names: object) -> str:
    """A valid UID that depends on the names alone."""
    return str(generate_uid(entropy_srcs=[str(name) for name in names]))


def _stored(array: NDArray[Any], slope: float, intercept: float, signed: bool, bits: int) -> NDArray[Any]:
    if array.ndim != 3:
        raise ValueError(f"a series is made of (X, Y, Z), not of shape {array.shape}.")
    exact = (array - intercept) / slope
    stored = np.rint(exact)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if np.abs(stored - exact).max() > 1e-6 or stored.min() < low or stored.max() > high:
        raise ValueError(f"the values are not whole or not within {low} .. {high} after (value - {intercept}) / {slope}.")
    return stored.astype(np.int16 if signed else np.uint16)


def _patient(modality: str, patient: str, study: str, series: str) -> Dataset:
    dataset = Dataset()
    dataset.PatientID = patient
    dataset.PatientName = f"Made^{patient}"
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid(patient, study), uid(patient, study, series)
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20200101", "120000", "1", ""
    dataset.ReferringPhysicianName = ""
    dataset.Modality, dataset.SeriesNumber, dataset.SeriesDescription = modality, 1, series
    dataset.Manufacturer = "medssl"
    dataset.PatientPosition, dataset.PositionReferenceIndicator = "HFS", ""
    return dataset


def _place(dataset: Dataset, geometry: NDArray[np.float64], z: int) -> None:
    """`geometry`: voxel -> LPS mm."""
    lengths = np.linalg.norm(geometry[:3, :3], axis=0)
    row, column = geometry[:3, 0] / lengths[0], geometry[:3, 1] / lengths[1]
    if abs(row @ column) > 1e-6:
        raise ValueError("the first two axes of the affine are not at right angles; a DICOM slice cannot hold that.")
    dataset.ImageOrientationPatient = [_decimal(value) for value in (*row.tolist(), *column.tolist())]
    dataset.ImagePositionPatient = [_decimal(value) for value in (geometry[:3, 3] + z * geometry[:3, 2]).tolist()]
    dataset.PixelSpacing = [_decimal(float(lengths[1])), _decimal(float(lengths[0]))]
    dataset.SliceThickness = _decimal(float(abs(np.cross(row, column) @ geometry[:3, 2])))


def _decimal(value: float) -> str:
    """A decimal string holds 16 characters."""
    for digits in range(15, 0, -1):
        text = f"{float(value):.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError(f"{value} does not fit a decimal string.")


def _pixels(dataset: Dataset, picture: NDArray[Any], bits_stored: int, signed: bool) -> None:
    dataset.Rows, dataset.Columns = picture.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = 8 * picture.dtype.itemsize
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits_stored, bits_stored - 1, int(signed)
    content = np.ascontiguousarray(picture).tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated == 16 else "OB"


def _save(dataset: Dataset, file: Path, syntax: str) -> Path:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(file, enforce_file_format=True)
    return file


def made_volume(shape: Sequence[int] = (20, 16, 12), seed: int = 0) -> NDArray[np.int16]:
    """(X, Y, Z) int16 of Hounsfield-like values, every voxel its own, so that a flip or shift cannot go unseen."""
    noise = np.random.default_rng(seed).integers(-1000, 1000, tuple(shape))
    return noise.astype(np.int16)


def made_affine(spacing: Sequence[float] = (0.8, 0.9, 2.0), origin: Sequence[float] = (40.0, 35.0, -20.0)) -> NDArray[np.float64]:
    """(4, 4) voxel -> RAS+ mm of an axial CT as scanners write it: columns to the left, rows to the back, slices upwards."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = origin
    return affine
