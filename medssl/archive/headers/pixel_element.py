"""Where the pixels of a file lie, and whether they are all there."""

from __future__ import annotations

from typing import BinaryIO, Literal

from medssl.archive.instance import Instance

DEFLATED = "1.2.840.10008.1.2.1.99"
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED)
"""Transfer syntaxes whose pixels lie as they are: implicit, explicit, big endian, deflated."""


def plane_length(one: Instance) -> int:
    """Bytes of the plane that an instance is or lies in, where it is not compressed."""
    rows, columns = one.tile[:2] or (one.rows, one.columns)
    # A palette's colours lie elsewhere; of 4:2:2 two pixels share their two colour differences.
    samples = 1 if one.photometric == "PALETTE COLOR" else 2 if one.photometric == "YBR_FULL_422" else one.samples
    return rows * columns * samples * one.bits_allocated // 8


def pixel_element(file: BinaryIO, at: int, syntax: str) -> tuple[bytes, int] | None:
    """VR and length of the PixelData element at `at`, the file being left at its first byte; None where there is none."""
    big = syntax == UNCOMPRESSED[2]
    file.seek(at)
    start = file.read(8)
    if start[:4] != (b"\x7f\xe0\x00\x10" if big else b"\xe0\x7f\x10\x00") or len(start) < 8:
        return None
    order: Literal["big", "little"] = "big" if big else "little"
    # What stands there decides, not the transfer syntax: some writers state explicit VR and write implicit.
    if start[4:6] in (b"OB", b"OW"):
        length = file.read(4)
        return (start[4:6], int.from_bytes(length, order)) if len(length) == 4 else None
    return b"", int.from_bytes(start[4:], order)


def is_truncated(file: BinaryIO, found: Instance, at: int, frames: int) -> bool:
    """Does the file end before its pixels do, or are there fewer than its planes need?"""
    if found.syntax == DEFLATED:
        return False
    element = pixel_element(file, at, found.syntax)
    if element is None:
        return True
    if found.syntax in UNCOMPRESSED:
        needed = frames * plane_length(found)
        return element[1] < needed or found.size - file.tell() < needed
    return not _fragments_complete(file, found.size)


def _fragments_complete(file: BinaryIO, size: int) -> bool:
    """Walk the items of encapsulated pixel data by their lengths alone."""
    while True:
        start = file.read(8)
        if len(start) < 8:
            return False
        if start[:4] == b"\xfe\xff\xdd\xe0":
            return True
        length = int.from_bytes(start[4:], "little")
        if start[:4] != b"\xfe\xff\x00\xe0" or length > size - file.tell():
            return False
        file.seek(length, 1)
