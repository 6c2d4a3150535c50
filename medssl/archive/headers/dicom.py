"""The header of one DICOM file, without its pixels, and what can be decided from it alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from io import BytesIO
from typing import Any, BinaryIO, Literal

import pydicom
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

from medssl.archive.geometry import usable_orientation, usable_position, usable_spacing
from medssl.archive.instance import Instance
from medssl.archive.limits import inflated, most_unpacked
from medssl.archive.narrowing import fits_float32
from medssl.archive.nifti.modality import MODALITIES
from medssl.archive.outcomes import Reason

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_KINDS: tuple[tuple[str, Reason], ...] = (
    ("1.2.840.10008.1.3.10", Reason.DICOMDIR),
    (_STORAGE + "88.", Reason.STRUCTURED_REPORT),
    (_STORAGE + "66.4", Reason.SEGMENTATION),
    (_STORAGE + "66.5", Reason.SEGMENTATION),
    (_STORAGE + "66.7", Reason.SEGMENTATION),
    (_STORAGE + "66.6", Reason.RAW_DATA),
    (_STORAGE + "66.", Reason.REGISTRATION),
    (_STORAGE + "66", Reason.RAW_DATA),
    (_STORAGE + "4.2", Reason.RAW_DATA),
    (_STORAGE + "481.", Reason.RADIOTHERAPY),
    (_STORAGE + "104.", Reason.DOCUMENT),
    (_STORAGE + "11.", Reason.PRESENTATION_STATE),
    (_STORAGE + "9.", Reason.WAVEFORM),
    (_STORAGE + "67", Reason.VALUE_MAP),
    (_STORAGE + "7", Reason.SECONDARY_CAPTURE),
)
"""What is no image of a patient, by the start of the SOP class; the first that fits counts."""
_ENHANCED = tuple(_STORAGE + tail for tail in ("2.1", "2.2", "4.1", "4.3", "4.4", "128.1", "130", "30"))
_PLANAR = tuple(_STORAGE + tail for tail in ("2", "4", "128"))
"""CT, MR and PET images: a slice each, which must say where it lies."""

_COMPONENTS = {
    **dict.fromkeys(("M", "MAGNITUDE"), "M"),
    **dict.fromkeys(("P", "PHASE", "PHASE MAP", "PHASE_MAP"), "P"),
    **dict.fromkeys(("R", "REAL"), "R"),
    **dict.fromkeys(("I", "IMAGINARY"), "I"),
}
_DEFLATED = "1.2.840.10008.1.2.1.99"
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", _DEFLATED)

_WANTED = (
    "SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID PatientID IssuerOfPatientID Modality ImageType Rows Columns "
    "NumberOfFrames SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit PixelRepresentation RescaleSlope "
    "RescaleIntercept ModalityLUTSequence PixelPaddingValue PixelPaddingRangeLimit ImagePositionPatient ImageOrientationPatient "
    "PixelSpacing SpacingBetweenSlices SliceThickness FrameOfReferenceUID EchoNumbers EchoTime InversionTime FlipAngle ConvolutionKernel "
    "TemporalPositionIdentifier AcquisitionNumber TriggerTime AcquisitionDate AcquisitionTime AcquisitionDateTime "
    "ComplexImageComponent DiffusionBValue DiffusionGradientOrientation"
)
_SIEMENS, _GE, _PHILIPS = 0x00190010, 0x00430010, 0x20010010
_PRIVATE = (_SIEMENS, 0x0019100C, 0x0019100E, _GE, 0x00431039, _PHILIPS, 0x20011003, 0x00191004)
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_TAGS: list[Any] = [Tag(tag) for tag in (*_WANTED.split(), *_PRIVATE)]

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
    if meta is not None and meta.get("TransferSyntaxUID") == _DEFLATED:
        # pydicom would unpack without a limit.
        unpacked = BytesIO(inflated(file, most_unpacked(packed)))
        dataset = pydicom.filereader.read_dataset(unpacked, False, True, stop_when=stop, specific_tags=wanted)
        dataset.file_meta = pydicom.dataset.FileMetaDataset(meta)
        return dataset
    file.seek(0)
    return pydicom.filereader.read_partial(file, stop, force=bare, specific_tags=wanted)


def _not_of_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return bool(tag.group != 2)


def _nonsense(tag: BaseTag, vr: str | None, length: int) -> bool:
    """Zeros, as a copy that failed leaves them, would be parsed as millions of empty elements."""
    if tag.group == 0:
        raise pydicom.errors.InvalidDicomError("no element of a file")
    return False


def _pixels_or_nonsense(tag: BaseTag, vr: str | None, length: int) -> bool:
    return _nonsense(tag, vr, length) or tag in _PIXELS


def read_instance(file: BinaryIO, instance: Instance) -> Instance:
    """`instance` filled from the header of an open DICOM file, with the reason where the header alone decides it.

    Raises the errors of `PARSE_ERRORS`, `OSError`, `struct.error` or `zlib.error` for what is not DICOM or broken.
    """
    dataset = read_dataset(file, _TAGS, pixels=False)
    at = file.tell()
    found = from_header(dataset, instance)
    if found.reason:
        return found
    if _truncated(file, found, at):
        return replace(found, reason=Reason.TRUNCATED.value)
    return replace(found, pixels_at=at) if found.syntax in UNCOMPRESSED and found.syntax != _DEFLATED else found


def from_header(dataset: pydicom.Dataset, instance: Instance) -> Instance:
    """`instance` filled from a header, with the reason where the header alone decides it.

    Raises the errors of `PARSE_ERRORS`, `OSError`, `struct.error` or `zlib.error` for values that are broken.
    """
    if len(dataset) == 0 and len(getattr(dataset, "file_meta", ())) == 0:
        raise pydicom.errors.InvalidDicomError("no elements")
    found = replace(
        instance,
        kind="dicom",
        modality=_modality(dataset),
        patient="\n".join(filter(None, (_text(dataset, "PatientID"), _text(dataset, "IssuerOfPatientID")))),
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        uid=_text(dataset, "SOPInstanceUID"),
        sop_class=_text(dataset, "SOPClassUID") or _meta(dataset, "MediaStorageSOPClassUID"),
        syntax=transfer_syntax(dataset),
    )
    reason = _kind(found, dataset)
    if reason is not None:
        return replace(found, reason=reason.value)
    found = _with_pixels(_with_order(_with_place(found, dataset), dataset), dataset)
    reason = _flaw(found, dataset)
    return replace(found, reason=reason.value if reason else "")


def _kind(found: Instance, dataset: pydicom.Dataset) -> Reason | None:
    """What the object is, if it is none of one patient's slices."""
    for start, reason in _KINDS:
        # A class of the standard ends here or goes on with a dot: 1.1.7 is no start of 1.1.77.
        if found.sop_class == start or found.sop_class.startswith(start if start.endswith(".") else start + "."):
            return reason
    if not found.uid or not found.series:
        return Reason.NO_UID
    if "Rows" not in dataset or "Columns" not in dataset:
        return Reason.NO_PIXELS
    types = [value.upper() for value in _texts(dataset, "ImageType")]
    if "LOCALIZER" in types or "SCOUT" in types:
        return Reason.LOCALIZER
    if int(_number(dataset, "SamplesPerPixel", 1)) != 1:
        return Reason.COLOUR
    if found.sop_class in _ENHANCED:
        return Reason.ENHANCED
    if _number(dataset, "NumberOfFrames", 1) > 1:
        return Reason.MULTIFRAME
    if "MOSAIC" in types:
        return Reason.MOSAIC
    if "ImagePositionPatient" not in dataset and found.sop_class not in _PLANAR:
        return Reason.PROJECTION
    return None


