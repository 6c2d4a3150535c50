"""The header of an ordinary file, walked here: pydicom costs several times more than everything else that a scan does.

Ordinary is a Part 10 file with its preamble, in little endian, explicit or implicit, its elements in order, each of an even and known
length. Whatever is not, or is not surely, raises `NotPlain`: then pydicom reads the file, so that both give the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from struct import Struct
from typing import Any, BinaryIO, NamedTuple

from pydicom.datadict import dictionary_VR
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

HEAD = 2**14
"""Bytes that are read at once: the whole header of most files."""
_LARGEST = 2**20
"""Bytes that one element, or one sequence without a length, may take."""
_DEEPEST = 16
"""Sequences within sequences."""
_SHORT = {vr.value.encode(): str(vr.value) for vr in EXPLICIT_VR_LENGTH_16}
_LONG = {vr.value.encode(): str(vr.value) for vr in EXPLICIT_VR_LENGTH_32}
_ELEMENT, _IMPLICIT, _LENGTH, _ITEM = (Struct(code).unpack_from for code in ("<HH2sH", "<HHI", "<I", "<II"))
_UNKNOWN = 0xFFFFFFFF
"""A length that is not stated."""
_START, _END_OF_ITEM, _END = 0xE000FFFE, 0xE00DFFFE, 0xE0DDFFFE
"""The tags of an item and of the ends of an item and a sequence, as they lie in the file."""
PIXELS = 0x7FE00010
_FLOAT_PIXELS = 0x7FE00008
_SYNTAX, _CHARACTERS = 0x00020010, 0x00080005
META = (0x00020002, _SYNTAX)
"""What is wanted of the file's own elements."""
_META_LENGTH = b"\2\0\0\0UL\4\0"
"""How the first element of a file begins."""
_PLAIN_UID = re.compile(rb"[0-9.]+\0?")
_PLAIN_CHARACTERS = re.compile(rb"(ISO_IR \d+|ISO 2022 IR 6|ISO 2022 IR 100)? ?")
_ENCAPSULATED = re.compile(rb"1\.2\.840\.10008\.1\.2\.(4\.\d+|5)\0?")


Content = tuple[str | None, bytes]
"""Value representation, None where the file states none, and the bytes of an element."""


class NotPlain(Exception):
    """A file, or an element of it, that is left to pydicom."""


class Element(NamedTuple):
    """Where an element lies in the file."""

    tag: int
    at: int
    """Its first byte."""
    value: int
    """The first byte of its value."""
    end: int
    """The first byte after it."""


class _Asked(dict[int, Content]):
    """Remembers what was asked for."""

    def __init__(self, items: dict[int, Content]) -> None:
        super().__init__(items)
        self.tags: set[int] = set()

    def get(self, tag: int, default: Any = None) -> Any:
        self.tags.add(tag)
        return super().get(tag, default)


@dataclass(slots=True)
class PlainHeader:
    """The wanted elements of a header, as they lie in the file."""

    wanted: frozenset[int]
    items: dict[int, Content] = field(default_factory=dict)
    elements: list[Element] = field(default_factory=list)
    """All of the top level, in order, up to the pixels."""
    pixels_at: int = -1
    """Where the element of the pixels begins."""
    pixels: bytes = b""
    """Its first bytes: tag, representation and length."""
    implicit: bool = False

    def __contains__(self, tag: int) -> bool:
        self._check(tag)
        return tag in self.items

    def get(self, tag: int) -> Content | None:
        """Representation and content; None where the element is missing."""
        found = self.items.get(tag)
        if found is None:
            self._check(tag)
        return found

    def reads(self, read: Callable[[PlainHeader], object]) -> frozenset[int]:
        """The elements whose content `read` asks for."""
        items = self.items
        self.items = asked = _Asked(items)
        try:
            read(self)
        finally:
            self.items = items
        return frozenset(asked.tags)

    def _check(self, tag: int) -> None:
        if tag not in self.wanted:
            raise NotPlain("an element that was not kept")


