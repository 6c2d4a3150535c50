"""NIfTI in and out, always in RAS+ millimetres; a file whose affine or values cannot be trusted is refused."""

from __future__ import annotations

import gzip
import logging
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from medssl.archive.geometry import usable_position, usable_spacing
from medssl.archive.limits import Refused
from medssl.archive.narrowing import narrow
from medssl.archive.outcomes import Reason
from medssl.errors import DataError, MissingInput
from medssl.faults import faults_as
from medssl.files import holds_file, open_regular, replacing

_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""NIfTI's code of the spatial unit -> mm. Unknown is read as mm, as every reader does."""
_MAGIC = {348: (344, b"n+1\x00"), 540: (4, b"n+2\x00")}
LONGEST = 2**32
"""Bytes from a file's start to its last voxel, unpacked, that are read."""
_HEADER = 540
"""Bytes in which the longer of the two headers ends."""
_BLOCK = 2**20
_QUIET = logging.getLogger("medssl.nifti")
_QUIET.disabled = True
"""nibabel writes what it finds in headers to the terminal."""
_PARSE_ERRORS = (OSError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError, EOFError, struct.error, MemoryError)
"""What nibabel is known to raise on broken headers, beside its own errors."""


class Nifti(NamedTuple):
    """An image as read: unpacks as `array, affine`."""

    array: NDArray[Any]
    """(X, Y, Z) rescaled values, int16 where all are whole and in its range, else float32."""
    affine: NDArray[np.float64]
    """(4, 4) voxel -> RAS+ mm."""


class HasGrid(Protocol):
    """Anything with voxels and an affine: a `Volume`, a `Nifti`."""

    @property
    def array(self) -> NDArray[Any]:
        """(X, Y, Z)."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) voxel -> RAS+ mm."""


class NiftiHeader(NamedTuple):
    """What the header alone says."""

    shape: tuple[int, ...]
    """Three sides, and a fourth where there is more than one value a voxel."""
    affine: NDArray[np.float64]
    warnings: tuple[str, ...]


def read_nifti(path: str | Path, unplaced: NDArray[np.float64] | None = None) -> Nifti:
    """The voxels and affine of a 3D NIfTI file (a 2D one gets a third axis of one voxel).

    `unplaced` is the affine of a file that says not where it lies (qform and sform codes 0). Raises `MissingInput`, or `DataError` for
    files that are damaged, not one 3D image, without a usable affine or with NaN.
    """
    return _read_file(Path(path), partial(read_stream, unplaced=unplaced))


def read_nifti_channels(path: str | Path, unplaced: NDArray[np.float64] | None = None) -> Nifti:
    """As `read_nifti`, with an array (C, X, Y, Z): the fourth axis of a 4D file counts channels, a 3D file has one."""
    return _read_file(Path(path), partial(read_stream_channels, unplaced=unplaced))


def _read_file(file: Path, read: Callable[[BinaryIO], Nifti]) -> Nifti:
    try:
        with faults_as(DataError, f"{file} cannot be read"):
            if not holds_file(file):
                raise MissingInput(f"there is no NIfTI file at {file}.")
            with open_regular(file) as stream:
                return read(stream)
    except NiftiProblem as problem:
        raise DataError(f"{file}: {problem}. Convert it again, or leave it out.") from problem


