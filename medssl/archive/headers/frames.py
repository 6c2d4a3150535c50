"""Objects of many frames, and planes of many tiles: the header of each slice in them, as if it were a file of its own.

Enhanced objects say in functional groups what is the same for all frames and what is each one's; nuclear medicine gives the position
of the first slice and a vector of the others; United Imaging's grids keep a sequence with a position for each tile; Siemens' mosaics
give the position of the first tile and the direction of the others.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
from pydicom import Dataset
from pydicom.filereader import read_sequence

from medssl.archive.geometry import slice_normal, usable_orientation, usable_spacing
from medssl.archive.headers.elements import Header, has, number, numbers, parsed, tag_of, text, texts, values, whole
from medssl.archive.headers.nuclear import is_reconstruction, placed_frames
from medssl.archive.headers.siemens import mosaic_of
from medssl.archive.outcomes import Reason

MOST_FRAMES = 2**17
"""Frames of one object that are read."""
_SHARED, _EACH = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_GROUPS = [
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "FrameContentSequence",
    "PixelValueTransformationSequence",
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "PETFrameCorrectionFactorsSequence",
    "XRay3DFrameTypeSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
    "MRTimingAndRelatedParametersSequence",
    "MRModifierSequence",
    "CardiacSynchronizationSequence",
    "CTReconstructionSequence",
    "TemporalPositionSequence",
]
"""Functional groups that say where a frame lies and what tells it from others; some refer to other objects and must not be mixed in."""
_WITHIN = ("DiffusionGradientDirectionSequence",)
_CLASSIC = {
    "EffectiveEchoTime": "EchoTime",
    "TemporalPositionIndex": "TemporalPositionIdentifier",
    "FrameAcquisitionNumber": "AcquisitionNumber",
    "FrameAcquisitionDateTime": "AcquisitionDateTime",
    "NominalCardiacTriggerDelayTime": "TriggerTime",
    "InversionTimes": "InversionTime",
    "FrameType": "ImageType",
}
"""What an enhanced object calls differently from a classic one."""
_GRID_COUNT, _GRID = 0x00651050, 0x00651051
ELEMENTS = (*f"{_SHARED} {_EACH} DimensionIndexSequence".split(), 0x00650010, _GRID_COUNT, _GRID)


class Tile(NamedTuple):
    """A part of a plane."""

    rows: int
    columns: int
    whole_rows: int
    whole_columns: int
    top: int
    left: int


@dataclass(frozen=True)
class Frame:
    """One slice of an object."""

    number: int
    """Counted from 0."""
    header: Header
    """What a classic slice would say."""
    tile: Tile | None = None
    """Where it lies in the plane; None where a frame is a plane of its own."""
    position: tuple[float, ...] = ()
    """Where its header does not say that itself."""
    dimensions: str = ""
    """Dimension indices that count neither places nor stacks, only ever compared."""


def frame_count(dataset: Header) -> int:
    """NumberOfFrames, 1 where it is not stated; raises `ValueError` beyond the 32 bits of the standard, which no table could hold."""
    stated = number(dataset, "NumberOfFrames", 1)
    if not abs(stated) < 2**31:
        raise ValueError("NumberOfFrames is no number of 32 bits")
    return int(stated)


def frames_of(dataset: Header, frames: int) -> list[Frame] | Reason | None:
    """The slices of an object that holds many; None where it is one slice, a reason where its slices have no position of their own.

    Raises `ValueError` for numbers that contradict each other.
    """
    if has(dataset, _EACH):
        return list(_enhanced(parsed(dataset), frames))
    if is_reconstruction(dataset) and (frames > 1 or not has(dataset, "ImagePositionPatient")):
        return _nuclear(parsed(dataset), frames)
    if frames > 1:
        return Reason.MULTIFRAME
    if has(dataset, _GRID) and "Image Private Header" in text(dataset, 0x00650010):
        return _grid(dataset)
    return _mosaic(dataset) if is_mosaic(dataset) else None


def is_mosaic(dataset: Dataset) -> bool:
    """Does the header call its image a mosaic, as Siemens does?"""
    return "MOSAIC" in (value.upper() for value in texts(dataset, "ImageType"))


def _enhanced(dataset: Dataset, frames: int) -> Iterator[Frame]:
    each = values(dataset, _EACH)
    if len(each) != frames or frames > MOST_FRAMES:
        raise ValueError(f"{len(each)} functional groups for {frames} frames")
    shared = values(dataset, _SHARED)
    common = _copied(dataset, (_SHARED, _EACH, "DimensionIndexSequence", "NumberOfFrames"))
    _mix_in(common, shared[0] if shared else Dataset())
    kept = _kept_dimensions(dataset)
    first = whole(dataset, "InstanceNumber", 1)
    for index, groups in enumerate(each):
        header = _copied(common)
        _mix_in(header, groups)
        _name_as_classic(header)
        header.InstanceNumber = first * MOST_FRAMES + index
        indices = texts(header, "DimensionIndexValues")
        yield Frame(index, header, dimensions="\\".join(indices[place] for place in kept if place < len(indices)))


def _copied(dataset: Dataset, without: Collection[str] = ()) -> Dataset:
    left_out = {tag_of(name) for name in without}
    found = Dataset({tag: dataset.get_item(tag) for tag in dataset.keys() if tag not in left_out})  # noqa: SIM118 - values stay raw
    found.set_original_encoding(*dataset.original_encoding, dataset.original_character_set)
    return found


def _mix_in(header: Dataset, groups: Dataset) -> None:
    for name in _GROUPS:
        items = values(groups, name)
        if items:
            _copy_elements(items[0], header)


def _copy_elements(item: Dataset, header: Dataset) -> None:
    for tag in item.keys():  # noqa: SIM118 - iterating a Dataset converts each element
        if tag in map(tag_of, _WITHIN):
            for inner in values(item, tag)[:1]:
                _copy_elements(inner, header)
        else:
            element = item.get_item(tag)
            assert element is not None
            header[tag] = element


def _name_as_classic(header: Dataset) -> None:
    for name, classic in _CLASSIC.items():
        found = values(header, name)
        if found:
            setattr(header, classic, found if len(found) > 1 else found[0])


def _kept_dimensions(dataset: Dataset) -> tuple[int, ...]:
    """Which of the dimension indices say something other than place and stack."""
    places = {int(tag_of(name)) for name in ("InStackPositionNumber", "ImagePositionPatient", "StackID", "SliceLocation")}
    pointers = [_pointer(item) for item in values(dataset, "DimensionIndexSequence")]
    return tuple(index for index, pointer in enumerate(pointers) if pointer not in places)


def _pointer(item: Dataset) -> int:
    found = values(item, "DimensionIndexPointer")
    if len(found) == 2:
        # Two halves, as they lie in the file.
        return int(found[0]) << 16 | int(found[1])
    return int(found[0]) if found else 0


def _nuclear(dataset: Dataset, frames: int) -> list[Frame] | Reason:
    placed = placed_frames(dataset, frames)
    if placed is None:
        return Reason.MULTIFRAME
    header = _copied(dataset)
    header.ImageOrientationPatient = list(placed.orientation)
    both = zip(placed.positions, placed.dimensions, strict=True)
    return [Frame(index, header, position=position, dimensions=dimensions) for index, (position, dimensions) in enumerate(both)]


def _grid(dataset: Header) -> list[Frame]:
    items = _items(dataset, _GRID)
    count = whole(dataset, _GRID_COUNT, len(items))
    if count != len(items):
        raise ValueError(f"{len(items)} positions for {count} tiles")
    tiles = _tiles(dataset, count, square=False)
    return [Frame(index, dataset, tile, numbers(items[index], "ImagePositionPatient")) for index, tile in enumerate(tiles)]


def _mosaic(dataset: Header) -> list[Frame] | Reason:
    found = mosaic_of(dataset)
    if found is None:
        return Reason.MOSAIC
    tiles = _tiles(dataset, found.slices, square=True)
    position, spacing = np.array(numbers(dataset, "ImagePositionPatient")), numbers(dataset, "PixelSpacing")
    orientation, between = numbers(dataset, "ImageOrientationPatient"), number(dataset, "SpacingBetweenSlices", math.nan)
    sound = position.shape == (3,) and len(spacing) == 2 and usable_spacing([*spacing, between]) and usable_orientation(orientation)
    if not sound:
        return Reason.BAD_GEOMETRY
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    # The position is that of the corner that a plane of the whole mosaic's size would have, with the same centre.
    across, down = (tiles[0].whole_columns - tiles[0].columns) / 2, (tiles[0].whole_rows - tiles[0].rows) / 2
    corner = position + row * spacing[1] * across + column * spacing[0] * down
    normal = slice_normal(orientation)
    step = normal * between * (1 if normal @ found.normal > 0 else -1)
    return [Frame(index, dataset, tile, tuple((corner + index * step).tolist())) for index, tile in enumerate(tiles)]


def _items(dataset: Header, tag: int) -> list[Dataset]:
    """The items of a private sequence, also of one that is bytes because the file does not say what it is."""
    found = values(dataset, tag)
    if len(found) != 1 or not isinstance(found[0], bytes):
        return found
    content = BytesIO(found[0])
    return list(read_sequence(content, is_implicit_VR=True, is_little_endian=True, bytelength=len(found[0]), encoding="iso8859"))


def _tiles(dataset: Header, count: int, square: bool) -> list[Tile]:
    """The places of so many tiles, row by row, in a grid as wide as high, or no higher than it must be."""
    rows, columns = whole(dataset, "Rows", 0), whole(dataset, "Columns", 0)
    if not 0 < count <= MOST_FRAMES:
        raise ValueError(f"{count} tiles")
    across = math.isqrt(count - 1) + 1
    down = across if square else math.ceil(count / across)
    if not (0 < rows <= 0xFFFF and 0 < columns <= 0xFFFF) or rows % down or columns % across:
        raise ValueError(f"{count} tiles do not fill {rows} x {columns}")
    high, wide = rows // down, columns // across
    return [Tile(high, wide, rows, columns, index // across * high, index % across * wide) for index in range(count)]
