"""SliceLocation in place of a position that was removed: order and distances of the slices, and nothing of where they lie in the plane."""

from __future__ import annotations

from dataclasses import replace

from medssl.archive import geometry
from medssl.archive.instance import Instance
from medssl.archive.outcomes import Reason

_STANDS_IN = (
    "the position is missing and SliceLocation stands in: where the image lies in its plane is unknown, and whether SliceLocation runs "
    "along the slice normal or against it, so that the volume may be mirrored"
)


def placed_by_location(one: Instance) -> Instance:
    """The same instance, with a position on the slice normal where only that is missing and SliceLocation is there."""
    if one.reason != Reason.NO_POSITION or len(one.location) != 1 or not geometry.usable_position(one.location):
        return one
    position = one.location[0] * geometry.slice_normal(one.orientation)
    return replace(one, position=tuple(position.tolist()), reason="", warnings=(*one.warnings, _STANDS_IN))
