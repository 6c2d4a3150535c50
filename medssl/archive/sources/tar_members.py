"""The members of an uncompressed tar file, and where it is damaged.

Python's tarfile takes a damaged header for the end of the archive and says nothing of what follows. Here what follows the last
member has to be the end mark, a block of zeros; where it is not, or where members follow the mark, the archive is damaged there,
and reading goes on at the next header that is one.
"""

from __future__ import annotations

import os
import struct
import tarfile
from typing import BinaryIO, NamedTuple

BLOCK = tarfile.BLOCKSIZE
TAR_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, LookupError, ArithmeticError, RecursionError, MemoryError, struct.error)
"""What tarfile is known to raise on damaged archives."""
_READ = 2**20
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EXTENDED_LIMIT = 2**20
"""Bytes of a header's extension, such as a long name: tarfile would take it into memory whole."""


class Damage(NamedTuple):
    """A place where members were lost."""

    after: int
    """Members that come before it."""
    at: int
    """Byte of the archive."""


class Header(tarfile.TarInfo):
    """A header whose sizes are possible; with a negative one tarfile reads in circles (CVE-2025-8194)."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
        """As of `TarInfo`."""
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in _EXTENDED and found.size > _EXTENDED_LIMIT):
            raise tarfile.InvalidHeaderError("a size that cannot be")  # type: ignore[attr-defined]
        return found

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.InvalidHeaderError("a negative size")  # type: ignore[attr-defined]
        return int(super()._block(count))  # type: ignore[misc]


def read_members(file: BinaryIO, cut: bool = False) -> tuple[dict[str, tarfile.TarInfo], list[Damage]]:
    """Name -> header of each regular file, of one name the last, and the damages; `cut`: more is missing at the end.

    Raises the errors of `TAR_ERRORS` for what is no tar file from its beginning.
    """
    size = file.seek(0, os.SEEK_END)
    tar, at = _opened(file, size)
    members: dict[str, tarfile.TarInfo] = {}
    damages = [Damage(0, 0)] if at else []
    count = 0
    while True:
        member = _next(tar, at, size)
        if member is not None:
            count += 1
            at = tar.offset
            if member.isreg():
                # Popped first, so that the order is that of the members which count.
                members.pop(member.name, None)
                members[member.name] = member
            continue
        following = _following_header(file, at, size)
        if following is None:
            if cut or not _ends_here(file, at):
                damages.append(Damage(count, at))
            return members, damages
        damages.append(Damage(count, at))
        at = tar.offset = following


def read_member(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    """The content of a member of the uncompressed tar file `file`."""
    if member.issparse():
        file.seek(member.offset)
        with tarfile.open(fileobj=file, mode="r:", tarinfo=Header) as tar:
            stream = tar.extractfile(member)
            return stream.read() if stream else b""
    file.seek(member.offset_data)
    return file.read(member.size)


def _opened(file: BinaryIO, size: int) -> tuple[tarfile.TarFile, int]:
    """The archive at its first header that is one, and where that lies."""
    file.seek(0)
    try:
        return tarfile.open(fileobj=file, mode="r:", tarinfo=Header), 0
    except TAR_ERRORS:
        first = _following_header(file, 0, size)
        if first is None:
            raise
        file.seek(first)
        return tarfile.open(fileobj=file, mode="r:", tarinfo=Header), first


def _next(tar: tarfile.TarFile, at: int, size: int) -> tarfile.TarInfo | None:
    """The member at `at`, if it is there whole and brings the archive on; None at an end of any kind."""
    try:
        member = tar.next()
    except TAR_ERRORS:
        return None
    whole = member is not None and tar.offset > at and member.offset_data + (0 if member.issparse() else member.size) <= size
    return member if whole else None


def _ends_here(file: BinaryIO, at: int) -> bool:
    file.seek(at)
    mark = file.read(BLOCK)
    return len(mark) == BLOCK and not mark.strip(b"\0")


def _following_header(file: BinaryIO, at: int, size: int) -> int | None:
    """Where behind `at` the next block lies that is a header by its checksum and its mark."""
    start = at + BLOCK
    while start < size:
        file.seek(start)
        content = file.read(_READ)
        if content.strip(b"\0"):
            for place in range(0, len(content) - BLOCK + 1, BLOCK):
                if content[place + 257 : place + 262] == b"ustar" and _is_header(content[place : place + BLOCK]):
                    return start + place
        start += _READ
    return None


def _is_header(block: bytes) -> bool:
    try:
        Header.frombuf(block, "utf-8", "surrogateescape")
    except TAR_ERRORS:
        return False
    return True
