"""NIfTI in and out, always in RAS+ millimetres; a file whose affine or values cannot be trusted is refused."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from medssl.archive.narrowing import narrow
from medssl.archive.outcomes import Reason
from medssl.errors import DataError, MissingInput

if TYPE_CHECKING:
    import nibabel

_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""NIfTI's code of the spatial unit -> mm. Unknown is read as mm, as every reader does."""
_MAGIC = {348: (344, b"n+1\x00"), 540: (4, b"n+2\x00")}
UNPACK_LIMIT = 2**33
"""Bytes that a .nii.gz may unpack to."""


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
    affine: NDArray[np.float64]
    warnings: tuple[str, ...]


def read_nifti(path: str | Path) -> Nifti:
    """The voxels and affine of a 3D NIfTI file (a 2D one gets a third axis of one voxel).

    Raises `MissingInput`, or `DataError` for files that are damaged, not one 3D image, without a usable affine or with NaN.
    """
    return _read_file(Path(path), read_stream)


def read_nifti_channels(path: str | Path) -> Nifti:
    """As `read_nifti`, with an array (C, X, Y, Z): the fourth axis of a 4D file counts channels, a 3D file has one."""

    def read(stream: BinaryIO) -> Nifti:
        image = _open(_unpack(stream))
        shape = tuple(int(side) for side in image.shape)
        channels = shape[3] if len(shape) > 3 and set(shape[4:]) <= {1} else 1
        header = _checked(image, shape[:3] if channels > 1 else shape)
        array = _values(image, (*header.shape, channels))
        return Nifti(np.moveaxis(array, 3, 0), header.affine)

    return _read_file(Path(path), read)


def _read_file(file: Path, read: Callable[[BinaryIO], Nifti]) -> Nifti:
    if not file.is_file():
        raise MissingInput(f"there is no NIfTI file at {file}.")
    try:
        with file.open("rb") as stream:
            return read(stream)
    except NiftiProblem as problem:
        raise DataError(f"{file}: {problem}. Convert it again, or leave it out.") from problem


class NiftiProblem(DataError):
    """A NIfTI file that cannot be used, with the reason that the index keeps."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.value}{': ' + detail if detail else ''}")
        self.reason = reason


def read_stream(stream: BinaryIO) -> Nifti:
    """As `read_nifti`, from a stream; raises `NiftiProblem`."""
    image = _open(_unpack(stream))
    header = _checked(image, image.shape)
    return Nifti(_values(image, header.shape), header.affine)


def _values(image: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        values = np.asanyarray(image.dataobj).reshape(shape)
    except (OSError, ValueError, EOFError) as error:
        raise NiftiProblem(Reason.TRUNCATED) from error
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise NiftiProblem(Reason.NIFTI_NOT_FINITE)
    return narrow(values)


def read_nifti_header(stream: BinaryIO) -> NiftiHeader:
    """Shape and affine; the voxels are not read, but a file too short for them raises `NiftiProblem` as any other flaw does."""
    content = _unpack(stream)
    image = _open(content)
    header = _checked(image, image.shape)
    needed = image.dataobj.offset + int(np.prod(header.shape)) * image.get_data_dtype().itemsize
    if len(content) < needed:
        raise NiftiProblem(Reason.TRUNCATED)
    return header


def _unpack(stream: BinaryIO) -> bytes:
    start = stream.read(2)
    stream.seek(0)
    if start != b"\x1f\x8b":
        return stream.read()
    try:
        with gzip.GzipFile(fileobj=stream) as packed:
            content = packed.read(UNPACK_LIMIT)
            if packed.read(1):
                raise NiftiProblem(Reason.CORRUPT, f"it unpacks to more than {UNPACK_LIMIT} bytes")
            return content
    except EOFError as error:
        raise NiftiProblem(Reason.TRUNCATED) from error
    except (gzip.BadGzipFile, zlib.error, OSError) as error:
        raise NiftiProblem(Reason.CORRUPT) from error


def is_nifti(start: bytes) -> bool:
    """Do the first 348 bytes (unpacked) look like NIfTI-1 or NIfTI-2?"""
    for size, (place, magic) in _MAGIC.items():
        if start[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")) and start[place : place + 4] == magic:
            return True
    return False


def _open(content: bytes) -> Any:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    if not is_nifti(content[:348]):
        raise NiftiProblem(Reason.CORRUPT, "it is not a single-file NIfTI")
    kind: type[nibabel.Nifti1Image] = nibabel.Nifti2Image if 540 in _sizes(content) else nibabel.Nifti1Image
    try:
        return kind.from_stream(BytesIO(content))
    except (HeaderDataError, ImageFileError, ValueError, OSError, EOFError, KeyError) as error:
        raise NiftiProblem(Reason.CORRUPT) from error


def _sizes(content: bytes) -> tuple[int, int]:
    return int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")


def _checked(image: Any, sides: Sequence[int]) -> NiftiHeader:
    header = image.header
    if image.get_data_dtype().kind not in "iufb":
        raise NiftiProblem(Reason.NIFTI_VALUES)
    shape = _three(tuple(int(side) for side in sides))
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        raise NiftiProblem(Reason.NIFTI_ORIENTATION, "sform and qform codes are 0, so left and right are unknown")
    unit = _MILLIMETRES.get(int(header["xyzt_units"]) & 7)
    if unit is None:
        raise NiftiProblem(Reason.NIFTI_ORIENTATION, "unknown unit of length")
    affine = np.asarray(image.affine, np.float64).copy()
    affine[:3] *= unit
    check_affine(affine)
    return NiftiHeader(shape, affine, _warnings(header, unit, affine, shape))


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
    if lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise NiftiProblem(Reason.NIFTI_ORIENTATION, "the axes of the affine are flat or do not span space")


def _warnings(header: Any, unit: float, affine: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[str, ...]:
    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0:
        return ()
    try:
        other = np.asarray(header.get_qform(), np.float64)
    except ValueError:
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
    suffix = "".join(file.suffixes[-2:]) if file.name.endswith(".nii.gz") else file.suffix
    waiting = file.with_name(f".{uuid4().hex}{suffix}")
    try:
        nibabel.save(image, waiting)
        os.replace(waiting, file)  # noqa: PTH105
    finally:
        waiting.unlink(missing_ok=True)
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
