"""What Siemens says of a mosaic, in its own header within the header (CSA)."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np

from medssl.archive.geometry import Float
from medssl.archive.headers.elements import Header, text, values, whole

_CREATOR, CSA = 0x00290010, 0x00291010
_COUNT_CREATOR, _COUNT = 0x00190010, 0x0019100A
ELEMENTS = (_CREATOR, CSA, _COUNT)


class Mosaic(NamedTuple):
    """A plane of tiles, each a slice."""

    slices: int
    normal: Float
    """(3,) the side to which slices follow each other (LPS)."""


def mosaic_of(dataset: Header) -> Mosaic | None:
    """How many slices and which way they run; None where the header does not say both."""
    tags = _csa(dataset)
    counts, normal = _items(tags, "NumberOfImagesInMosaic"), _items(tags, "SliceNormalVector")
    count = int(counts[0]) if len(counts) == 1 else 0
    if "SIEMENS" in text(dataset, _COUNT_CREATOR):
        count = whole(dataset, _COUNT, count)
    direction = np.array(normal[:3], float)
    if not 0 < count <= 4096 or direction.shape != (3,) or not 0.9 < float(np.linalg.norm(direction)) < 1.1:
        return None
    return Mosaic(count, direction)


def _csa(dataset: Header) -> dict[str, Any]:
    content = values(dataset, CSA)
    if "SIEMENS CSA HEADER" not in text(dataset, _CREATOR) or len(content) != 1 or not isinstance(content[0], bytes):
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
