"""Pictures in and out: grey or red, green and blue, turned as they are meant to be seen; what cannot be read whole is refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medssl.archive.geometry import image_affine
from medssl.archive.limits import PIXELS, Refused
from medssl.archive.narrowing import narrow
from medssl.archive.outcomes import Reason
from medssl.errors import DataError, MissingInput
from medssl.faults import faults_as
from medssl.files import holds_file, open_regular, replacing

_FORMATS = ("PNG", "JPEG", "TIFF")
_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*")
_GREY = {"L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
_WITH_ALPHA = {"LA", "PA", "La", "RGBA", "RGBa"}
_TURNED = 0x0112
"""The Exif element that says how a picture is turned."""
_BROKEN = (ValueError, SyntaxError, LookupError, TypeError, EOFError, AttributeError, ArithmeticError, struct.error, zlib.error)
"""What Pillow is known to raise on broken pictures, beside `OSError`."""


class Picture(NamedTuple):
    """A picture as read."""

    array: NDArray[Any]
    """(1, X, Y, 1) grey or (3, X, Y, 1) red, green and blue, columns before rows: int16 where all values are in its range."""
    notes: tuple[str, ...]
    """What was left out or done on the way."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) voxel -> where it lies as a slice that is looked at; a picture knows no millimetres, so a step counts 1."""
        return image_affine(())


class PictureProblem(DataError):
    """A picture that cannot be used, with the reason that the index keeps."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.value}{': ' + detail if detail else ''}")
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[type[PictureProblem], tuple[Reason, str]]:
        return PictureProblem, (self.reason, self.detail)


def is_picture(start: bytes) -> bool:
    """Does a file with these first 132 bytes or more hold one? The preamble of a DICOM file may look like a TIFF's start."""
    return start.startswith(_STARTS) and start[128:132] != b"DICM"


def read_picture(path: str | Path) -> Picture:
    """The values of a PNG, JPEG or TIFF file; raises `MissingInput`, or `DataError` for what is damaged or too large."""
    with _opened(Path(path)) as stream:
        return read_picture_stream(stream)


def read_picture_labels(path: str | Path) -> NDArray[Any]:
    """(X, Y, 1) values of a PNG or TIFF label map: grey values, or the numbers of a palette's colours. Raises as `read_picture`."""
    with _opened(Path(path)) as stream, _image(stream) as image:
        if image.format == "JPEG":
            raise PictureProblem(Reason.DAMAGED_PICTURE, "a JPEG does not keep the values of labels; write it as PNG")
        values = np.asarray(ImageOps.exif_transpose(image))
        if image.mode in ("RGB", "RGBA", "LA"):
            colours = values[..., : 1 if image.mode == "LA" else 3]
            if (colours != colours[..., :1]).any():
                raise PictureProblem(Reason.COLOUR_SPACE, "a label map is grey or has a palette, and this one has colours")
            values = colours[..., 0]
    return _columns_first(values.astype(np.uint8) if values.dtype == np.bool_ else values)


def picture_shape(path: str | Path) -> tuple[int, ...]:
    """(X, Y, 1), or (X, Y, 1, 3) where it has colours, without decoding it; raises as `read_picture`."""
    with _opened(Path(path)) as stream, _image(stream, decoded=False) as image:
        turned = image.getexif().get(_TURNED, 1) in (5, 6, 7, 8)
        columns, rows = image.size[::-1] if turned else image.size
        return (columns, rows, 1) if _is_grey(image) else (columns, rows, 1, 3)


def read_picture_stream(stream: BinaryIO) -> Picture:
    """As `read_picture`, from a stream; raises `PictureProblem`."""
    wide = _is_wide(stream)
    with _image(stream) as image:
        notes = (*_notes(image), *(("8 of 16 bits a colour are read",) if wide else ()))
        values = _values(ImageOps.exif_transpose(image))
    channels = values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0)
    return Picture(narrow(np.stack([_columns_first(channel) for channel in channels])), notes)


def _is_wide(stream: BinaryIO) -> bool:
    """A PNG in colour with 16 bits each, of which Pillow gives the upper ones and says nothing."""
    stream.seek(0)
    start = stream.read(26)
    return start.startswith(_STARTS[0]) and start[24:25] == b"\x10" and start[25:26] in (b"\x02", b"\x06")


def _columns_first(values: NDArray[Any]) -> NDArray[Any]:
    return values.T[..., None]


def _is_grey(image: Image.Image) -> bool:
    """By its form, not by its values: one that is grey in RGB has three channels, as its neighbours in colour have."""
    if image.mode == "P":
        entries = np.array(image.getpalette("RGB")).reshape(-1, 3)
        return bool((entries == entries[:, :1]).all())
    return image.mode in _GREY or image.mode in ("1", "LA", "La")


def _values(image: Image.Image) -> NDArray[Any]:
    """(rows, columns) or (rows, columns, 3)."""
    if image.mode in _GREY:
        return np.asarray(image)
    if _is_grey(image):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGBA").convert("RGB") if image.mode in ("PA", "RGBa") else image.convert("RGB"))


def _notes(image: Image.Image) -> Iterator[str]:
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        yield "its transparency is left out"
    if image.getexif().get(_TURNED, 1) not in (0, 1):
        yield "turned as its Exif orientation says"
    if image.mode not in (*_GREY, *_WITH_ALPHA, "1", "P", "RGB"):
        yield f"colours converted from {image.mode} to RGB"
    if image.mode == "P":
        yield "colours of a palette"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with faults_as(DataError, f"{path} cannot be read"):
            if not holds_file(path):
                raise MissingInput(f"there is no picture at {path}.")
            with open_regular(path) as stream:
                yield stream
    except PictureProblem as problem:
        raise DataError(f"{path}: {problem}. Write it again, or leave it out.") from problem


@contextmanager
def _image(stream: BinaryIO, decoded: bool = True) -> Iterator[Image.Image]:
    """The picture; raises `PictureProblem` for what cannot be decoded whole, and for what is too large before it is decoded."""
    stream.seek(0)
    try:
        with Image.open(stream, formats=_FORMATS) as image:
            if image.width * image.height > PIXELS:
                raise PictureProblem(Reason.TOO_MANY_PIXELS, f"{image.width} x {image.height}, and {PIXELS} are read")
            pages = getattr(image, "n_frames", 1)
            if pages > 1:
                raise PictureProblem(Reason.PAGES, str(pages))
            if decoded:
                image.load()
            yield image
    except (PictureProblem, Refused):
        raise
    except Image.DecompressionBombError as error:
        raise PictureProblem(Reason.TOO_MANY_PIXELS, f"more than {PIXELS}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise PictureProblem(Reason.TRUNCATED if "truncated" in str(error) else Reason.DAMAGED_PICTURE) from error
    except _BROKEN as error:
        raise PictureProblem(Reason.DAMAGED_PICTURE) from error


def write_label_picture(labels: NDArray[Any], path: str | Path) -> Path:
    """Write a label map (X, Y, 1) of values from 0 to 65535 as a grey PNG, complete or not at all; returns the path."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 0xFFFF:
        raise DataError(f"a PNG holds labels from 0 to 65535, not {low} to {high}.")
    rows = np.ascontiguousarray(labels[..., 0].T.astype(np.uint8 if high < 256 else np.uint16))
    file = Path(path)
    with replacing(file) as stream:
        Image.fromarray(rows).save(stream, "PNG")
    return file