class NiftiProblem(DataError):
    """A NIfTI file that cannot be used, with the reason that the index keeps."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.value}{': ' + detail if detail else ''}")
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[type[NiftiProblem], tuple[Reason, str]]:
        return NiftiProblem, (self.reason, self.detail)


def read_stream(stream: BinaryIO, unplaced: NDArray[np.float64] | None = None) -> Nifti:
    """As `read_nifti`, from a stream; raises `NiftiProblem`."""
    found = _open(stream)
    header = _checked(found, found.sides, unplaced)
    return Nifti(_values(stream, found, header.shape), header.affine)


def read_stream_channels(stream: BinaryIO, unplaced: NDArray[np.float64] | None = None) -> Nifti:
    """As `read_nifti_channels`, from a stream; raises `NiftiProblem`."""
    found = _open(stream)
    header, channels = _with_channels(found, unplaced)
    array = _values(stream, found, (*header.shape, channels))
    return Nifti(np.moveaxis(array, 3, 0), header.affine)


def _with_channels(found: _Found, unplaced: NDArray[np.float64] | None = None) -> tuple[NiftiHeader, int]:
    """What the header says of the three sides, and how many values a voxel has."""
    sides = found.sides
    channels = sides[3] if len(sides) > 3 and set(sides[4:]) <= {1} else 1
    return _checked(found, sides[:3] if channels > 1 else sides, unplaced), channels


def read_nifti_header(stream: BinaryIO) -> NiftiHeader:
    """Shape, with a fourth side where a fourth axis counts more than one, and affine; the voxels are not kept, but a file too short
    for them raises `NiftiProblem` as any other flaw does."""
    found = _open(stream)
    header, channels = _with_channels(found)
    for _ in _unpacked(stream, found.end):
        pass
    return header if channels == 1 else header._replace(shape=(*header.shape, channels))


class _Found(NamedTuple):
    """A header as nibabel reads it."""

    header: Any
    sides: tuple[int, ...]
    start: int
    """First byte of the voxels."""
    end: int
    """One past the last byte of the voxels."""


def _values(stream: BinaryIO, found: _Found, shape: tuple[int, ...]) -> NDArray[Any]:
    from nibabel.arrayproxy import ArrayProxy

    content = b"".join(_unpacked(stream, found.end))
    try:
        values = np.asanyarray(ArrayProxy(BytesIO(content), found.header)).reshape(shape)
    except _PARSE_ERRORS as error:
        raise NiftiProblem(Reason.CORRUPT) from error
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise NiftiProblem(Reason.NIFTI_NOT_FINITE)
    try:
        return narrow(values)
    except DataError as error:
        raise NiftiProblem(Reason.NIFTI_NOT_FINITE, str(error)) from error


def _unpacked(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """The first `size` bytes in blocks, unpacked where the file is compressed; raises `NiftiProblem` where there are fewer.

    What follows is not unpacked, so that a file costs what its header says, and that is limited; a checksum there is read.
    """
    with _problems():
        source = _source(stream)
        left = size
        while left:
            content = source.read(min(_BLOCK, left))
            if not content:
                raise NiftiProblem(Reason.TRUNCATED)
            left -= len(content)
            yield content
        source.read(1)


def _source(stream: BinaryIO) -> BinaryIO:
    stream.seek(0)
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if packed else stream


@contextmanager
def _problems() -> Iterator[None]:
    try:
        yield
    except Refused:
        raise
    except EOFError as error:
        raise NiftiProblem(Reason.TRUNCATED) from error
    except (zlib.error, OSError) as error:
        raise NiftiProblem(Reason.CORRUPT) from error


_BEGINS = {size.to_bytes(4, order): where for size, where in _MAGIC.items() for order in ("little", "big")}
"""How such files begin in both orders of bytes, with place and content of their mark."""


def is_nifti(start: bytes) -> bool:
    """Do the first 348 bytes (unpacked) look like NIfTI-1 or NIfTI-2?"""
    place, magic = _BEGINS.get(start[:4], (0, b""))
    return bool(magic) and start[place : place + 4] == magic


def _open(stream: BinaryIO) -> _Found:
    import nibabel
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    with _problems():
        start = _source(stream).read(_HEADER)
    if not is_nifti(start):
        raise NiftiProblem(Reason.CORRUPT, "it is not a single-file NIfTI")
    second = 540 in (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big"))
    kind, size = (nibabel.Nifti2Header, 540) if second else (nibabel.Nifti1Header, 348)
    try:
        header = kind(start[:size], check=False)
        first = float(header["vox_offset"])
        # Below that the header itself would be read as voxels.
        if not (size + 4 <= first <= LONGEST and first.is_integer()):
            raise NiftiProblem(Reason.CORRUPT, f"its voxels are said to begin at byte {first:g}")
        header.check_fix(logger=_QUIET)
        header.get_slope_inter()
        sides = tuple(int(side) for side in header.get_data_shape())
        item = int(header.get_data_dtype().itemsize)
    except NiftiProblem:
        raise
    except (HeaderDataError, WrapStructError, *_PARSE_ERRORS) as error:
        raise NiftiProblem(Reason.CORRUPT) from error
    # Python's numbers do not wrap, as a product of int64 does.
    end = int(first) + math.prod(max(side, 0) for side in sides) * item
    return _Found(header, sides, int(first), end)


def _checked(found: _Found, sides: Sequence[int], unplaced: NDArray[np.float64] | None = None) -> NiftiHeader:
    header = found.header
    if header.get_data_dtype().kind not in "iufb":
        raise NiftiProblem(Reason.NIFTI_VALUES)
    shape = _three(tuple(sides))
    if found.end > LONGEST:
        raise NiftiProblem(Reason.TOO_LARGE, f"{found.end} bytes, and {LONGEST} are read")
    if is_unplaced(header):
        if unplaced is not None:
            return NiftiHeader(shape, np.asarray(unplaced, np.float64), ())
        raise NiftiProblem(Reason.NIFTI_ORIENTATION, "sform and qform codes are 0, so left and right are unknown")
    unit = _MILLIMETRES.get(int(header["xyzt_units"]) & 7)
    if unit is None:
        raise NiftiProblem(Reason.NIFTI_ORIENTATION, "unknown unit of length")
    try:
        affine = np.asarray(header.get_best_affine(), np.float64).copy()
    except _PARSE_ERRORS as error:
        raise NiftiProblem(Reason.NIFTI_ORIENTATION, "the qform is broken") from error
    affine[:3] *= unit
    check_affine(affine)
    return NiftiHeader(shape, affine, _warnings(header, unit, affine, shape))


def is_unplaced(header: Any) -> bool:
    """Whether a header, as nibabel has it, says not where its voxels lie."""
    return int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0


def _three(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    shape = shape + (1,) * (3 - len(shape))
    if len(shape) != 3 or min(shape) < 1:
        raise NiftiProblem(Reason.NIFTI_DIMENSIONS, f"its shape is {'x'.join(map(str, shape))}")
    return shape


def check_affine(affine: NDArray[np.float64]) -> None:
    """Refuse (`NiftiProblem`, a `DataError`) what maps no grid to space: not finite, no last row of 0 0 0 1, flat or degenerate axes."""
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise NiftiProblem(Reason.NIFTI_ORIENTATION, "the affine is not a finite 4x4 matrix")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (usable_spacing(lengths.tolist()) and usable_position(affine[:3, 3].tolist())):
        sides = " x ".join(f"{side:.3g}" for side in lengths)
        raise NiftiProblem(Reason.NIFTI_ORIENTATION, f"voxels of {sides} mm, or too far away for any body")
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise NiftiProblem(Reason.NIFTI_ORIENTATION, "the axes of the affine are flat or do not span space")


def _warnings(header: Any, unit: float, affine: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[str, ...]:
    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0:
        return ()
    try:
        other = np.asarray(header.get_qform(), np.float64)
    except _PARSE_ERRORS:
        return ("the qform is broken; the sform is used",)
    other[:3] *= unit
    corners = np.array([[x, y, z, 1] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1) for z in (0, shape[2] - 1)], float).T
    apart = float(np.abs((affine - other) @ corners).max())
    return (f"sform and qform disagree by up to {apart:.2f} mm; the sform is used",) if not apart <= 0.1 else ()


def write_nifti(volume: HasGrid, path: str | Path) -> Path:
    """Write `volume.array` (X, Y, Z) with `volume.affine` (RAS+ mm); complete or not at all. Returns the path.

    int16, uint8, float32 and other NIfTI types stay as they are, bool becomes uint8, int64 and float64 the smallest of ours.
    """
    import nibabel

    check_affine(volume.affine)
    array = _writable(np.asarray(volume.array))
    image = nibabel.Nifti1Image(array, np.asarray(volume.affine, np.float64), dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1, 0)
    image.set_sform(volume.affine, code=1)
    # A qform cannot hold a shear: better none than one that disagrees.
    image.set_qform(volume.affine, code=1 if _orthogonal(volume.affine) else 0)
    file = Path(path)
    with replacing(file) as stream, gzip.GzipFile("", "wb", 1, stream, mtime=0) if file.suffix == ".gz" else nullcontext(stream) as content:
        image.to_stream(content)
    return file


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype in (np.dtype(np.int64), np.dtype(np.uint64), np.dtype(np.float64), np.dtype(np.float16)):
        return narrow(array)
    return array


def _orthogonal(affine: NDArray[np.float64]) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() < 1e-5)
