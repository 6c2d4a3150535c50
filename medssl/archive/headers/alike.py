"""Files of one series differ in a few elements: what follows from all the others is known from the last file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from medssl.archive.headers.pixel_element import PixelElement, pixel_element
from medssl.archive.headers.plain import HEAD, Beyond, Element, NotPlain, PlainHeader, end_of_sequence
from medssl.archive.instance import Instance

Read = Callable[[PlainHeader], Any]
"""A field of an instance, from its header."""
_FIELDS = [field.name for field in fields(Instance)]
_LEAST, _MORE = 1024, 256
"""Bytes that are read at least, and beyond the length of the last header: UIDs and numbers are not all as long."""
_ALWAYS = frozenset({0x00020000, 0x00020003, 0x00080018, 0x00200013, 0x00200032, 0x00201041})
"""Elements that differ from slice to slice: length and UID of the file's own, UID, number, position, location."""


class _Piece(NamedTuple):
    """Bytes that are the same in every file, up to the length of an element that differs."""

    same: bytes
    length_of: int
    """Bytes that its length is written in; 0 where it is a sequence that says itself where it ends."""
    tag: int
    """0 where it is of no use."""
    vr: str | None


@dataclass(slots=True)
class Likeness:
    """The header that files share, but for some elements."""

    pieces: list[_Piece]
    end: bytes
    """What follows the last element that differs, up to the pixels themselves."""
    pixels: PixelElement
    """What stands before them."""
    header: PlainHeader
    head: bytes
    differ: frozenset[int]
    one: Instance
    """The slice that a file was."""
    values: list[Any]
    """Its fields, in their order."""
    again: list[tuple[int, Read]]
    """The fields that follow from elements that differ, with how they are read."""
    judged: bool
    """Can all such a slice lack be a sound position?"""

    @property
    def start(self) -> int:
        """Bytes of a file that hold such a header, and what is looked at of a file of another kind."""
        return min(HEAD, max(_LEAST, self.header.pixels_at + _MORE))

    def first_pixel(self, head: bytes) -> int:
        """Where the pixels of a file lie whose header is this one, but for elements that may differ; -1 if it is another.

        Then `header` holds those elements of that file.
        """
        at, items, size = 128, self.header.items, len(head)
        for same, length_of, tag, vr in self.pieces:
            if not head.startswith(same, at):
                return -1
            at += len(same)
            if not length_of:
                at = _after_sequence(head, at, tag, self.header.implicit)
                if at < 0:
                    return -1
                continue
            value = at + length_of
            if value > size:
                return -1
            length = head[at] | head[at + 1] << 8
            if length_of == 4:
                length |= head[at + 2] << 16 | head[at + 3] << 24
            at = value + length
            if length & 1 or at > size:
                return -1
            if tag:
                items[tag] = vr, head[value:at]
        return at + len(self.end) if head.startswith(self.end, at) else -1


def _after_sequence(head: bytes, at: int, tag: int, implicit: bool) -> int:
    try:
        return end_of_sequence(head, at, tag, implicit)
    except (NotPlain, Beyond):
        return -1


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
    head: bytes,
    header: PlainHeader,
    differ: frozenset[int],
    one: Instance,
    reads: Mapping[int, tuple[Read, Collection[int]]],
    judging: Collection[int],
) -> Likeness | None:
    """What files like this one share; None where its header does not lie in `head`.

    `reads`: place of each field of an instance -> how it is read and the elements that it was read from. `judging`:
    fields that say whether a slice can be used, beside its position.
    """
    pixels = pixel_element(header.pixels, one.syntax)
    if pixels is None or header.pixels_at + pixels.value > len(head):
        return None
    pieces: list[_Piece] = []
    at = 128
    for element in header.elements:
        if element.tag in differ:
            wide = element.value - element.at == 12 or (header.implicit and element.tag >> 16 != 2)
            start = element.value - (length_of := 4 if wide else 2)
            if int.from_bytes(head[start : element.value], "little") == element.end - element.value:
                pieces.append(_Piece(head[at:start], length_of, *_wanted(header, element)))
            else:
                pieces.append(_Piece(head[at : element.value], 0, element.tag, None))
            at = element.end
    again = [(place, read) for place, (read, elements) in reads.items() if not differ.isdisjoint(elements)]
    end = head[at : header.pixels_at + pixels.value]
    values = [getattr(one, name) for name in _FIELDS]
    judged = all(place not in judging for place, _ in again)
    return Likeness(pieces, end, pixels, header, head, differ, one, values, again, judged)


def _wanted(header: PlainHeader, element: Element) -> tuple[int, str | None]:
    found = header.items.get(element.tag)
    return (0, None) if found is None else (element.tag, found[0])
