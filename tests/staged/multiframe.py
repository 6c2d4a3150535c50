"""Made objects of many frames, and planes of many tiles."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, NuclearMedicineImageStorage

from medssl.testing.dicom import uid

LPS = np.diag([-1.0, -1, 1, 1])


def item(**values: object) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def base(sop_class: str, rows: int, columns: int, name: str = "object") -> Dataset:
    made = item(
        SOPClassUID=sop_class,
        SOPInstanceUID=uid(name),
        StudyInstanceUID=uid("study"),
        SeriesInstanceUID=uid("series"),
        FrameOfReferenceUID=uid("frame"),
        PatientID="MADE-1",
        Modality="MR",
        ImageType=["ORIGINAL", "PRIMARY", "M", "NONE"],
        InstanceNumber=1,
        Rows=rows,
        Columns=columns,
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        BitsAllocated=16,
        BitsStored=16,
        HighBit=15,
        PixelRepresentation=1,
    )
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = sop_class, made.SOPInstanceUID
    return made


def plane(affine: np.ndarray) -> tuple[list[float], list[float]]:
    """Orientation and pixel spacing of an affine to RAS+ mm."""
    lps = LPS @ affine
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    return [*(lps[:3, 0] / lengths[0]).tolist(), *(lps[:3, 1] / lengths[1]).tolist()], [float(lengths[1]), float(lengths[0])]


def place(affine: np.ndarray, z: float) -> list[float]:
    return [round(float(value), 6) for value in (LPS @ affine @ [0, 0, z, 1])[:3]]


Frame = tuple[np.ndarray, Dataset]


def frame(voxels: np.ndarray, affine: np.ndarray, z: int, **more: object) -> Frame:
    """The (x, y) plane at place z and its functional groups; `more` are further groups."""
    groups = item(PlanePositionSequence=Items([item(ImagePositionPatient=place(affine, z))]), **more)
    if "FrameContentSequence" not in more:
        groups.FrameContentSequence = Items([item(StackID="1", InStackPositionNumber=z + 1)])
    return voxels[:, :, z], groups


def write_enhanced(
    file: Path,
    frames: Sequence[Frame],
    affine: np.ndarray | None,
    sop_class: str = EnhancedMRImageStorage,
    syntax: str = "",
    **more: object,
) -> Dataset:
    """`affine` gives orientation and spacing for all frames; without it each says its own."""
    made = base(sop_class, frames[0][0].shape[1], frames[0][0].shape[0], file.name)
    made.NumberOfFrames = len(frames)
    shared = Dataset()
    if affine is not None:
        orientation, spacing = plane(affine)
        shared.PlaneOrientationSequence = Items([item(ImageOrientationPatient=orientation)])
        shared.PixelMeasuresSequence = Items([item(PixelSpacing=spacing, SliceThickness=2.0)])
    made.SharedFunctionalGroupsSequence = Items([shared])
    made.PerFrameFunctionalGroupsSequence = Items([groups for _, groups in frames])
    for keyword, value in more.items():
        setattr(made, keyword, value)
    planes = [np.ascontiguousarray(voxels.T.astype("<i2")) for voxels, _ in frames]
    if syntax:
        made.file_meta.TransferSyntaxUID = syntax
        encoder = get_encoder(syntax)
        given = {key: made[name].value for key, name in ENCODING.items()}
        made.PixelData = encapsulate([encoder.encode(one, **given, number_of_frames=1) for one in planes])
        made["PixelData"].is_undefined_length = True
    else:
        made.PixelData = b"".join(one.tobytes() for one in planes)
    made["PixelData"].VR = "OB" if syntax else "OW"
    file.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(file, enforce_file_format=True)
    return made


ENCODING = {
    "rows": "Rows",
    "columns": "Columns",
    "samples_per_pixel": "SamplesPerPixel",
    "photometric_interpretation": "PhotometricInterpretation",
    "bits_allocated": "BitsAllocated",
    "bits_stored": "BitsStored",
    "pixel_representation": "PixelRepresentation",
}


def csa(**tags: list[object]) -> bytes:
    """Siemens' header in its second form."""
    content = b"SV10\4\3\2\1" + struct.pack("<2I", len(tags), 77)
    for name, values in tags.items():
        content += struct.pack("<64si4s3i", name.encode(), len(values), b"FD\0\0", 4, max(len(values), 6), 77)
        for index in range(max(len(values), 6)):
            text = f"{values[index]}\0".encode() if index < len(values) else b""
            content += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + b"\0" * (-len(text) % 4)
    return content


