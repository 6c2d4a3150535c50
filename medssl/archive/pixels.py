"""The stored values of one slice: straight from the file where they are not compressed, through pydicom's decoders where they are."""

from __future__ import annotations

import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medssl.archive.dicom import PARSE_ERRORS, UNCOMPRESSED, pixel_element, read_dataset
from medssl.archive.instance import Instance
from medssl.errors import ArchiveError

_WANTED = (
    "Rows Columns SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit PixelRepresentation NumberOfFrames PixelData"
)
_BIG_ENDIAN = UNCOMPRESSED[2]


class PixelProblem(ArchiveError):
    """The pixels of one file cannot be had; the message tells why without naming the file."""


def stored_values(file: BinaryIO, instance: Instance) -> NDArray[Any]:
    """(rows, columns) integers before rescaling, sign and unused bits resolved; raises `PixelProblem`."""
    try:
        if instance.syntax in UNCOMPRESSED:
            raw = _at_offset(file, instance) if instance.pixels_at >= 0 else _parsed(file, instance)
            return _significant(raw, instance)
        decoded = read_dataset(file, _WANTED.split(), pixels=True).pixel_array
    except (*PARSE_ERRORS, OSError, struct.error, zlib.error, RuntimeError) as error:
        if isinstance(error, PixelProblem):
            raise
        raise PixelProblem(f"the pixels cannot be decoded ({type(error).__name__}); the file is damaged or has changed") from None
    if decoded.shape != (instance.rows, instance.columns):
        raise PixelProblem("the decoded image has not the size that the header says")
    return _significant(np.asarray(decoded), instance) if decoded.dtype.itemsize * 8 == instance.bits_allocated else np.asarray(decoded)


def rescaled(stored: NDArray[Any], instance: Instance) -> NDArray[np.float64]:
    """Stored values x RescaleSlope + RescaleIntercept of this very slice."""
    return stored.astype(np.float64) * instance.slope + instance.intercept


def whole_range(instance: Instance) -> tuple[float, float] | None:
    """Lowest and highest rescaled value the bits allow, where all are whole numbers; else None."""
    if not (float(instance.slope).is_integer() and float(instance.intercept).is_integer()):
        return None
    span = 2**instance.bits_stored
    first = -span // 2 if instance.signed else 0
    ends = sorted(value * instance.slope + instance.intercept for value in (first, first + span - 1))
    return ends[0], ends[1]


def _at_offset(file: BinaryIO, instance: Instance) -> NDArray[Any]:
    element = pixel_element(file, instance.pixels_at, instance.syntax)
    if element is None:
        raise PixelProblem("the pixels are not where they were when the archive was indexed; index it again")
    return _shaped(file.read(_length(instance)), instance, big=instance.syntax == _BIG_ENDIAN, words=element[0] == b"OW")


def _parsed(file: BinaryIO, instance: Instance) -> NDArray[Any]:
    dataset = read_dataset(file, _WANTED.split(), pixels=True)
    return _shaped(bytes(dataset.PixelData)[: _length(instance)], instance, big=False, words=False)


def _length(instance: Instance) -> int:
    return instance.rows * instance.columns * instance.bits_allocated // 8


def _shaped(content: bytes, instance: Instance, big: bool, words: bool) -> NDArray[Any]:
    if len(content) != _length(instance):
        raise PixelProblem("the pixels end before they should")
    if instance.bits_allocated == 8 and big and words:
        # Big endian writes 8-bit pixels as swapped 16-bit words.
        content = np.frombuffer(content + b"\0" * (len(content) % 2), ">u2").astype("<u2").tobytes()[: len(content)]
    kind = np.dtype(f"u{instance.bits_allocated // 8}").newbyteorder(">" if big else "<")
    return np.frombuffer(content, kind).reshape(instance.rows, instance.columns)


def _significant(raw: NDArray[Any], instance: Instance) -> NDArray[Any]:
    """The BitsStored bits below HighBit, with their sign; what overlays or padding left in the others goes."""
    width = instance.bits_allocated
    unsigned, signed = (np.dtype(np.uint16), np.dtype(np.int16)) if width == 16 else (np.dtype(np.uint8), np.dtype(np.int8))
    # Up to the top first: then shifting down takes the unused bits below away and, for signed values, copies the sign.
    up, down = width - 1 - instance.high_bit, width - instance.bits_stored
    values: NDArray[Any] = np.left_shift(raw.astype(unsigned), up, dtype=unsigned)
    shifted: NDArray[Any] = np.right_shift(values.view(signed if instance.signed else unsigned), down)
    return shifted
