"""The parts of an answer with what each says of itself, which the client library leaves out."""

from __future__ import annotations

import re
from typing import NamedTuple

from requests import Response

_BOUNDARY = re.compile(r"boundary=(\"[^\"]+\"|[^;\s]+)", re.IGNORECASE)
_SYNTAX = re.compile(r"transfer-syntax=\"?([0-9.]+)", re.IGNORECASE)


class Part(NamedTuple):
    """One of them."""

    stated: str
    """Its media type and that of the whole answer, in lower case."""
    content: bytes

    @property
    def syntax(self) -> str:
        """The transfer syntax that is stated; empty where none is."""
        found = _SYNTAX.search(self.stated)
        return found.group(1) if found else ""

    @property
    def is_image(self) -> bool:
        """Is it said to be a compressed picture or film?"""
        return re.search(r"\b(image|video)/", self.stated) is not None


def parts_of(response: Response) -> list[Part]:
    """Of an answer that is not in parts, though it should be, the whole; raises `ValueError` for one that cannot be taken apart."""
    kind = response.headers.get("Content-Type", "")
    if not kind.lower().startswith("multipart/"):
        if kind.lower().startswith(("application/dicom", "application/octet-stream", "image/")):
            return [Part(kind.lower(), response.content)]
        raise ValueError("neither an object nor parts of one")
    boundary = _BOUNDARY.search(kind)
    if boundary is None:
        raise ValueError("parts without a boundary")
    return list(_split(response.content, b"--" + boundary.group(1).strip('"').encode("latin-1"), kind))


def _split(content: bytes, marker: bytes, kind: str) -> list[Part]:
    found: list[Part] = []
    at = content.find(marker)
    if at < 0:
        raise ValueError("no part")
    while not content.startswith(b"--", at := at + len(marker)):
        head, end = content.find(b"\r\n\r\n", at), content.find(b"\r\n" + marker, at)
        if not at <= head or end < 0:
            raise ValueError("a part that is cut off")
        # A part without any header begins with the empty line.
        body = content[head + 4 : end] if head < end else b""
        found.append(Part(f"{_type(content[at:head])} {kind}".lower(), body))
        at = end + 2
    return found


def _type(head: bytes) -> str:
    for line in head.decode("latin-1").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-type":
            return value.strip()
    return ""
