"""imagecodecs as pydicom's decoder of JPEG, JPEG-LS and JPEG 2000: a plugin as `pydicom.pixels` documents them.

It is asked for by name, so that the pixels of an archive do not depend on which other decoders happen to be installed. A stream says
its size before anything is decoded: a damaged one must not have gigabytes set aside for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder, pixel_array

NAME = "medssl"
"""Under which pydicom knows the plugin."""

Decode = Callable[[bytes], NDArray[Any]]

_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
_CODECS: dict[str, Decode] = {
    **dict.fromkeys(_JPEG, imagecodecs.jpeg8_decode),
    **dict.fromkeys(_JPEG_LS, imagecodecs.jpegls_decode),
    # One thread each: an index is read by as many processes as there are cores.
    **dict.fromkeys(_JPEG_2000, partial(imagecodecs.jpeg2k_decode, numthreads=1)),
}
DECODER_DEPENDENCIES = dict.fromkeys(_CODECS, ("imagecodecs",))
"""For pydicom: what it names where a decoder is missing."""

_PIXEL_DATA = 0x7FE00010
_START_OF_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_START_OF_CODESTREAM = b"\xff\x4f\xff\x51"


def is_available(syntax: str) -> bool:
    """For pydicom: whether imagecodecs was built with what this transfer syntax needs."""
    if syntax in _JPEG_2000:
        return bool(imagecodecs.JPEG2K.available)
    if syntax in _JPEG_LS:
        return bool(imagecodecs.JPEGLS.available)
    # Built on an old libjpeg it would read 8 bits only.
    return bool(syntax in _CODECS and imagecodecs.JPEG8.available and imagecodecs.JPEG8.all_precisions)


def can_decode(syntax: str) -> bool:
    """Whether compressed pixels of this transfer syntax can be read here."""
    return syntax == uid.RLELossless or is_available(syntax)


def decoded(dataset: pydicom.Dataset, frame: int = 0) -> NDArray[Any]:
    """A decoded frame of a dataset, signed as its header says; three values a pixel come as red, green and blue."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in _JPEG_2000:
        # pydicom searches the boxes of a JP2 file, for ever where one has length 0; a bare codestream has none.
        stream = get_frame(dataset.PixelData, frame, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
        start = stream.find(_START_OF_CODESTREAM)
        if start < 0:
            raise ValueError("the stream has no image size")
        dataset, frame = _with_stream(dataset, stream[start:]), 0
    plugin = NAME if syntax in _CODECS else "pydicom" if syntax == uid.RLELossless else ""
    image: NDArray[Any] = pixel_array(dataset, index=frame, decoding_plugin=plugin)
    return image


def _with_stream(dataset: pydicom.Dataset, stream: bytes) -> pydicom.Dataset:
    """The same image with one frame, this one; pydicom's own copy would share its elements."""
    single = pydicom.Dataset({tag: dataset[tag] for tag in dataset.keys() if tag != _PIXEL_DATA})  # noqa: SIM118 - no pixels are touched
    single.file_meta = dataset.file_meta
    single.NumberOfFrames = 1
    single.add_new("PixelData", "OB", encapsulate([stream]))
    return single


class FrameHeader(NamedTuple):
    """What a header says of a grey frame."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int


def decoded_stream(stream: bytes, syntax: str, header: FrameHeader) -> NDArray[Any] | None:
    """The decoded frame without pydicom, its bits as stored; None where the stream and the header do not agree simply.

    Raises `ValueError` or what the codec raises for a stream that is damaged.
    """
    if syntax not in _CODECS or header.high_bit != header.bits_stored - 1:
        return None
    if syntax in _JPEG_2000:
        stream = stream[max(stream.find(_START_OF_CODESTREAM), 0) :]
    found = _size_of_codestream(stream) if syntax in _JPEG_2000 else _size_of_jpeg(stream)
    if found[:3] != (header.rows, header.columns, 1) or found[3] < header.bits_stored:
        return None
    array = _CODECS[syntax](stream)
    return array if array.shape == (header.rows, header.columns) and array.itemsize * 8 == header.bits_allocated else None


def decode_frame(stream: bytes, runner: Any) -> bytes:
    """For pydicom: the decoded bytes of one frame; `runner` is its `DecodeRunner`."""
    syntax, wanted = runner.transfer_syntax, (runner.rows, runner.columns, runner.samples_per_pixel)
    found = _size_of_codestream(stream) if syntax in _JPEG_2000 else _size_of_jpeg(stream)
    if found[:3] != wanted:
        raise ValueError(f"the stream holds rows, columns and samples {found[:3]}, not {wanted}")
    array = np.ascontiguousarray(_CODECS[syntax](stream) if runner.samples_per_pixel == 1 else _coloured(stream, runner))
    bits = array.itemsize * 8
    if bits > runner.bits_allocated or (syntax in _JPEG and bits < runner.bits_stored):
        raise ValueError(f"the stream holds {bits} bits, not {runner.bits_stored}")
    # As few bytes as the stream's own precision needs, which may be fewer than the header says.
    runner.set_option("bits_allocated", bits)
    return array.tobytes()


def _coloured(stream: bytes, runner: Any) -> NDArray[Any]:
    """Three values a pixel, in the colours that the runner then says."""
    runner.set_option("planar_configuration", 0)
    if runner.transfer_syntax in _JPEG:
        # As they lie in the stream: pydicom knows by its marks, and by the header, whether they are to be converted.
        return imagecodecs.jpeg8_decode(stream, colorspace="YCBCR", outcolorspace="YCBCR")
    if runner.transfer_syntax in _JPEG_2000 and runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
        runner.set_option("photometric_interpretation", "RGB")
    return _CODECS[runner.transfer_syntax](stream)


def _size_of_jpeg(stream: bytes) -> tuple[int, int, int, int]:
    """Rows, columns, samples and bits of a JPEG or JPEG-LS stream that is whole."""
    # Neither marker can occur within the compressed data. Decoders fill what is missing with grey and say nothing.
    if stream.rfind(_END) < stream.rfind(_START_OF_SCAN):
        raise ValueError("the stream is cut off")
    at = 2
    while at + 10 <= len(stream) and stream[at] == 0xFF:
        if stream[at + 1] in _START_OF_FRAME:
            rows, columns = int.from_bytes(stream[at + 5 : at + 7]), int.from_bytes(stream[at + 7 : at + 9])
            return rows, columns, stream[at + 9], stream[at + 4]
        # A marker may be preceded by fill bytes; every other marker here is followed by the length of its segment.
        at += 1 if stream[at + 1] == 0xFF else 2 + int.from_bytes(stream[at + 2 : at + 4])
    raise ValueError("the stream has no frame header")


def _size_of_codestream(stream: bytes) -> tuple[int, int, int, int]:
    """Rows, columns, samples and bits of a JPEG 2000 codestream."""
    if len(stream) < 43:
        raise ValueError("the stream is cut off")
    right, bottom, left, top = (int.from_bytes(stream[at : at + 4]) for at in range(8, 24, 4))
    return bottom - top, right - left, int.from_bytes(stream[40:42]), (stream[42] & 0x7F) + 1


for _syntax in _CODECS:
    get_decoder(_syntax).add_plugin(NAME, (__name__, decode_frame.__name__))
