"""Where the pixels of a file lie, and whether they are all there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple

from medssl.archive.instance import PALETTE, Instance

DEFLATED = "1.2.840.10008.1.2.1.99"
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED)
"""Transfer syntaxes whose pixels lie as they are: implicit, explicit, big endian, deflated."""
ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
"""How an item of encapsulated pixels begins, and what follows the last."""


@dataclass(slots=True)
class Bytes:
    """A file, of which the first bytes may be known."""

    file: BinaryIO
    head: bytes = b""

    def read(self, at: int, count: int) -> bytes:
        """`count` bytes from `at`, or as many as there are."""
        if at + count <= len(self.head):
            return self.head[at : at + count]
        self.file.seek(at)
        return self.file.read(count)


class Place(NamedTuple):
    """Where the pixels of a frame lie in its file."""

    at: int = -1
    length: int = -1


class PixelElement(NamedTuple):
    """The beginning of a PixelData element."""

    vr: bytes
    """Empty where it is not stated."""
    length: int
    value: int
    """Bytes from its own begin to its value."""


def plane_length(one: Instance) -> int:
    """Bytes of the plane that an instance is or lies in, where it is not compressed."""
    rows, columns = one.tile[:2] or (one.rows, one.columns)
    # A palette's colours lie elsewhere; of 4:2:2 two pixels share their two colour differences.
    samples = 1 if one.photometric == PALETTE else 2 if one.photometric == "YBR_FULL_422" else one.samples
    return rows * columns * samples * one.bits_allocated // 8


def pixel_element(start: bytes, syntax: str) -> PixelElement | None:
    """What the first 12 bytes of a PixelData element say; None where there is none."""
    big = syntax == UNCOMPRESSED[2]
    if start[:4] != (b"\x7f\xe0\x00\x10" if big else b"\xe0\x7f\x10\x00") or len(start) < 8:
        return None
    order: Literal["big", "little"] = "big" if big else "little"
    # What stands there decides, not the transfer syntax: some writers state explicit VR and write implicit.
    if start[4:6] in (b"OB", b"OW"):
        return PixelElement(start[4:6], int.from_bytes(start[8:], order), 12) if len(start) == 12 else None
    return PixelElement(b"", int.from_bytes(start[4:8], order), 8)


def frame_places(content: Bytes, at: int, found: Instance, size: int, frames: int) -> list[Place] | None:
    """Where each of the frames lies, -1 where only decoders can tell; None where the file ends before its pixels do, or they are too few.

    `at` is where the PixelData element should begin in a file of `size` bytes; the syntax is any but the deflated.
    """
    element = pixel_element(content.read(at, 12), found.syntax)
    if element is None:
        return None
    return frames_from(content, at + element.value, element.length, found, size, frames)


def frames_from(content: Bytes, first: int, length: int, found: Instance, size: int, frames: int) -> list[Place] | None:
    """The same for pixels of `length` that begin at `first`."""
    if found.syntax in UNCOMPRESSED:
        plane = plane_length(found)
        if frames * plane > min(length, size - first):
            return None
        return [Place(first + number * plane, plane) for number in range(frames)]
    fragments = _fragments(content, first, size)
    if fragments is None:
        return None
    # The first item says where frames begin, or nothing.
    return fragments[1:] if len(fragments) == frames + 1 else [Place()] * frames


def _fragments(content: Bytes, at: int, size: int) -> list[Place] | None:
    """The items of encapsulated pixels, by their lengths alone; None where one is not whole, or they do not end."""
    found: list[Place] = []
    while True:
        start = content.read(at, 8)
        if len(start) < 8:
            return None
        if start[:4] == _END:
            return found
        length = int.from_bytes(start[4:], "little")
        at += 8
        if start[:4] != ITEM or length > size - at:
            return None
        found.append(Place(at, length))
        at += length
