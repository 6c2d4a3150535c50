"""The stored values of one slice: straight from the file where they are not compressed, through `decoders` where they are."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from itertools import chain, groupby
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray

from medssl.archive.decoders import decoded
from medssl.archive.headers.dicom import PARSE_ERRORS, read_dataset, transfer_syntax
from medssl.archive.headers.pixel_element import UNCOMPRESSED, pixel_element, plane_length
from medssl.archive.instance import WHOLE, Instance
from medssl.errors import ArchiveError
from medssl.source import ArchiveSource, FrameSource

_WANTED = (
    "Rows Columns SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit PixelRepresentation NumberOfFrames PixelData"
)
_BIG_ENDIAN = UNCOMPRESSED[2]
MOVED = "the pixels are not where they were when the archive was indexed; index it again"


class PixelProblem(ArchiveError):
    """The pixels of one file cannot be had; the message tells why without naming the file."""


def stored_values(file: BinaryIO, instance: Instance, parsed: dict[str, pydicom.Dataset] | None = None) -> NDArray[Any]:
    """(rows, columns) integers before rescaling, sign and unused bits resolved; raises `PixelProblem`.

    `parsed` keeps the object of a file from one of its frames to the next.
    """
    return _tile(_plane(file, _in_whole(instance), {} if parsed is None else parsed), instance)


def _in_whole(one: Instance) -> Instance:
    """The plane in which a tile lies."""
    return replace(one, rows=one.tile[0], columns=one.tile[1], tile=(), frame=WHOLE) if one.tile else one


def _tile(plane: NDArray[Any], one: Instance) -> NDArray[Any]:
    if not one.tile:
        return plane
    _, _, top, left = one.tile
    return plane[top : top + one.rows, left : left + one.columns]


def _plane(file: BinaryIO, instance: Instance, parsed: dict[str, pydicom.Dataset]) -> NDArray[Any]:
    """`parsed` keeps the object of the file, which may hold many planes."""
    with problems():
        if instance.pixels_at >= 0:
            return significant(_at_offset(file, instance), instance)
        if "dataset" not in parsed:
            parsed["dataset"] = read_dataset(file, _WANTED.split(), pixels=True)
        dataset = parsed["dataset"]
        # What the file itself states counts: a header that came without it may have known less.
        syntax = transfer_syntax(dataset)
        if syntax in UNCOMPRESSED:
            element, start = dataset["PixelData"], max(instance.frame, 0) * plane_length(instance)
            content = bytes(memoryview(element.value)[start : start + plane_length(instance)])
            return significant(_shaped(content, instance, big=syntax == _BIG_ENDIAN, words=element.VR == "OW"), instance)
        if instance.frame != WHOLE:
            count = int(dataset.get("NumberOfFrames") or 1)
            content = pydicom.encaps.get_frame(dataset.PixelData, instance.frame, number_of_frames=count)
            return _decoded(_single_frame(content, replace(instance, syntax=syntax)), instance)
        return _decoded(dataset, instance)


def frame_values(content: bytes, instance: Instance) -> NDArray[Any]:
    """As `stored_values`, from the bytes of one frame in the instance's transfer syntax."""
    return _tile(_frame_plane(content, _in_whole(instance)), instance)


def _frame_plane(content: bytes, instance: Instance) -> NDArray[Any]:
    with problems():
        if instance.syntax in UNCOMPRESSED:
            if len(content) - plane_length(instance) not in (0, 1):
                raise PixelProblem("the frame has not the size that the header says")
            raw = _shaped(content[: plane_length(instance)], instance, big=instance.syntax == _BIG_ENDIAN, words=False)
            return significant(raw, instance)
        return _decoded(_single_frame(content, instance), instance)


@contextmanager
def problems() -> Iterator[None]:
    """What damaged pixels are known to raise, as a `PixelProblem`."""
    try:
        yield
    except (*PARSE_ERRORS, OSError, struct.error, zlib.error, RuntimeError) as error:
        if isinstance(error, PixelProblem):
            raise
        raise PixelProblem(f"the pixels cannot be decoded ({type(error).__name__}); the file is damaged or has changed") from None


def _decoded(dataset: pydicom.Dataset, instance: Instance) -> NDArray[Any]:
    image = decoded(dataset)
    if image.shape != (instance.rows, instance.columns):
        raise PixelProblem("the decoded image has not the size that the header says")
    return significant(image, instance) if image.dtype.itemsize * 8 == instance.bits_allocated else image


def slice_values(source: ArchiveSource, instance: Instance) -> NDArray[Any]:
    """The stored values of an instance, as one frame where the source has frames; raises `PixelProblem`, or `OSError` from the source."""
    return next(series_values(lambda _: source, [instance]))


