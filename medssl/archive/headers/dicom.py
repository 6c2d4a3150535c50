"""The header of one DICOM file, without its pixels, and what can be decided from it alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any, BinaryIO

import pydicom
from pydicom.tag import BaseTag, Tag

from medssl.archive.decoders import can_decode
from medssl.archive.geometry import usable_orientation, usable_position, usable_spacing
from medssl.archive.headers import acquisition, diffusion, frames, nuclear, siemens
from medssl.archive.headers.elements import count, decimals, has, number, number_warnings, numbers, text, texts, tolerant, whole
from medssl.archive.headers.frames import Frame, frames_of
from medssl.archive.headers.kinds import is_projection, kind_of
from medssl.archive.headers.pixel_element import DEFLATED, UNCOMPRESSED, is_truncated
from medssl.archive.instance import UNNUMBERED, WHOLE, Instance
from medssl.archive.limits import inflated, most_unpacked
from medssl.archive.narrowing import fits_float32
from medssl.archive.nifti.modality import MODALITIES
from medssl.archive.outcomes import Reason

_COMPONENTS = {
    **dict.fromkeys(("M", "MAGNITUDE"), "M"),
    **dict.fromkeys(("P", "PHASE", "PHASE MAP", "PHASE_MAP"), "P"),
    **dict.fromkeys(("R", "REAL"), "R"),
    **dict.fromkeys(("I", "IMAGINARY"), "I"),
}

_WANTED = (
    "SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID PatientID IssuerOfPatientID Modality ImageType Rows Columns "
    "NumberOfFrames SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit PixelRepresentation RescaleSlope "
    "RescaleIntercept ModalityLUTSequence PixelPaddingValue PixelPaddingRangeLimit ImagePositionPatient ImageOrientationPatient "
    "PixelSpacing SpacingBetweenSlices SliceThickness FrameOfReferenceUID EchoNumbers EchoTime InversionTime FlipAngle ConvolutionKernel "
    "TemporalPositionIdentifier AcquisitionNumber TriggerTime AcquisitionDate AcquisitionTime AcquisitionDateTime "
    "ComplexImageComponent DiffusionBValue DiffusionGradientOrientation InstanceNumber SliceLocation"
)
_NUMBERS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
"""Where a flaw in how a number is written is told."""
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_TAGS: list[Any] = [
    Tag(tag)
    for tag in (*_WANTED.split(), *acquisition.ELEMENTS.split(), *diffusion.TAGS, *frames.ELEMENTS, *nuclear.ELEMENTS, *siemens.ELEMENTS)
]

_ALL = frozenset(map(int, _TAGS))

PARSE_ERRORS = (
    pydicom.errors.InvalidDicomError,
    pydicom.errors.BytesLengthException,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    RecursionError,
    EOFError,
    MemoryError,
    AssertionError,
)
"""What pydicom is known to raise on broken files, beside `OSError`, `struct.error` and `zlib.error`."""


def looks_like_dicom(file: BinaryIO) -> bool:
    """The mark after the preamble, or a first element of a group that DICOM files begin with."""
    file.seek(0)
    start = file.read(132)
    return start[128:] == b"DICM" or start[:2] in (b"\x02\x00", b"\x08\x00")


def read_dataset(file: BinaryIO, tags: Iterable[Any], pixels: bool) -> pydicom.Dataset:
    """The wanted elements, also of files without preamble."""
    stop = _nonsense if pixels else _pixels_or_nonsense
    wanted = [Tag(tag) for tag in tags]
    packed = file.seek(0, os.SEEK_END)
    file.seek(128)
    bare = file.read(4) != b"DICM"
    meta = None
    if not bare:
        # Only the element that is asked for is kept; the place is then that of the data set.
        meta = pydicom.filereader.read_dataset(file, False, True, stop_when=_not_of_meta, specific_tags=[Tag("TransferSyntaxUID")])
        start = file.read(8)
        if start and not start.strip(b"\0"):
            raise pydicom.errors.InvalidDicomError("zeros where the elements begin")
        file.seek(-len(start), os.SEEK_CUR)
    if meta is not None and meta.get("TransferSyntaxUID") == DEFLATED:
        # pydicom would unpack without a limit.
        unpacked = BytesIO(inflated(file, most_unpacked(packed)))
        dataset = pydicom.filereader.read_dataset(unpacked, False, True, stop_when=stop, specific_tags=wanted)
        dataset.file_meta = pydicom.dataset.FileMetaDataset(meta)
        return dataset
    file.seek(0)
    return pydicom.filereader.read_partial(file, stop, force=bare, specific_tags=wanted)


def wanted_elements(header: pydicom.Dataset) -> frozenset[int]:
    """The tags that an index reads of this header: a source that fetches long values one by one need not fetch others."""
    return _ALL if frames.is_mosaic(header) else _ALL - siemens.CSA


def _not_of_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return bool(tag.group != 2)


def _nonsense(tag: BaseTag, vr: str | None, length: int) -> bool:
    """Zeros, as a copy that failed leaves them, would be parsed as millions of empty elements."""
    if tag.group == 0:
        raise pydicom.errors.InvalidDicomError("no element of a file")
    return False


def _pixels_or_nonsense(tag: BaseTag, vr: str | None, length: int) -> bool:
    return _nonsense(tag, vr, length) or tag in _PIXELS


def read_instances(file: BinaryIO, instance: Instance) -> list[Instance]:
    """`instance` filled from the header of an open DICOM file, one for each slice, with the reason where the header alone decides it.

    Raises the errors of `PARSE_ERRORS`, `OSError`, `struct.error` or `zlib.error` for what is not DICOM or broken.
    """
    dataset = read_dataset(file, _TAGS, pixels=False)
    at = file.tell()
    found = from_header(dataset, instance)
    if all(one.reason for one in found):
        return found
    if is_truncated(file, found[0], at, 1 if found[0].tile else len(found)):
        # The file ends as one.
        return [replace(found[0], frame=WHOLE, tile=(), reason=Reason.TRUNCATED.value)]
    known = found[0].syntax in UNCOMPRESSED and found[0].syntax != DEFLATED
    return [replace(one, pixels_at=at) for one in found] if known else found


def from_header(dataset: pydicom.Dataset, instance: Instance) -> list[Instance]:
    """`instance` filled from a header, one for each slice, with the reason where the header alone decides it.

    Raises the errors of `PARSE_ERRORS`, `OSError`, `struct.error` or `zlib.error` for values that are broken.
    """
    if len(dataset) == 0 and len(getattr(dataset, "file_meta", ())) == 0:
        raise pydicom.errors.InvalidDicomError("no elements")
    found = replace(
        instance,
        kind="dicom",
        modality=_modality(dataset),
        patient="\n".join(filter(None, (text(dataset, "PatientID"), text(dataset, "IssuerOfPatientID")))),
        study=text(dataset, "StudyInstanceUID"),
        series=text(dataset, "SeriesInstanceUID"),
        uid=text(dataset, "SOPInstanceUID"),
        sop_class=text(dataset, "SOPClassUID") or _meta(dataset, "MediaStorageSOPClassUID"),
        syntax=transfer_syntax(dataset),
    )
    reason = kind_of(found, dataset)
    if reason is not None:
        return [replace(found, reason=reason.value)]
    slices = frames_of(dataset, int(number(dataset, "NumberOfFrames", 1)))
    if isinstance(slices, Reason):
        return [replace(found, reason=slices.value)]
    if slices is not None:
        return list(_slices(found, slices))
    if is_projection(found, dataset):
        return [replace(found, reason=Reason.PROJECTION.value)]
    return [_judged(_filled(found, dataset), dataset)]


def _slices(found: Instance, frames: Sequence[Frame]) -> Iterator[Instance]:
    """Tiles of one plane share its header, which is read once."""
    header, filled = None, found
    for frame in frames:
        if frame.header is not header:
            header, filled = frame.header, _filled(found, frame.header)
        yield _judged(_framed(filled, frame), frame.header)


def _framed(filled: Instance, frame: Frame) -> Instance:
    one = replace(filled, frame=frame.number, dimensions=frame.dimensions)
    if frame.position:
        one = replace(one, position=frame.position, decimals=-1)
    if frame.tile is None:
        return one
    rows, columns, *tile = frame.tile
    return replace(one, rows=rows, columns=columns, tile=tuple(tile))


def _filled(found: Instance, dataset: pydicom.Dataset) -> Instance:
    return _with_pixels(_with_order(_with_place(found, dataset), dataset), dataset)


def _judged(filled: Instance, dataset: pydicom.Dataset) -> Instance:
    reason = _flaw(filled, dataset)
    return replace(filled, reason=reason.value if reason else "")


def _with_place(found: Instance, dataset: pydicom.Dataset) -> Instance:
    return replace(
        found,
        position=numbers(dataset, "ImagePositionPatient"),
        orientation=numbers(dataset, "ImageOrientationPatient"),
        pixel_spacing=numbers(dataset, "PixelSpacing"),
        between_slices=tolerant(dataset, "SpacingBetweenSlices"),
        thickness=tolerant(dataset, "SliceThickness"),
        decimals=decimals(dataset, "ImagePositionPatient"),
        location=tolerant(dataset, "SliceLocation"),
        frame_of_reference=text(dataset, "FrameOfReferenceUID"),
        rows=count(dataset, "Rows", 0),
        columns=count(dataset, "Columns", 0),
        warnings=number_warnings(dataset, _NUMBERS),
    )


def _with_order(found: Instance, dataset: pydicom.Dataset) -> Instance:
    types = tuple(value.upper() for value in texts(dataset, "ImageType"))
    directed = diffusion.diffusion(dataset)
    return replace(
        found,
        taken=acquisition.acquisition(dataset),
        image_type=types,
        component=_component(types, text(dataset, "ComplexImageComponent")),
        echo="/".join((text(dataset, "EchoNumbers"), *(f"{value:.2f}" for value in tolerant(dataset, "EchoTime")))),
        inversion=text(dataset, "InversionTime"),
        flip=text(dataset, "FlipAngle"),
        reconstruction=text(dataset, "ConvolutionKernel"),
        stack=text(dataset, "StackID"),
        temporal=text(dataset, "TemporalPositionIdentifier"),
        acquisition=text(dataset, "AcquisitionNumber"),
        trigger=text(dataset, "TriggerTime"),
        diffusion=directed.key,
        b_value=directed.b_value,
        number=whole(dataset, "InstanceNumber", UNNUMBERED),
        acquired=text(dataset, "AcquisitionDateTime") or text(dataset, "AcquisitionDate") + text(dataset, "AcquisitionTime"),
    )


def _with_pixels(found: Instance, dataset: pydicom.Dataset) -> Instance:
    bits = count(dataset, "BitsAllocated", 0)
    stored = count(dataset, "BitsStored", bits)
    return replace(
        found,
        photometric=text(dataset, "PhotometricInterpretation").upper(),
        bits_allocated=bits,
        bits_stored=stored,
        high_bit=count(dataset, "HighBit", max(stored - 1, 0)),
        signed=count(dataset, "PixelRepresentation", 0),
        slope=number(dataset, "RescaleSlope", 1.0),
        intercept=number(dataset, "RescaleIntercept", 0.0),
        padding=tolerant(dataset, "PixelPaddingValue"),
    )


def _flaw(found: Instance, dataset: pydicom.Dataset) -> Reason | None:
    """Why a slice cannot be used."""
    if has(dataset, "ModalityLUTSequence"):
        return Reason.MODALITY_TABLE
    if not (found.syntax in UNCOMPRESSED or can_decode(found.syntax)):
        return Reason.NO_DECODER
    sizes = found.rows > 0 and found.columns > 0
    scaling = fits_float32(found.slope, abs(found.slope) * 2.0 ** min(found.bits_allocated, 64) + abs(found.intercept))
    grey = found.photometric in ("MONOCHROME1", "MONOCHROME2")
    if not (sizes and found.has_usable_bits and scaling and grey):
        return Reason.BAD_PIXELS
    plane = len(found.pixel_spacing) == 2 and usable_spacing(found.pixel_spacing) and usable_orientation(found.orientation)
    if plane and not found.position:
        return Reason.NO_POSITION
    return None if plane and len(found.position) == 3 and usable_position(found.position) else Reason.BAD_GEOMETRY


def transfer_syntax(dataset: pydicom.Dataset) -> str:
    """The transfer syntax that is stated, else the one that the elements were read in, else explicit VR little endian."""
    stated = _meta(dataset, "TransferSyntaxUID").strip() or text(dataset, "AvailableTransferSyntaxUID")
    if stated:
        return stated
    implicit, little = dataset.original_encoding
    if implicit is None:
        return UNCOMPRESSED[1]
    return UNCOMPRESSED[0] if implicit else UNCOMPRESSED[1] if little else UNCOMPRESSED[2]


def _meta(dataset: pydicom.Dataset, keyword: str) -> str:
    return str(getattr(dataset, "file_meta", {}).get(keyword, ""))


def _modality(dataset: pydicom.Dataset) -> str:
    code = text(dataset, "Modality").upper()
    return code if code in MODALITIES else "unknown"  # a header can hold any text under Modality, also a name


def _component(types: tuple[str, ...], stated: str) -> str:
    if stated.upper() in _COMPONENTS:
        return _COMPONENTS[stated.upper()]
    for value in types[2:]:
        # Philips writes M_FFE, P_SE and the like for the same four components.
        part = value if value in _COMPONENTS else re.sub(r"^([MPRI])_[A-Z0-9]+$", r"\1", value)
        if part in _COMPONENTS:
            return _COMPONENTS[part]
    return ""
