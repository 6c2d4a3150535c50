"""NRRD: plain label maps, and Slicer's segmentations (`.seg.nrrd`), which have their own extent, segment names and layers."""

from __future__ import annotations

import bz2
import gzip
import math
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.archive.labels.objects import LabelObject, Mask, Refers, Segment
from medssl.archive.labels.placing import Grid, LabelProblem, onto
from medssl.archive.nifti.files import NiftiProblem, check_affine
from medssl.errors import MissingInput, UsageError
from medssl.faults import faults_as
from medssl.files import open_regular

MOST_BYTES = 2**32
"""Bytes to which the voxels may unpack."""
MOST_HEADER = 2**22
_SIGNS = {
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}
"""Directions of a space towards RAS+."""
_PACKED: dict[str, Callable[..., Any]] = {**dict.fromkeys(("gzip", "gz"), gzip.open), **dict.fromkeys(("bzip2", "bz2"), bz2.open)}
_TYPES = {
    **dict.fromkeys(("signed char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64"), "u8"),
    "float": "f4",
    "double": "f8",
}
_KEY = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer)")
_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, zlib.error, AssertionError, MemoryError, OverflowError)


@dataclass(frozen=True, eq=False)
class Nrrd:
    """A label map as its file has it."""

    array: NDArray[Any]
    """(L, X, Y, Z): layers, of which a plain label map has one."""
    grid: Grid
    segments: tuple[Segment, ...]
    """Empty in a plain label map."""
    layers: tuple[int, ...]
    """Of each segment."""


def is_nrrd_name(name: str) -> bool:
    """Does the name end as NRRD files do?"""
    return name.lower().endswith(".nrrd")


def read_nrrd(path: Path, voxels: bool = True) -> Nrrd:
    """The label map of a file; without `voxels` its array is empty. Raises `MissingInput`, or `LabelProblem` for what is none."""
    with faults_as(LabelProblem, f"{path} cannot be read"):
        if not path.is_file():
            raise MissingInput(f"there is no file {path}.")
        with open_regular(path) as stream:
            content = stream.read(MOST_BYTES if voxels else MOST_HEADER)
    try:
        header, at = _header(content)
        shape, affine = _geometry(header)
        array = _values(header, content, at) if voxels else np.zeros((0, *shape), np.uint8)
        segments = _segments(header, array.shape[0] if voxels else _layers(header))
    except LabelProblem as problem:
        raise LabelProblem(f"{path}: {problem}") from problem
    except _BROKEN as error:
        raise LabelProblem(f"{path} is no NRRD file, or a damaged one ({type(error).__name__}). Save it again.") from error
    return Nrrd(array, Grid(shape, affine), tuple(segment for segment, _ in segments), tuple(layer for _, layer in segments))


def as_object(found: Nrrd) -> LabelObject:
    """Slicer's segments of a file as any other label object's."""
    return LabelObject("NRRD", found.segments, Refers(), partial(_mask, found))


def _mask(found: Nrrd, segment: Segment, grid: Grid, resample: bool) -> Mask:
    layer = found.layers[found.segments.index(segment)]
    inside, outside = onto(found.array[layer] == segment.number, found.grid, grid, resample)
    return Mask(inside, outside)


def _header(content: bytes) -> tuple[Mapping[str, Any], int]:
    try:
        import nrrd
    except ImportError as error:
        raise UsageError("reading NRRD needs the package pynrrd. Install it with: pip install 'medssl[labels]'") from error
    end = re.search(rb"\r?\n\r?\n", content[:MOST_HEADER])
    if end is None:
        raise LabelProblem("it is no NRRD file, or a damaged one: its header does not end")
    try:
        # As text: the package takes bytes for ASCII, and names of segments need not be.
        header: Mapping[str, Any] = nrrd.read_header(content[: end.start()].decode("utf-8", "replace").splitlines())
    except nrrd.NRRDError as error:
        raise LabelProblem(f"it is no NRRD file, or a damaged one: {str(error)[:80]}") from error
    if any(key in header for key in ("data file", "datafile")):
        raise LabelProblem("its voxels lie in another file, which is not followed. Save it as one file.")
    return header, end.end()


def _layers(header: Mapping[str, Any]) -> int:
    return int(header["sizes"][0]) if int(header["dimension"]) == 4 else 1


def _geometry(header: Mapping[str, Any]) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    sizes = [int(side) for side in header["sizes"]]
    signs = _SIGNS.get(str(header.get("space", "")).lower())
    if len(sizes) not in (3, 4) or min(sizes) < 1 or signs is None or "space directions" not in header or "space origin" not in header:
        raise LabelProblem("it does not say where its voxels lie (space, space directions, space origin), or has not three axes.")
    rows = [row for row in header["space directions"] if row is not None and np.isfinite(np.asarray(row, float)).all()]
    kinds = header.get("kinds", [])
    if len(rows) != 3 or (len(sizes) == 4 and (len(kinds) == 4 and kinds[0] not in ("list", "vector"))):
        raise LabelProblem("its axes are not three of space behind one of layers. Save it again from Slicer.")
    affine = np.eye(4)
    affine[:3, :3] = np.array(rows, float).T
    affine[:3, 3] = np.asarray(header["space origin"], float)
    affine = np.diag([*signs, 1]) @ affine
    try:
        check_affine(affine)
    except NiftiProblem as problem:
        raise LabelProblem(str(problem)) from problem
    x, y, z = sizes[-3:]
    return (x, y, z), affine


def _values(header: Mapping[str, Any], content: bytes, at: int) -> NDArray[Any]:
    """Unpacked to what the header says and no further."""
    code = _TYPES.get(str(header["type"]).lower().replace("_t", ""))
    if code is None or any(int(header.get(key, 0)) for key in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise LabelProblem("its values are no numbers, or do not follow its header. Save it again.")
    kind = np.dtype(code).newbyteorder(">" if str(header.get("endian", "little")).lower() == "big" else "<")
    sizes = [int(side) for side in header["sizes"]]
    length = math.prod(sizes) * kind.itemsize
    if length > MOST_BYTES:
        raise LabelProblem(f"its voxels have {length} bytes, and {MOST_BYTES} are read.")
    encoding = str(header["encoding"]).lower()
    if encoding == "raw":
        voxels = content[at : at + length]
    elif encoding in _PACKED:
        voxels = _PACKED[encoding](BytesIO(content[at:])).read(length)
    else:
        raise LabelProblem("its voxels are neither raw nor packed by gzip or bzip2. Save it again.")
    if len(voxels) < length:
        raise LabelProblem(f"its voxels end {length - len(voxels)} bytes too early. Copy or save it again.")
    array = np.frombuffer(voxels, kind).reshape(sizes, order="F")
    return array if array.ndim == 4 else array[None]


def _segments(header: Mapping[str, Any], layers: int) -> list[tuple[Segment, int]]:
    """Slicer's segments with their layers; older files have a layer a segment and no numbers."""
    found: dict[int, dict[str, str]] = {}
    for key, value in header.items():
        match = _KEY.fullmatch(str(key))
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = str(value)
    segments = []
    for place, said in sorted(found.items()):
        layer = int(said.get("Layer", place if layers > 1 else 0))
        if not 0 <= layer < layers:
            raise LabelProblem("a segment lies in a layer that the file does not have. Save it again from Slicer.")
        segments.append((Segment(int(said.get("LabelValue", 1)), said.get("Name", "").strip()), layer))
    return segments
