"""Files of one series differ in a few elements: what follows from all the others is known from the last file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from medssl.archive.headers.plain import Element, PlainHeader
from medssl.archive.instance import Instance

Read = Callable[[PlainHeader], Any]
"""A field of an instance, from its header."""
_FIELDS = [field.name for field in fields(Instance)]
_ALWAYS = frozenset({0x00020000, 0x00020003, 0x00080018, 0x00200013, 0x00200032, 0x00201041})
"""Elements that differ from slice to slice: length and UID of the file's own, UID, number, position, location."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes that are the same in every file, up to the length of an element that differs."""

    same: bytes
    wide: bool
    """Is the length one of four bytes?"""
    tag: int
    """0 where the element is not wanted."""
    vr: str | None


@dataclass(slots=True)
class Likeness:
    """The header that files share, but for some elements."""

    pieces: list[_Piece]
    end: bytes
    """What follows the last element that differs, up to the pixels."""
    header: PlainHeader
    head: bytes
    differ: frozenset[int]
    one: Instance
    """The slice that a file was."""
    values: list[Any]
    """Its fields, in their order."""
    again: list[tuple[int, Read]]
    """The fields that follow from elements that differ, with how they are read."""

    def place_of_pixels(self, head: bytes) -> int:
        """Where the pixels of a file begin whose header is this one, but for elements that may differ; -1 if it is another.

        Then `header` holds those elements of that file.
        """
        at, items = 128, self.header.items
        for piece in self.pieces:
            if not head.startswith(piece.same, at):
                return -1
            at += len(piece.same)
            value = at + (4 if piece.wide else 2)
            length = int.from_bytes(head[at:value], "little")
            at = value + length
            if length & 1 or at > len(head):
                return -1
            if piece.tag:
                items[piece.tag] = piece.vr, head[value:at]
        return at + len(self.end) if head.startswith(self.end, at) else -1


def differing(head: bytes, header: PlainHeader, last: Likeness | None) -> frozenset[int]:
    """The elements in which a header differs, or is known to differ, from others."""
    if last is None or [one.tag for one in last.header.elements] != [one.tag for one in header.elements]:
        return _ALWAYS
    if _content(head, header, _SERIES) != _content(last.head, last.header, _SERIES):
        return last.differ
    pairs = zip(header.elements, last.header.elements, strict=True)
    return last.differ | {one.tag for one, other in pairs if head[one.at : one.end] != last.head[other.at : other.end]}


_SERIES = 0x0020000E


def _content(head: bytes, header: PlainHeader, tag: int) -> bytes:
    return next((head[one.value : one.end] for one in header.elements if one.tag == tag), b"")


def likeness(
    head: bytes, header: PlainHeader, differ: frozenset[int], one: Instance, reads: Mapping[int, tuple[Read, Collection[int]]]
) -> Likeness | None:
    """What files like this one share; None where its header does not lie in `head`, or an element that differs has no length.

    `reads`: place of each field of an instance -> how it is read and the elements that it was read from.
    """
    if not 0 < header.pixels_at <= len(head):
        return None
    pieces: list[_Piece] = []
    at = 128
    for element in header.elements:
        if element.tag in differ:
            wide = element.value - element.at == 12 or (header.implicit and element.tag >> 16 != 2)
            start = element.value - (4 if wide else 2)
            if int.from_bytes(head[start : element.value], "little") != element.end - element.value:
                return None
            pieces.append(_Piece(head[at:start], wide, *_wanted(header, element)))
            at = element.end
    again = [(place, read) for place, (read, elements) in reads.items() if not differ.isdisjoint(elements)]
    return Likeness(pieces, head[at : header.pixels_at], header, head, differ, one, [getattr(one, name) for name in _FIELDS], again)


def _wanted(header: PlainHeader, element: Element) -> tuple[int, str | None]:
    found = header.items.get(element.tag)
    return (0, None) if found is None else (element.tag, found[0])
