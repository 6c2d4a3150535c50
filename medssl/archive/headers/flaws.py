"""Why an image cannot be used, by its header alone."""

from __future__ import annotations

from functools import lru_cache

from medssl.archive.decoders import can_decode
from medssl.archive.geometry import usable_orientation, usable_position, usable_spacing
from medssl.archive.headers.elements import Header, has
from medssl.archive.headers.pixel_element import UNCOMPRESSED
from medssl.archive.instance import Instance
from medssl.archive.narrowing import fits_float32
from medssl.archive.outcomes import Reason


def flaw(found: Instance, header: Header) -> Reason | None:
    """Why a slice cannot be used."""
    reason = flaw_of_pixels(found, header)
    if reason is not None:
        return reason
    if not found.is_grey:
        return Reason.BAD_PIXELS
    return flaw_of_position(found.position) if _is_usable_plane(found.pixel_spacing, found.orientation) else Reason.BAD_GEOMETRY


def flaw_of_pixels(found: Instance, header: Header) -> Reason | None:
    """Why the pixels of a slice or a 2D image cannot be read, whatever their colours are."""
    if has(header, "ModalityLUTSequence"):
        return Reason.MODALITY_TABLE
    if not _is_readable(found.syntax):
        return Reason.NO_DECODER
    sizes = found.rows > 0 and found.columns > 0
    usable = sizes and found.has_usable_bits and _is_usable_scaling(found.slope, found.intercept, found.bits_allocated)
    return None if usable else Reason.BAD_PIXELS


def flaw_of_position(position: tuple[float, ...]) -> Reason | None:
    """Why a slice has no place, whatever else its header says."""
    if not position:
        return Reason.NO_POSITION
    return None if len(position) == 3 and usable_position(position) else Reason.BAD_GEOMETRY


@lru_cache(maxsize=128)
def _is_readable(syntax: str) -> bool:
    return syntax in UNCOMPRESSED or can_decode(syntax)


@lru_cache(maxsize=512)
def _is_usable_scaling(slope: float, intercept: float, bits: int) -> bool:
    return fits_float32(slope, abs(slope) * 2.0 ** min(bits, 64) + abs(intercept))


@lru_cache(maxsize=512)
def _is_usable_plane(spacing: tuple[float, ...], orientation: tuple[float, ...]) -> bool:
    return len(spacing) == 2 and usable_spacing(spacing) and usable_orientation(orientation)