def _with_place(found: Instance, dataset: pydicom.Dataset) -> Instance:
    return replace(
        found,
        position=_numbers(dataset, "ImagePositionPatient"),
        orientation=_numbers(dataset, "ImageOrientationPatient"),
        pixel_spacing=_numbers(dataset, "PixelSpacing"),
        between_slices=_tolerant(dataset, "SpacingBetweenSlices"),
        thickness=_tolerant(dataset, "SliceThickness"),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        rows=_count(dataset, "Rows", 0),
        columns=_count(dataset, "Columns", 0),
    )


def _with_order(found: Instance, dataset: pydicom.Dataset) -> Instance:
    types = tuple(value.upper() for value in _texts(dataset, "ImageType"))
    return replace(
        found,
        image_type=types,
        component=_component(types, _text(dataset, "ComplexImageComponent")),
        echo="/".join((_text(dataset, "EchoNumbers"), *(f"{value:.2f}" for value in _tolerant(dataset, "EchoTime")))),
        inversion=_text(dataset, "InversionTime"),
        flip=_text(dataset, "FlipAngle"),
        kernel="\\".join(_texts(dataset, "ConvolutionKernel")),
        temporal=_text(dataset, "TemporalPositionIdentifier"),
        acquisition=_text(dataset, "AcquisitionNumber"),
        trigger=_text(dataset, "TriggerTime"),
        diffusion=_diffusion(dataset),
        acquired=_text(dataset, "AcquisitionDateTime") or _text(dataset, "AcquisitionDate") + _text(dataset, "AcquisitionTime"),
    )