def series_values(source_of: Callable[[int], ArchiveSource], slices: Iterable[Instance]) -> Iterator[NDArray[Any]]:
    """The stored values of each, in order. Of an object with many slices what serves them all is read once, where they follow each other.

    Raises as `slice_values`.
    """
    for (source, key), group in groupby(slices, key=lambda one: (one.source, one.key)):
        members = list(group)
        # Tiles share a plane.
        wholes = {whole.frame: whole for whole in map(_in_whole, members)}
        planes = _planes(source_of(source), os.fsdecode(key), list(wholes.values()))
        last: int | None = None
        for one in members:
            if (frame := _in_whole(one).frame) != last:
                last, plane = frame, next(planes)
            yield _tile(plane, one)


def _planes(source: ArchiveSource, key: str, instances: Sequence[Instance]) -> Iterator[NDArray[Any]]:
    """The planes of one object: from its frames where the source has them, else from the opened object."""
    if isinstance(source, FrameSource):
        contents = iter(source.frames(key, [max(one.frame, 0) for one in instances]))
        first = next(contents, None)
        if first is not None:
            yield from _frame_planes(source, chain([first], contents), instances)
            return
    parsed: dict[str, pydicom.Dataset] = {}
    for one in instances:
        with BytesIO() if parsed else source.open(key) as file:
            yield _plane(file, one, parsed)


def _frame_planes(source: ArchiveSource, contents: Iterator[bytes], instances: Sequence[Instance]) -> Iterator[NDArray[Any]]:
    for number, one in enumerate(instances, 1):
        content = next(contents, None)
        # Whether too many came is seen before the last is handed over.
        if content is None or (number == len(instances) and next(contents, None) is not None):
            raise PixelProblem(f"the source '{source.name}' did not give the {len(instances)} frames that it was asked for")
        yield _frame_plane(content, one)


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
    file.seek(instance.pixels_at)
    element = pixel_element(file.read(12), instance.syntax)
    if element is None:
        raise PixelProblem(MOVED)
    big, words = instance.syntax == _BIG_ENDIAN, element.vr == b"OW"
    start = max(instance.frame, 0) * plane_length(instance)
    if start % 2 and big and words:
        raise PixelProblem("a frame that begins within a swapped word is not read")
    file.seek(instance.pixels_at + element.value + start)
    return _shaped(file.read(plane_length(instance)), instance, big=big, words=words)


def _single_frame(content: bytes, instance: Instance) -> pydicom.Dataset:
    """A compressed frame as an object that pydicom decodes."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(instance.syntax)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, instance.photometric
    dataset.Rows, dataset.Columns, dataset.PixelRepresentation = instance.rows, instance.columns, instance.signed
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = instance.bits_allocated, instance.bits_stored, instance.high_bit
    dataset.add_new("PixelData", "OB", pydicom.encaps.encapsulate([content]))
    return dataset


def _shaped(content: bytes, instance: Instance, big: bool, words: bool) -> NDArray[Any]:
    if len(content) != plane_length(instance):
        raise PixelProblem("the pixels end before they should")
    if instance.bits_allocated == 8 and big and words:
        # Big endian writes 8-bit pixels as swapped 16-bit words.
        content = np.frombuffer(content + b"\0" * (len(content) % 2), ">u2").astype("<u2").tobytes()[: len(content)]
    kind = np.dtype(f"u{instance.bits_allocated // 8}").newbyteorder(">" if big else "<")
    return np.frombuffer(content, kind).reshape(instance.rows, instance.columns)


def significant(raw: NDArray[Any], instance: Instance) -> NDArray[Any]:
    """The BitsStored bits below HighBit, with their sign; what overlays or padding left in the others goes."""
    width, stored = instance.bits_allocated, instance.bits_stored
    unsigned, signed = (np.dtype(np.uint16), np.dtype(np.int16)) if width == 16 else (np.dtype(np.uint8), np.dtype(np.int8))
    words: NDArray[Any] = raw.astype(unsigned, copy=False).view(signed if instance.signed else unsigned)
    if instance.high_bit == stored - 1 and _within(words, stored, bool(instance.signed)):
        return words
    # Up to the top first: then shifting down takes the unused bits below away and, for signed values, copies the sign.
    up, down = width - 1 - instance.high_bit, width - stored
    shifted: NDArray[Any] = np.right_shift(np.left_shift(words.view(unsigned), up, dtype=unsigned).view(words.dtype), down)
    return shifted


def _within(words: NDArray[Any], stored: int, signed: bool) -> bool:
    """Do all values fit in the bits that are stored, so that the others hold nothing of their own?"""
    if stored == words.dtype.itemsize * 8 or words.size == 0:
        return True
    if signed:
        return bool(words.min() >= -(2 ** (stored - 1)) and words.max() < 2 ** (stored - 1))
    return bool(words.max() < 2**stored)