@dataclass(slots=True)
class _Window:
    """A part of the file in memory."""

    file: BinaryIO
    buffer: bytes
    base: int
    """Where in the file the buffer begins."""

    def move(self, at: int, size: int = HEAD) -> None:
        """So that it begins at `at` of the file."""
        self.file.seek(at)
        self.buffer, self.base = self.file.read(size), at


def walk(file: BinaryIO, head: bytes, size: int, wanted: frozenset[int]) -> PlainHeader:
    """The header of a file of `size` bytes that begins with `head`; raises `NotPlain`.

    `wanted` are the elements that are kept; those of `META` are among them.
    """
    if head[128:132] != b"DICM":
        raise NotPlain("no preamble")
    found = PlainHeader(wanted)
    window = _Window(file, head, 0)
    at = _walk_meta(window, found)
    found.implicit = _is_implicit(window, found, at)
    _walk(window, found, at, size)
    vr, characters = found.items.get(_CHARACTERS, ("CS", b""))
    if vr not in ("CS", None) or not _PLAIN_CHARACTERS.fullmatch(characters):
        raise NotPlain("a character set of its own")
    return found


def _walk_meta(window: _Window, found: PlainHeader) -> int:
    """The file's own elements, which lie at its start in explicit VR; returns where the others begin."""
    buffer, at, last = window.buffer, 132, 0
    if buffer[132:140] != _META_LENGTH:
        raise NotPlain("no length of the elements before the header")
    while len(buffer) >= at + 12:
        group, number, code, length = _ELEMENT(buffer, at)
        if group != 2:
            return at
        tag, value, vr = group << 16 | number, at + 8, _SHORT.get(code)
        if vr is None:
            vr = _LONG.get(code)
            value, length = at + 12, _LENGTH(buffer, at + 8)[0]
        end = value + length
        if vr is None or vr == "SQ" or tag <= last or end > len(buffer):
            break
        if tag in META:
            found.items[tag] = vr, buffer[value:end]
            if vr != "UI" or not _PLAIN_UID.fullmatch(buffer, value, end):
                break
        found.elements.append(Element(tag, at, value, end))
        at, last = end, tag
    raise NotPlain("odd elements before the header")


def _is_implicit(window: _Window, found: PlainHeader, at: int) -> bool:
    syntax = found.items.get(_SYNTAX, ("", b""))[1]
    states_vr = window.buffer[at + 4 : at + 6].isalpha() and window.buffer[at + 4 : at + 6].isupper()
    if syntax.rstrip(b"\0") == ImplicitVRLittleEndian.encode():
        if states_vr:
            raise NotPlain("explicit, though it says otherwise")
        return True
    if not states_vr or not (syntax.rstrip(b"\0") == ExplicitVRLittleEndian.encode() or _ENCAPSULATED.fullmatch(syntax)):
        raise NotPlain("another transfer syntax")
    return False


def _walk(window: _Window, found: PlainHeader, start: int, size: int) -> None:
    """The elements from `start` of the file up to the pixels or the end of the file."""
    wanted, items, elements, implicit = found.wanted, found.items, found.elements, found.implicit
    buffer, base, at, last = window.buffer, window.base, start, 0x0002FFFF
    while True:
        if at + 12 > base + len(buffer):
            if at == size:
                return
            window.move(at)
            buffer, base = window.buffer, window.base
            if len(buffer) < 12:
                raise NotPlain("the file ends within an element")
        if implicit:
            group, number, length = _IMPLICIT(buffer, at - base)
            tag, value, vr = group << 16 | number, at + 8, None
        else:
            group, number, code, length = _ELEMENT(buffer, at - base)
            tag, value, vr = group << 16 | number, at + 8, _SHORT.get(code)
            if vr is None:
                vr = _LONG.get(code)
                if vr is None:
                    raise NotPlain("an unknown representation")
                value, length = at + 12, _LENGTH(buffer, at - base + 8)[0]
        if tag <= last:
            raise NotPlain("elements out of order")
        if tag >= _FLOAT_PIXELS:
            if tag != PIXELS:
                raise NotPlain("pixels of another kind, or none")
            found.pixels_at, found.pixels = at, buffer[at - base : at - base + 12]
            return
        if length == _UNKNOWN:
            end = _after_sequence(window, at, value, tag, vr)
            buffer, base = window.buffer, window.base
        else:
            end = value + length
            if end & 1 or end > size:
                raise NotPlain("a length that is odd or too great")
        if tag in wanted:
            if length > _LARGEST:
                raise NotPlain("a large element")
            if end > base + len(buffer):
                window.move(at, max(HEAD, end - at))
                buffer, base = window.buffer, window.base
                if end > base + len(buffer):
                    raise NotPlain("the file ends within an element")
            items[tag] = vr, buffer[value - base : end - base]
        elements.append(Element(tag, at, value, end))
        at, last = end, tag