def _with_pixels(found: Instance, dataset: pydicom.Dataset) -> Instance:
    bits = _count(dataset, "BitsAllocated", 0)
    stored = _count(dataset, "BitsStored", bits)
    return replace(
        found,
        photometric=_text(dataset, "PhotometricInterpretation").upper(),
        bits_allocated=bits,
        bits_stored=stored,
        high_bit=_count(dataset, "HighBit", max(stored - 1, 0)),
        signed=_count(dataset, "PixelRepresentation", 0),
        slope=_number(dataset, "RescaleSlope", 1.0),
        intercept=_number(dataset, "RescaleIntercept", 0.0),
        padding=_tolerant(dataset, "PixelPaddingValue"),
    )


def _flaw(found: Instance, dataset: pydicom.Dataset) -> Reason | None:
    """Why a slice cannot be used."""
    if "ModalityLUTSequence" in dataset:
        return Reason.MODALITY_TABLE
    if not _decodable(found.syntax):
        return Reason.NO_DECODER
    sizes = found.rows > 0 and found.columns > 0
    scaling = fits_float32(found.slope, abs(found.slope) * 2.0 ** min(found.bits_allocated, 64) + abs(found.intercept))
    grey = found.photometric in ("MONOCHROME1", "MONOCHROME2")
    if not (sizes and found.has_usable_bits and scaling and grey):
        return Reason.BAD_PIXELS
    spacing = len(found.pixel_spacing) == 2 and usable_spacing(found.pixel_spacing)
    position = len(found.position) == 3 and usable_position(found.position)
    return None if spacing and position and usable_orientation(found.orientation) else Reason.BAD_GEOMETRY


def _decodable(syntax: str) -> bool:
    if syntax in UNCOMPRESSED:
        return True
    from pydicom.pixels import get_decoder

    try:
        return bool(get_decoder(pydicom.uid.UID(syntax)).is_available)
    except NotImplementedError:
        return False


def pixel_element(file: BinaryIO, at: int, syntax: str) -> tuple[bytes, int] | None:
    """VR and length of the PixelData element at `at`, the file being left at its first byte; None where there is none."""
    big = syntax == UNCOMPRESSED[2]
    file.seek(at)
    start = file.read(8)
    if start[:4] != (b"\x7f\xe0\x00\x10" if big else b"\xe0\x7f\x10\x00") or len(start) < 8:
        return None
    order: Literal["big", "little"] = "big" if big else "little"
    # What stands there decides, not the transfer syntax: some writers state explicit VR and write implicit.
    if start[4:6] in (b"OB", b"OW"):
        length = file.read(4)
        return (start[4:6], int.from_bytes(length, order)) if len(length) == 4 else None
    return b"", int.from_bytes(start[4:], order)


def _truncated(file: BinaryIO, found: Instance, at: int) -> bool:
    """Does the file end before its pixels do, or are there fewer than the image needs?"""
    if found.syntax == _DEFLATED:
        return False
    element = pixel_element(file, at, found.syntax)
    if element is None:
        return True
    if found.syntax in UNCOMPRESSED:
        needed = found.rows * found.columns * found.bits_allocated // 8
        return element[1] < needed or found.size - file.tell() < needed
    return not _fragments_complete(file, found.size)


