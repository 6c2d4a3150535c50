"""The header of one DICOM file, without its pixels, and what can be decided from it alone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any, BinaryIO

import pydicom
from pydicom.tag import BaseTag, Tag

from medssl.archive.headers import acquisition, diffusion, frames, nuclear, projections, siemens
from medssl.archive.headers.elements import (
    Header,
    count,
    decimals,
    number,
    number_warnings,
    numbers,
    parsed,
    text,
    texts,
    tolerant,
    whole,
)
from medssl.archive.headers.flaws import flaw
from medssl.archive.headers.frames import Frame, frame_count, frames_of
from medssl.archive.headers.kinds import is_coloured, is_unplaced, kind_of
from medssl.archive.headers.pixel_element import DEFLATED, UNCOMPRESSED, Bytes, frame_places
from medssl.archive.headers.plain import META, PlainHeader
from medssl.archive.headers.projections import as_image, is_projection
from medssl.archive.instance import UNNUMBERED, WHOLE, Instance
from medssl.archive.limits import inflated, most_unpacked
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
    "ComplexImageComponent DiffusionBValue DiffusionGradientOrientation InstanceNumber SliceLocation StackID SeriesDescription "
    "AccessionNumber CorrectedImage AttenuationCorrected"
)
Field = Callable[[Header], Any]
_NUMBERS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
"""Where a flaw in how a number is written is told."""
IDENTITY: dict[str, Field] = {
    "modality": lambda header: _modality(header),
    "patient": lambda header: "\n".join(filter(None, (text(header, "PatientID"), text(header, "IssuerOfPatientID")))),
    "study": lambda header: text(header, "StudyInstanceUID"),
    "accession": lambda header: text(header, "AccessionNumber"),
    "series": lambda header: text(header, "SeriesInstanceUID"),
    "uid": lambda header: text(header, "SOPInstanceUID"),
    "sop_class": lambda header: text(header, "SOPClassUID") or _meta(header, "MediaStorageSOPClassUID"),
    "syntax": lambda header: transfer_syntax(header),
}
"""What a header says of any object, by the fields of an instance."""
_PLACE: dict[str, Field] = {
    "position": lambda header: numbers(header, "ImagePositionPatient"),
    "orientation": lambda header: numbers(header, "ImageOrientationPatient"),
    "pixel_spacing": lambda header: numbers(header, "PixelSpacing"),
    "between_slices": lambda header: tolerant(header, "SpacingBetweenSlices"),
    "thickness": lambda header: tolerant(header, "SliceThickness"),
    "decimals": lambda header: decimals(header, "ImagePositionPatient"),
    "location": lambda header: tolerant(header, "SliceLocation"),
    "frame_of_reference": lambda header: text(header, "FrameOfReferenceUID"),
    "rows": lambda header: count(header, "Rows", 0),
    "columns": lambda header: count(header, "Columns", 0),
    "warnings": lambda header: number_warnings(header, _NUMBERS),
}
_ORDER: dict[str, Field] = {
    "taken": lambda header: acquisition.acquisition(header),
    "description": lambda header: text(header, "SeriesDescription"),
    "image_type": lambda header: _image_type(header),
    "component": lambda header: _component(_image_type(header), text(header, "ComplexImageComponent")),
    "echo": lambda header: "/".join((text(header, "EchoNumbers"), *(f"{value:.2f}" for value in tolerant(header, "EchoTime")))),
    "corrected": lambda header: _corrected(header),
    "inversion": lambda header: text(header, "InversionTime"),
    "flip": lambda header: text(header, "FlipAngle"),
    "reconstruction": lambda header: text(header, "ConvolutionKernel"),
    "stack": lambda header: text(header, "StackID"),
    "temporal": lambda header: text(header, "TemporalPositionIdentifier"),
    "acquisition": lambda header: text(header, "AcquisitionNumber"),
    "trigger": lambda header: text(header, "TriggerTime"),
    "diffusion": lambda header: diffusion.diffusion(header).key,
    "b_value": lambda header: diffusion.diffusion(header).b_value,
    "number": lambda header: whole(header, "InstanceNumber", UNNUMBERED),
    "acquired": lambda header: text(header, "AcquisitionDateTime") or text(header, "AcquisitionDate") + text(header, "AcquisitionTime"),
}
_BITS: dict[str, Field] = {
    "photometric": lambda header: text(header, "PhotometricInterpretation").upper(),
    "bits_allocated": lambda header: _allocated(header),
    "bits_stored": lambda header: _stored(header),
    "high_bit": lambda header: count(header, "HighBit", max(_stored(header) - 1, 0)),
    "signed": lambda header: count(header, "PixelRepresentation", 0),
    "slope": lambda header: number(header, "RescaleSlope", 1.0),
    "intercept": lambda header: number(header, "RescaleIntercept", 0.0),
    "padding": lambda header: tolerant(header, "PixelPaddingValue")[:1] + tolerant(header, "PixelPaddingRangeLimit")[:1],
}
OF_A_SLICE = {**_PLACE, **_ORDER, **_BITS}
"""What the header of one slice says."""
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_PLAIN: list[Any] = [
    Tag(tag) for tag in (*_WANTED.split(), *acquisition.ELEMENTS.split(), *projections.ELEMENTS.split(), *diffusion.TAGS, *frames.ELEMENTS)
]
_TAGS: list[Any] = [*_PLAIN, *(Tag(tag) for tag in (*nuclear.ELEMENTS, *siemens.ELEMENTS))]

PLAIN_TAGS = frozenset({*map(int, _PLAIN), *META, 0x00080005})
"""What is kept of a header that is not parsed by pydicom, which has character sets, vectors of frames and Siemens' own header to itself."""
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


