"""One image of the archive after its scan: what the header says that grouping, geometry and reading need, or why it is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medssl.archive.outcomes import Reason
from medssl.archive.tables import ADDED

WHOLE = -1
"""The frame number of a file that is one image."""
UNNUMBERED = -(2**53)
"""The InstanceNumber of an image that has none."""
PALETTE = "PALETTE COLOR"
"""The photometric interpretation of an image whose pixels are numbers of colours."""
_INVERTED, _UPRIGHT = "MONOCHROME1", "MONOCHROME2"


_Class = TypeVar("_Class")


@dataclass_transform(frozen_default=True)
def _frozen(cls: type[_Class]) -> type[_Class]:
    """A frozen dataclass for whoever checks types; Python itself takes ten times as long to set the fields of one that it locks."""
    return dataclass(slots=True, unsafe_hash=True)(cls)


def named(name: str, frame: int) -> str:
    """The name of a file or object, and of a frame of it where one is meant."""
    return name if frame == WHOLE else f"{name}\nframe {frame}"


@_frozen
class Acquisition:
    """How one image was taken; what is empty the header does not say, or says as no list knows it."""

    study_date: str = ""
    """Private: only its order reaches the public table."""
    series_number: int = -1
    body_part: str = ""
    sequence: str = ""
    """ScanningSequence, its codes between slashes."""
    variant: str = ""
    """SequenceVariant, likewise."""
    echo_time: tuple[float, ...] = ()
    """Milliseconds, as all times."""
    repetition_time: tuple[float, ...] = ()
    inversion_time: tuple[float, ...] = ()
    flip_angle: tuple[float, ...] = ()
    contrast: str = ""
    """"yes", "no", or empty where the element is missing."""
    kernel: str = ""
    manufacturer: str = ""
    model: str = ""
    field_strength: tuple[float, ...] = ()
    kvp: tuple[float, ...] = ()


@_frozen
class Instance:
    """Private: holds the file's name and real UIDs. Empty text and empty tuples mean "not in the header"."""

    source: int
    """Which of the sources of this index."""
    key: bytes
    """The source's name of the file."""
    frame: int = WHOLE
    """Which frame of the file this is, from 0; `WHOLE` where the file is one image. Source, key and frame name an instance."""
    size: int = 0
    """Bytes of the file; 0 where only its header was asked for and the source does not know."""
    version: str = ""
    """What the source's `stat` said when the file was read; empty where it has none."""
    kind: str = ""
    """"dicom", "nifti", "picture" (PNG, JPEG, TIFF) or empty."""
    reason: str = ""
    """A `Reason` where the file alone decides it."""
    modality: str = ""
    patient: str = ""
    study: str = ""
    accession: str = ""
    """AccessionNumber, only ever compared with a list."""
    series: str = ""
    uid: str = ""
    """SOPInstanceUID; of a NIfTI file or a picture the digest of its content."""

    sop_class: str = ""
    syntax: str = ""
    image_type: tuple[str, ...] = ()
    component: str = ""
    """M, P, R or I where the image says that it is magnitude, phase, real or imaginary."""
    photometric: str = ""
    rows: int = 0
    columns: int = 0
    samples: int = 1
    """Values of a pixel: 3 where it has a colour."""
    frames: int = 0
    """Of a 2D image, how many there are of it over time, 1 where it is a still; 0 of what is a slice or a volume."""
    tile: tuple[int, ...] = ()
    """Where it is a tile of a larger plane: rows and columns of the whole, top row and left column of the tile."""
    bits_allocated: int = 0
    bits_stored: int = 0
    high_bit: int = 0
    signed: int = 0
    slope: float = 1.0
    intercept: float = 0.0
    padding: tuple[float, ...] = ()
    """The stored value that marks voxels without data, or both ends of a range of them."""
    pixels_at: int = -1
    """Where the PixelData element starts in the file; -1 where the pixels must be found by parsing."""
    frame_at: int = -1
    """Where the pixels of this frame start, as one stretch: as they are, or as one compressed stream; -1 where decoders must find them."""
    frame_length: int = -1
    """Bytes of that stretch."""

    position: tuple[float, ...] = ()
    decimals: int = -1
    """Digits after the point that the position is written with; -1 where it is not written as text."""
    location: tuple[float, ...] = ()
    """SliceLocation, which stands in for a missing position where that is asked for."""
    orientation: tuple[float, ...] = ()
    pixel_spacing: tuple[float, ...] = ()
    between_slices: tuple[float, ...] = ()
    """SpacingBetweenSlices, only ever compared with the positions."""
    thickness: tuple[float, ...] = ()
    """SliceThickness, likewise."""
    frame_of_reference: str = ""
    """FrameOfReferenceUID."""

    corrected: tuple[str, ...] = ()
    """CorrectedImage: what PET and SPECT took into account, such as ATTN."""
    echo: str = ""
    inversion: str = ""
    flip: str = ""
    reconstruction: str = ""
    """ConvolutionKernel as it stands in the header."""
    stack: str = ""
    temporal: str = ""
    acquisition: str = ""
    trigger: str = ""
    diffusion: str = ""
    b_value: tuple[float, ...] = ()
    acquired: str = ""
    """Acquisition date and time, only ever compared."""
    dimensions: str = ""
    """Dimension indices of a frame that count neither places nor stacks, only ever compared."""
    number: int = UNNUMBERED
    """InstanceNumber: trusted for nothing but telling repetitions apart that nothing else does, and only where it runs in order."""

    taken: Acquisition = Acquisition()
    description: str = ""
    """SeriesDescription: free text, for rules of a store to compare with and never to be shown."""

    shape: tuple[int, ...] = ()
    affine: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def is_image(self) -> bool:
        """Is it a 2D image by itself, a radiograph or a photograph, rather than a part of a volume?"""
        return self.frames > 0

    @property
    def is_grey(self) -> bool:
        """Has a pixel one value, its brightness, by the photometric interpretation?"""
        return self.photometric in (_INVERTED, _UPRIGHT)

    @property
    def is_inverted(self) -> bool:
        """Are low values meant to be bright?"""
        return self.photometric == _INVERTED

    @property
    def identity(self) -> tuple[int, bytes, int]:
        """What no two instances of an index share."""
        return self.source, self.key, self.frame

    @property
    def has_usable_bits(self) -> bool:
        """Are the bits those of an image that is read: 8 or 16 allocated, and the stored ones among them?"""
        within = 0 < self.bits_stored <= self.bits_allocated and self.bits_stored - 1 <= self.high_bit < self.bits_allocated
        return self.bits_allocated in (8, 16) and within and self.signed in (0, 1)

    def named(self, name: str) -> str:
        """The name of a file or object, and of a frame of it where the instance is one: pseudonyms are made from it."""
        return named(name, self.frame)

    @property
    def why(self) -> Reason | None:
        """The reason as the enumeration has it."""
        return Reason(self.reason) if self.reason else None