def _fragments_complete(file: BinaryIO, size: int) -> bool:
    """Walk the items of encapsulated pixel data by their lengths alone."""
    while True:
        start = file.read(8)
        if len(start) < 8:
            return False
        if start[:4] == b"\xfe\xff\xdd\xe0":
            return True
        length = int.from_bytes(start[4:], "little")
        if start[:4] != b"\xfe\xff\x00\xe0" or length > size - file.tell():
            return False
        file.seek(length, 1)


def transfer_syntax(dataset: pydicom.Dataset) -> str:
    """The transfer syntax that is stated, else the one that the elements were read in, else explicit VR little endian."""
    stated = _meta(dataset, "TransferSyntaxUID").strip() or _text(dataset, "AvailableTransferSyntaxUID")
    if stated:
        return stated
    implicit, little = dataset.original_encoding
    if implicit is None:
        return UNCOMPRESSED[1]
    return UNCOMPRESSED[0] if implicit else UNCOMPRESSED[1] if little else UNCOMPRESSED[2]


def _meta(dataset: pydicom.Dataset, keyword: str) -> str:
    return str(getattr(dataset, "file_meta", {}).get(keyword, ""))


def _modality(dataset: pydicom.Dataset) -> str:
    code = _text(dataset, "Modality").upper()
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


def _diffusion(dataset: pydicom.Dataset) -> str:
    """b-value and direction as text, from the standard elements or those of Siemens, GE and Philips; only ever compared."""
    creator = {tag: str(dataset[tag].value) for tag in (_SIEMENS, _GE, _PHILIPS) if tag in dataset}
    value = _texts(dataset, "DiffusionBValue")
    direction = _texts(dataset, "DiffusionGradientOrientation")
    if "SIEMENS" in creator.get(_SIEMENS, ""):
        value, direction = value or _raw(dataset, 0x0019100C), direction or _raw(dataset, 0x0019100E)
    if "GEMS" in creator.get(_GE, ""):
        value = value or _raw(dataset, 0x00431039)
    if "Philips" in creator.get(_PHILIPS, ""):
        value = value or _raw(dataset, 0x20011003)
    return "\\".join((*value, *direction))


def _raw(dataset: pydicom.Dataset, tag: int) -> list[str]:
    if tag not in dataset:
        return []
    value = dataset[tag].value
    if isinstance(value, bytes):
        return [value.hex()]
    return [str(part) for part in value] if isinstance(value, MultiValue | list) else [str(value)]


def _values(dataset: pydicom.Dataset, keyword: str) -> list[Any]:
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


def _texts(dataset: pydicom.Dataset, keyword: str) -> list[str]:
    return [str(value).strip(" \0").encode("utf-8", "replace").decode() for value in _values(dataset, keyword)]


def _text(dataset: pydicom.Dataset, keyword: str) -> str:
    return "\\".join(_texts(dataset, keyword))


def _numbers(dataset: pydicom.Dataset, keyword: str) -> tuple[float, ...]:
    return tuple(float(value) for value in _values(dataset, keyword))


def _number(dataset: pydicom.Dataset, keyword: str, missing: float) -> float:
    values = _numbers(dataset, keyword)
    if len(values) > 1:
        raise ValueError(f"{keyword} has {len(values)} values")
    return values[0] if values else missing


def _count(dataset: pydicom.Dataset, keyword: str, missing: int) -> int:
    """What the standard keeps in 16 bits: a file can state it as any number, of any length."""
    value = _number(dataset, keyword, missing)
    if not 0 <= value <= 0xFFFF:
        raise ValueError(f"{keyword} is no number of 16 bits")
    return int(value)


def _tolerant(dataset: pydicom.Dataset, keyword: str) -> tuple[float, ...]:
    """Numbers that nothing depends on: unreadable ones are as good as absent."""
    try:
        return _numbers(dataset, keyword)
    except (ValueError, TypeError):
        return ()
