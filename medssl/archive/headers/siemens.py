"""What Siemens says of a mosaic, in its own header within the header (CSA)."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np

from medssl.archive.geometry import Float
from medssl.archive.headers.elements import Header, text, tolerant, values, whole

_BLOCKS = range(0x10, 0x18)
"""Where private blocks are looked for: the first is usual, and who rewrites files may move them."""
_CSA_GROUP, _CSA_CREATOR, _CSA = 0x0029, "SIEMENS CSA HEADER", 0x10
_MR_GROUP, _MR_CREATOR, _COUNT, _TIMES = 0x0019, "SIEMENS MR HEADER", 0x0A, 0x29


def _creator(group: int, block: int) -> int:
    return group << 16 | block


def _element(group: int, block: int, element: int) -> int:
    return group << 16 | block << 8 | element


CSA = frozenset(_element(_CSA_GROUP, block, _CSA) for block in _BLOCKS)
"""Where the header within the header may stand: long, and read of mosaics alone."""
ELEMENTS = (
    *CSA,
    *(_creator(group, block) for group in (_CSA_GROUP, _MR_GROUP) for block in _BLOCKS),
    *(_element(_MR_GROUP, block, element) for block in _BLOCKS for element in (_COUNT, _TIMES)),
)


class Mosaic(NamedTuple):
    """A plane of tiles, each a slice."""

    slices: int
    normal: Float
    """(3,) the side to which slices follow each other (LPS)."""


def mosaic_of(dataset: Header) -> Mosaic | None:
    """How many slices and which way they run; None where the header does not say both.

    Which way they run stands in the CSA header alone: position and orientation are those of the first slice, and operators have
    slices numbered either way.
    """
    tags = _csa(dataset)
    count, direction = _count(dataset, tags), np.array(_items(tags, "SliceNormalVector")[:3], float)
    if not 0 < count <= 4096 or direction.shape != (3,) or not 0.9 < float(np.linalg.norm(direction)) < 1.1:
        return None
    return Mosaic(count, direction)


def _count(dataset: Header, tags: dict[str, Any]) -> int:
    """As stated, else the number of times at which slices were taken; 0 where nothing says it."""
    block = _block(dataset, _MR_GROUP, _MR_CREATOR)
    stated = whole(dataset, _element(_MR_GROUP, block, _COUNT), 0) if block else 0
    counts = _items(tags, "NumberOfImagesInMosaic")
    times = tolerant(dataset, _element(_MR_GROUP, block, _TIMES)) if block else ()
    return stated or (int(counts[0]) if len(counts) == 1 else 0) or len(times) or len(_items(tags, "MosaicRefAcqTimes"))


def _block(dataset: Header, group: int, creator: str) -> int:
    """The private block of that creator; 0 where there is none."""
    return next((block for block in _BLOCKS if text(dataset, _creator(group, block)).strip().upper() == creator), 0)


def _csa(dataset: Header) -> dict[str, Any]:
    block = _block(dataset, _CSA_GROUP, _CSA_CREATOR)
    content = values(dataset, _element(_CSA_GROUP, block, _CSA)) if block else []
    if len(content) != 1 or not isinstance(content[0], bytes):
        return {}
    # nibabel takes a second to import, and most files are no mosaics.
    from nibabel.nicom import csareader

    try:
        tags = csareader.read(content[0])["tags"]
    except (csareader.CSAError, struct.error, ValueError, LookupError, TypeError, OverflowError):
        return {}
    return dict(tags)


def _items(tags: dict[str, Any], name: str) -> list[float]:
    try:
        return [float(item) for item in tags.get(name, {}).get("items", [])]
    except (TypeError, ValueError):
        return []