_ARROW: dict[Any, pa.DataType] = {
    str: pa.string(),
    bytes: pa.binary(),
    int: pa.int64(),
    float: pa.float64(),
    tuple[str, ...]: pa.list_(pa.string()),
    tuple[int, ...]: pa.list_(pa.int64()),
    tuple[float, ...]: pa.list_(pa.float64()),
}

_LATER = frozenset({"corrected"})
"""Columns that an index of the same format may lack."""
_OWN, _TAKEN = ([field.name for field in fields(cls)] for cls in (Instance, Acquisition))


def _columns() -> Iterator[pa.Field]:
    hints = {**get_type_hints(Instance), **get_type_hints(Acquisition)}
    for name in _OWN:
        for column in _TAKEN if name == "taken" else [name]:
            yield pa.field(column, _ARROW[hints[column]], metadata={ADDED: b""} if column in _LATER else None)


SCHEMA = pa.schema(_columns())
"""One column a field; those of `taken` stand among the others."""


def to_table(instances: Sequence[Instance]) -> pa.Table:
    """Instances as rows, in order."""
    taken = [instance.taken for instance in instances]
    columns = {name: list(map(attrgetter(name), taken if name in _TAKEN else instances)) for name in SCHEMA.names}
    return pa.table(columns, schema=SCHEMA)


def from_table(table: pa.Table) -> list[Instance]:
    """The instances of `to_table`."""
    columns: dict[str, list[Any]] = {name: _values(table[name].combine_chunks()) for name in SCHEMA.names}
    columns["taken"] = [Acquisition(*row) for row in zip(*(columns[name] for name in _TAKEN), strict=True)]
    return [Instance(*row) for row in zip(*(columns[name] for name in _OWN), strict=True)]


def _values(column: pa.Array) -> list[Any]:
    """As objects; most columns say the same of all slices of a series, and then there is one object."""
    if pa.types.is_list(column.type):
        values = column.flatten().to_pylist()
        ends = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)).tolist()
        return [tuple(values[begin:end]) for begin, end in zip([0, *ends[:-1]], ends, strict=True)] if values else [()] * len(column)
    if len(column) and (first := column[0].as_py()) == column[-1].as_py() and pc.all(pc.equal(column, column[0])).as_py():
        return [first] * len(column)
    objects: list[Any] = column.to_pylist()
    return objects
