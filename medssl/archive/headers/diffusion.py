"""b-value and gradient direction of a diffusion image: the standard elements, else those of Siemens, GE, Philips and United Imaging."""

from __future__ import annotations

import struct
from typing import NamedTuple

from medssl.archive.headers.elements import Header, text, tolerant, values


class Private(NamedTuple):
    """Where a vendor keeps the two, in the block that its private creator reserves."""

    creator: int
    named: str
    """What stands in the creator's name."""
    b_value: int
    direction: tuple[int, ...]
    """One element of three numbers, or three elements."""
    code: str
    """How the numbers are written where the file does not say: as text, or as `struct` calls them."""


PRIVATE = (
    Private(0x00190010, "SIEMENS", 0x0019100C, (0x0019100E,), "d"),
    Private(0x00430010, "GEMS", 0x00431039, (0x001910BB, 0x001910BC, 0x001910BD), "text"),
    Private(0x20010010, "Philips", 0x20011003, (0x200510B0, 0x200510B1, 0x200510B2), "f"),
    Private(0x00650010, "Image Private Header", 0x00651009, (0x00651037,), "d"),
)
TAGS = tuple(tag for vendor in PRIVATE for tag in (vendor.creator, vendor.b_value, *vendor.direction))
_GE_MARK = 1e6
"""GE adds a multiple of this, often 1e9, to b-values."""


class Diffusion(NamedTuple):
    """What a slice says of itself; empty where it says nothing."""

    b_value: tuple[float, ...] = ()
    direction: tuple[float, ...] = ()

    @property
    def key(self) -> str:
        """As text, only ever compared."""
        return "\\".join(f"{value:.6g}" for value in (*self.b_value, *self.direction))


def diffusion(dataset: Header) -> Diffusion:
    """Of one image."""
    found = Diffusion(tolerant(dataset, "DiffusionBValue")[:1], tolerant(dataset, "DiffusionGradientOrientation"))
    for vendor in PRIVATE:
        if vendor.named in text(dataset, vendor.creator):
            b_value = _numbers(dataset, vendor.b_value, vendor.code)[:1]
            direction = tuple(value for tag in vendor.direction for value in _numbers(dataset, tag, vendor.code))
            if vendor.named == "GEMS":
                b_value = tuple(value % _GE_MARK for value in b_value)
            found = Diffusion(found.b_value or b_value, found.direction or (direction if len(direction) == 3 else ()))
    return found


def _numbers(dataset: Header, tag: int, code: str) -> tuple[float, ...]:
    content = values(dataset, tag)
    if len(content) != 1 or not isinstance(content[0], bytes):
        return tolerant(dataset, tag)
    return _as_text(content[0]) if code == "text" or _looks_like_text(content[0]) else _as_binary(content[0], code)


def _looks_like_text(content: bytes) -> bool:
    return all(byte in b"0123456789+-.eE\\ \0" for byte in content) and any(byte in b"0123456789" for byte in content)


def _as_text(content: bytes) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in content.decode("ascii").strip(" \0").split("\\"))
    except ValueError:
        return ()


def _as_binary(content: bytes, code: str) -> tuple[float, ...]:
    size = struct.calcsize(code)
    return struct.unpack(f"<{len(content) // size}{code}", content) if len(content) % size == 0 else ()