class Beyond(Exception):
    """More of the file is needed."""


def _after_sequence(window: _Window, at: int, value: int, tag: int, vr: str | None) -> int:
    """Where a sequence of unknown length ends, which is walked element by element."""
    if vr not in ("SQ", None):
        raise NotPlain("an element without a length")
    for size in (0, 2**16, _LARGEST):
        if size:
            window.move(at, size)
        try:
            return window.base + end_of_sequence(window.buffer, value - window.base, tag, vr is None)
        except Beyond:
            continue
    raise NotPlain("a sequence that does not end")


def end_of_sequence(buffer: bytes, at: int, tag: int, implicit: bool) -> int:
    """Where a sequence ends whose items begin at `at`; raises `NotPlain`, or `Beyond` where the buffer ends before."""
    if implicit and not _is_sequence(tag, _item(buffer, at)[0]):
        raise NotPlain("an element without a length")
    return _end_of_sequence(buffer, at, implicit, 0)


@lru_cache(maxsize=512)
def _is_sequence(tag: int, first: int) -> bool:
    try:
        return bool(dictionary_VR(tag) == "SQ")
    except KeyError:
        return first == _START


def _item(buffer: bytes, at: int) -> tuple[int, int]:
    if at + 8 > len(buffer):
        raise Beyond
    tag, length = _ITEM(buffer, at)
    return tag, length


def _end_of_sequence(buffer: bytes, at: int, implicit: bool, depth: int) -> int:
    if depth > _DEEPEST:
        raise NotPlain("sequences nested deeply")
    while True:
        tag, length = _item(buffer, at)
        at += 8
        if tag == _END and length == 0:
            return at
        if tag != _START:
            raise NotPlain("a sequence of something else than items")
        at = _end_of_item(buffer, at, None if length == _UNKNOWN else at + length, implicit, depth)


def _end_of_item(buffer: bytes, at: int, end: int | None, implicit: bool, depth: int) -> int:
    """`end`: where it must end; None where it says so itself."""
    last = -1
    while at != end:
        tag, length = _item(buffer, at)
        if tag == _END_OF_ITEM and end is None and length == 0:
            return at + 8
        order = (tag & 0xFFFF) << 16 | tag >> 16
        if order <= last or order >= 0xFFFE0000:
            raise NotPlain("elements out of order within an item")
        last, value, vr = order, at + 8, None
        if not implicit:
            code = buffer[at + 4 : at + 6]
            vr = _SHORT.get(code)
            if vr is not None:
                length >>= 16
            else:
                vr, value = _LONG.get(code), at + 12
                if vr is None:
                    raise NotPlain("an unknown representation within an item")
                if value > len(buffer):
                    raise Beyond
                length = _LENGTH(buffer, at + 8)[0]
        if length == _UNKNOWN:
            if not (vr == "SQ" or (implicit and _is_sequence(order, _item(buffer, value)[0]))):
                raise NotPlain("an element without a length within an item")
            at = _end_of_sequence(buffer, value, implicit, depth + 1)
        else:
            at = value + length
        if end is not None and at > end:
            raise NotPlain("an item that is longer than it says")
        if at > len(buffer):
            raise Beyond
    return at