def tiled(voxels: np.ndarray, across: int, down: int) -> np.ndarray:
    """(rows, columns) of all slices side by side."""
    x, y, z = voxels.shape
    whole = np.zeros((down * y, across * x), "<i2")
    for index in range(z):
        top, left = index // across * y, index % across * x
        whole[top : top + y, left : left + x] = voxels[:, :, index].T
    return whole


Counted = Literal["csa", "element", "times"]


def write_mosaic(file: Path, voxels: np.ndarray, affine: np.ndarray, block: int = 0x10, counted: Counted = "csa", **tags: object) -> None:
    """`block`: the private block of Siemens' own header, 0 for none of it; `counted`: what says how many slices there are."""
    side = math.isqrt(voxels.shape[2] - 1) + 1
    whole = tiled(voxels, side, side)
    made = base(MRImageStorage, *whole.shape, file.name)
    made.ImageType, made.Manufacturer = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"], "SIEMENS"
    orientation, spacing = plane(affine)
    made.ImageOrientationPatient, made.PixelSpacing = orientation, spacing
    made.SpacingBetweenSlices = float(np.linalg.norm(affine[:3, 2]))
    # Siemens gives the corner of a plane of the mosaic's size around the centre of the first slice.
    columns, rows = voxels.shape[:2]
    made.ImagePositionPatient = (LPS @ affine @ [-(side - 1) * columns / 2, -(side - 1) * rows / 2, 0, 1])[:3].round(6).tolist()
    direction = (LPS @ affine)[:3, 2] / made.SpacingBetweenSlices
    count: dict[str, list[object]] = {"NumberOfImagesInMosaic": [voxels.shape[2]]} if counted == "csa" else {}
    if block:
        made.add_new(0x00290000 | block, "LO", "SIEMENS CSA HEADER")
        made.add_new(0x00290010 | block << 8, "OB", csa(**count, SliceNormalVector=direction.tolist()))
    if counted != "csa":
        made.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
        times = [80.0 * z for z in range(voxels.shape[2])]
        made.add_new(*((0x0019100A, "US", voxels.shape[2]) if counted == "element" else (0x00191029, "FD", times)))
    for keyword, value in tags.items():
        setattr(made, keyword, value)
    made.PixelData = whole.tobytes()
    made["PixelData"].VR = "OW"
    file.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(file, enforce_file_format=True)


def write_grid(file: Path, voxels: np.ndarray, affine: np.ndarray, across: int, down: int, syntax: str = ExplicitVRLittleEndian) -> None:
    """United Imaging's: a private sequence holds the position of each tile."""
    depth, whole = voxels.shape[2], tiled(voxels, across, down)
    made = base(MRImageStorage, *whole.shape)
    made.file_meta.TransferSyntaxUID = syntax
    made.ImageType, made.Manufacturer = ["ORIGINAL", "PRIMARY", "M", "VFRAME"], "UIH"
    made.ImageOrientationPatient, made.PixelSpacing = plane(affine)
    made.add_new(0x00650010, "LO", "Image Private Header")
    made.add_new(0x00651050, "DS", str(depth))
    tiles = [item(ImagePositionPatient=place(affine, z), AcquisitionTime=f"1010{z:02d}") for z in range(depth)]
    made.add_new(0x00651051, "SQ", Items(tiles))
    made.PixelData = whole.tobytes()
    made["PixelData"].VR = "OW"
    file.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(file, enforce_file_format=True)


def write_nuclear(file: Path, frames: Sequence[tuple[np.ndarray, int]], affine: np.ndarray, **more: object) -> Dataset:
    """A reconstruction: (x, y) planes and their places from 0; slices run against the normal where the affine is left-handed."""
    made = base(NuclearMedicineImageStorage, frames[0][0].shape[1], frames[0][0].shape[0], file.name)
    made.Modality, made.ImageType = "NM", ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    orientation, made.PixelSpacing = plane(affine)
    step = (LPS @ affine)[:3, 2]
    made.SpacingBetweenSlices = float(step @ np.cross(orientation[:3], orientation[3:]))
    made.SliceThickness = abs(made.SpacingBetweenSlices)
    made.NumberOfFrames, made.FrameIncrementPointer = len(frames), 0x00540080
    made.SliceVector = [z + 1 for _, z in frames]
    made.DetectorInformationSequence = Items([item(ImagePositionPatient=place(affine, 0), ImageOrientationPatient=orientation)])
    for keyword, value in more.items():
        setattr(made, keyword, value)
    made.PixelData = b"".join(np.ascontiguousarray(voxels.T.astype("<i2")).tobytes() for voxels, _ in frames)
    made["PixelData"].VR = "OW"
    file.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(file, enforce_file_format=True)
    return made