def looks_like_dicom(start: bytes) -> bool:
    """The mark after the preamble, or a first element of a group that DICOM files begin with."""
    return start[128:132] == b"DICM" or start[:2] in (b"\x02\x00", b"\x08\x00")


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
    """The tags that an index reads of this header, of which ImageType must be there: a source need bring no others."""
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
    return with_places(from_header(dataset, instance), file, file.tell())


def with_places(found: list[Instance], file: BinaryIO, at: int, head: bytes = b"") -> list[Instance]:
    """The slices of one file with where their pixels lie, whose element begins at `at`; truncated where they are not all there.

    `head`: the first bytes of the file, which need not be read again.
    """
    if all(one.reason for one in found) or found[0].syntax == DEFLATED:
        return found
    count = found[0].frames or (1 if found[0].tile else len(found))
    places = frame_places(Bytes(file, head), at, found[0], found[0].size, count)
    if places is None:
        # The file ends as one.
        return [replace(found[0], frame=WHOLE, tile=(), reason=Reason.TRUNCATED.value)]
    known = at if found[0].syntax in UNCOMPRESSED else -1
    of_each = ((one, places[0 if one.tile else number]) for number, one in enumerate(found))
    return [replace(one, pixels_at=known, frame_at=place.at, frame_length=place.length) for one, place in of_each]


def from_header(header: Header, instance: Instance) -> list[Instance]:
    """`instance` filled from a header, one for each slice, with the reason where the header alone decides it.

    Raises the errors of `PARSE_ERRORS`, `OSError`, `struct.error` or `zlib.error` for values that are broken, and `NotPlain`.
    """
    if isinstance(header, pydicom.Dataset) and len(header) == 0 and len(getattr(header, "file_meta", ())) == 0:
        raise pydicom.errors.InvalidDicomError("no elements")
    found = replace(instance, kind="dicom", **_read(header, IDENTITY))
    slices = slices_of(found, header)
    if isinstance(slices, Reason):
        return [replace(found, reason=slices.value)]
    if slices is not None:
        return list(_slices(found, slices))
    one = replace(found, **_read(header, OF_A_SLICE))
    return [as_image(one, header) if is_projection(found, header) else judged(one, header)]


def slices_of(found: Instance, header: Header) -> list[Frame] | Reason | None:
    """The slices of an object that holds many, None where it is one or an image by itself, or why it is none."""
    reason = kind_of(found, header)
    if reason is not None:
        return reason
    if is_projection(found, header):
        return None
    if is_coloured(header):
        return Reason.COLOUR
    slices = frames_of(header, frame_count(header))
    return Reason.PROJECTION if slices is None and is_unplaced(found, header) else slices


def _read(header: Header, fields: Mapping[str, Field]) -> dict[str, Any]:
    return {name: read(header) for name, read in fields.items()}


def _slices(found: Instance, frames: Sequence[Frame]) -> Iterator[Instance]:
    """Tiles of one plane share its header, which is read once."""
    header, filled = None, found
    for frame in frames:
        if frame.header is not header:
            header, filled = frame.header, replace(found, **_read(frame.header, OF_A_SLICE))
        yield judged(_framed(filled, frame), frame.header)


def _framed(filled: Instance, frame: Frame) -> Instance:
    one = replace(filled, frame=frame.number, dimensions=frame.dimensions)
    if frame.position:
        one = replace(one, position=frame.position, decimals=-1)
    if frame.tile is None:
        return one
    rows, columns, *tile = frame.tile
    return replace(one, rows=rows, columns=columns, tile=tuple(tile))


def judged(filled: Instance, header: Header) -> Instance:
    """With the reason for which the slice cannot be used, if there is one."""
    reason = flaw(filled, header)
    return replace(filled, reason=reason.value) if reason else filled


def _image_type(header: Header) -> tuple[str, ...]:
    return tuple(value.upper() for value in texts(header, "ImageType"))


def _corrected(header: Header) -> tuple[str, ...]:
    """As CorrectedImage says it; enhanced objects have an element for each correction."""
    stated = tuple(value.upper() for value in texts(header, "CorrectedImage"))
    return (*stated, "ATTN") if "ATTN" not in stated and text(header, "AttenuationCorrected").upper() == "YES" else stated


def _allocated(header: Header) -> int:
    return count(header, "BitsAllocated", 0)


def _stored(header: Header) -> int:
    return count(header, "BitsStored", _allocated(header))


def transfer_syntax(dataset: Header) -> str:
    """The transfer syntax that is stated, else the one that the elements were read in, else explicit VR little endian."""
    stated = _meta(dataset, "TransferSyntaxUID").strip() or text(dataset, "AvailableTransferSyntaxUID")
    if stated:
        return stated
    implicit, little = parsed(dataset).original_encoding
    if implicit is None:
        return UNCOMPRESSED[1]
    return UNCOMPRESSED[0] if implicit else UNCOMPRESSED[1] if little else UNCOMPRESSED[2]


def _meta(dataset: Header, keyword: str) -> str:
    if isinstance(dataset, PlainHeader):
        return text(dataset, keyword)
    return str(getattr(dataset, "file_meta", {}).get(keyword, ""))


def _modality(dataset: Header) -> str:
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
