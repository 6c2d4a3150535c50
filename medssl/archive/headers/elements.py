"""The values of a header's elements, read from the bytes as they lie in the file: tolerant of what scanners and exports get wrong.

pydicom converts and checks each element on access, which costs more than reading the file, and refuses what can be read, such as a
decimal comma. A header that a source has made itself holds converted values; both give the same here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.tag import BaseTag, Tag

from medssl.archive.headers.plain import Content, NotPlain, PlainHeader

Header: TypeAlias = Dataset | PlainHeader
"""As pydicom parsed it, or as it was walked here."""

_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q", "AT": "H"}
"""Numbers that are kept as such, by how `struct` calls them."""
_BYTES = frozenset({"OB", "OW", "OF", "OD", "OL", "OV", "UN"})
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_NOTHING: Content = (None, b"")
_SOUND = re.compile(rb"[+-]?\d+(\.\d+)?(\\[+-]?\d+(\.\d+)?)* ?")
_WRITTEN = frozenset({"DS", "IS"})
"""Numbers that are kept as text."""
LONGEST_NUMBER = 16
"""Characters of a decimal string that the standard allows."""
_FLAW = re.compile(rb"[,\0]|[^\\]{%d}" % (LONGEST_NUMBER + 1))
"""What flawed decimal strings hold, and rarely sound ones."""


@lru_cache(maxsize=512)
def tag_of(name: str | int) -> BaseTag:
    """The tag of a keyword, or of a number."""
    return Tag(tag_for_keyword(name) or 0) if isinstance(name, str) else Tag(name)


@lru_cache(maxsize=512)
def _bare(name: str | int) -> int:
    """The tag as a plain number, which is many times faster to look up."""
    return int(tag_of(name))


@lru_cache(maxsize=512)
def _usual(tag: int) -> str:
    try:
        # "US or SS": the sign does not matter for what is read here.
        return str(dictionary_VR(tag))[:2]
    except KeyError:
        # Files without representations do not say that the name of a private block is text.
        return "LO" if BaseTag(tag).is_private_creator else "UN"


def parsed(dataset: Header) -> Dataset:
    """As pydicom has it: what has sequences within sequences is read by it."""
    if isinstance(dataset, PlainHeader):
        raise NotPlain("an object of many slices")
    return dataset


def has(dataset: Header, name: str | int) -> bool:
    """Is the element there, be it empty?"""
    return (_bare(name) if isinstance(dataset, PlainHeader) else tag_of(name)) in dataset


def values(dataset: Header, name: str | int) -> list[Any]:
    """Texts, numbers or one `bytes`, as the value representation has it; nothing where the element is missing or empty."""
    if isinstance(dataset, PlainHeader):
        found = dataset.get(_bare(name))
        return [] if found is None else _decoded(_bare(name), found[0], found[1], True, dataset)
    tag = tag_of(name)
    element = dataset.get_item(tag)
    if element is None:
        return []
    if isinstance(element, RawDataElement):
        return _decoded(tag, element.VR, element.value, element.is_little_endian, dataset)
    return _converted(element)


def _decoded(tag: int, vr: str | None, content: bytes | None, little: bool, dataset: Header) -> list[Any]:
    if not content:
        return []
    if vr is None or vr == "UN":
        # Written by a program that does not know the element; that of the standard is known here.
        vr = _usual(tag)
    if vr in _BINARY:
        return _unpacked(content, _BINARY[vr], little)
    if vr in _BYTES:
        return [bytes(content)]
    if vr == "SQ" or not content.isascii():
        if isinstance(dataset, PlainHeader):
            raise NotPlain("a sequence, or text in another character set")
        # In the character set that the file states.
        return list(dataset[tag].value) if vr == "SQ" else _converted(dataset[tag])
    return list(_split(content))


@lru_cache(maxsize=4096)
def _split(content: bytes) -> tuple[str, ...]:
    """The values of a text; most recur in all files of a series."""
    stripped = content.decode("ascii").strip(" \0")
    return tuple(stripped.split("\\")) if stripped else ()


def _converted(element: DataElement) -> list[Any]:
    value = element.value
    if value is None or value == "" or value == b"":
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]


def _unpacked(content: bytes, code: str, little: bool) -> list[Any]:
    size = struct.calcsize(code)
    if len(content) % size:
        raise ValueError(f"{len(content)} bytes are no numbers of {size}")
    return list(struct.unpack(f"{'<' if little else '>'}{len(content) // size}{code}", content))


def texts(dataset: Header, name: str | int) -> list[str]:
    """Each value as text, without padding."""
    return [_stripped(value if isinstance(value, str) else _text_of(value)) for value in values(dataset, name)]


def _text_of(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


@lru_cache(maxsize=4096)
def _stripped(value: str) -> str:
    return value.strip(" \0").encode("utf-8", "replace").decode()


def text(dataset: Header, name: str | int) -> str:
    """All values as one text, between backslashes."""
    return "\\".join(texts(dataset, name))


def numbers(dataset: Header, name: str | int) -> tuple[float, ...]:
    """Each value as a number; raises `ValueError` where one is none."""
    written = _written(dataset, name)
    if written is not None and written.isascii():
        return _numbers_in(written)
    return tuple([_number_of(value) if isinstance(value, str) else float(value) for value in values(dataset, name)])


def _written(dataset: Header, name: str | int) -> bytes | None:
    """The numbers of an element that lie in the file as text; None where they do not, or pydicom has read them."""
    if not isinstance(dataset, PlainHeader):
        return None
    tag = _bare(name)
    found = dataset.get(tag)
    if found is None:
        return None
    vr, content = found
    return content if (_usual(tag) if vr is None or vr == "UN" else vr) in _WRITTEN else None


@lru_cache(maxsize=4096)
def _numbers_in(content: bytes) -> tuple[float, ...]:
    """The numbers of a text; where they are written as they should be, none needs to be looked at by itself."""
    if _SOUND.fullmatch(content):
        return tuple(map(float, content.split(b"\\")))
    return tuple(map(_number_of, _split(content)))


@lru_cache(maxsize=4096)
def _number_of(value: str) -> float:
    plain = value.strip(" \0").replace(",", ".")
    if not _NUMBER.fullmatch(plain):
        raise ValueError("no number")
    return float(plain)


def number(dataset: Header, name: str | int, missing: float) -> float:
    """The one value, or what stands for it; raises `ValueError` for several."""
    found = numbers(dataset, name)
    if len(found) > 1:
        raise ValueError(f"{name} has {len(found)} values")
    return found[0] if found else missing


def count(dataset: Header, name: str | int, missing: int) -> int:
    """What the standard keeps in 16 bits: a file can state it as any number, of any length."""
    value = number(dataset, name, missing)
    if not 0 <= value <= 0xFFFF:
        raise ValueError(f"{name} is no number of 16 bits")
    return int(value)


def tolerant(dataset: Header, name: str | int) -> tuple[float, ...]:
    """Numbers that nothing depends on: unreadable ones are as good as absent."""
    try:
        return numbers(dataset, name)
    except (ValueError, TypeError, OverflowError):
        return ()


def whole(dataset: Header, name: str | int, missing: int) -> int:
    """A whole number that nothing depends on, such as InstanceNumber."""
    found = tolerant(dataset, name)
    fits = len(found) == 1 and found[0].is_integer() and abs(found[0]) < 2**53
    return int(found[0]) if fits else missing


def decimals(dataset: Header, name: str | int) -> int:
    """How many digits after the point the numbers of an element are written with, at most; -1 where they are not written as text."""
    content = _written(dataset, name)
    if content is not None and _SOUND.fullmatch(content):
        return max(len(part) - part.find(b".") - 1 if b"." in part else 0 for part in content.rstrip().split(b"\\"))
    written = values(dataset, name)
    if not written or not isinstance(written[0], str):
        # What pydicom has converted keeps its text.
        written = [getattr(value, "original_string", None) for value in written]
    return max(map(_decimals, written), default=-1)


@lru_cache(maxsize=4096)
def _decimals(written: str | None) -> int:
    if written is None:
        return -1
    mantissa, _, exponent = written.strip(" \0").replace(",", ".").lower().partition("e")
    return max(len(mantissa.partition(".")[2]) - int(exponent or 0), 0)


def number_warnings(dataset: Header, names: tuple[str, ...]) -> tuple[str, ...]:
    """What is not as the standard has it, of numbers that could be read all the same."""
    contents = _as_decimals(dataset, names)
    if not any(map(_is_flawed, contents)):
        return ()
    found: set[str] = set()
    for name, content in zip(names, contents, strict=True):
        if b"," in content:
            found.add(f"{name} is written with a decimal comma")
        if b"\0" in content:
            found.add(f"{name} ends with a zero byte")
        if any(len(part.strip(b" \0")) > LONGEST_NUMBER for part in content.split(b"\\")):
            found.add(f"{name} is written with more than {LONGEST_NUMBER} characters")
    return tuple(sorted(found))


@lru_cache(maxsize=4096)
def _is_flawed(content: bytes) -> bool:
    return _FLAW.search(content) is not None


def _as_decimals(dataset: Header, names: tuple[str, ...]) -> list[bytes]:
    """Decimal strings as they lie in the file; nothing where an element is none of those."""
    contents: list[bytes] = []
    for tag in _tags(names):
        if isinstance(dataset, PlainHeader):
            vr, content = dataset.get(tag) or _NOTHING
        else:
            element = dataset.get_item(tag_of(tag))
            vr, content = (element.VR, element.value or b"") if isinstance(element, RawDataElement) else _NOTHING
        contents.append(content if content and (vr or _usual(tag)) == "DS" else b"")
    return contents


@lru_cache(maxsize=64)
def _tags(names: tuple[str, ...]) -> list[int]:
    return [_bare(name) for name in names]
