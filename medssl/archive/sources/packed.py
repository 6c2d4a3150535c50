"""Zip and tar files as sources. A compressed tar is unpacked once, front to back: it cannot be read at random places."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import struct
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from medssl.archive.limits import Refused, most_unpacked
from medssl.archive.outcomes import Reason
from medssl.archive.sources.tar_members import TAR_ERRORS, read_member, read_members
from medssl.errors import ArchiveError
from medssl.files import open_regular
from medssl.source import ArchiveSource, Stat

MEMBER_LIMIT = 2**31
"""Bytes of one member of a zip or tar file that is read."""
KEEP_FREE = 0.05
"""Share of the temporary folder's disk that unpacking a tar file leaves free."""
_LOOK_EVERY = 2**26
"""Bytes unpacked between two looks at the free space."""
_BLOCK = 2**20
_OPENERS: dict[bytes, Callable[[str], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x5d\x00\x00": lzma.open,
}
"""How a compressed file begins -> what reads it."""
_UNPACKING_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, ValueError, LookupError, ArithmeticError),
    *(RuntimeError, TypeError, MemoryError),
)
"""What the standard library is known to raise on damaged, encrypted or foreign compressed data."""
_DOCUMENTS = frozenset({"[Content_Types].xml", "mimetype", "META-INF/MANIFEST.MF"})
"""Members that office documents, e-books and Java programs have."""
_LOST = "\0lost part "
"""How the key of a damage begins: no member's name holds a zero."""


class DamagedArchive(ArchiveError):
    """A zip or tar file of which nothing can be read: the others of an index go on without it."""


class ZipSource(ArchiveSource):
    """Every file inside a zip file."""

    name = "zip"
    schemes: ClassVar[tuple[str, ...]] = ("zip",)

    def __init__(self, location: str) -> None:
        super().__init__(location)
        _check_permitted(location, "zip")
        try:
            self._zip = zipfile.ZipFile(location)
        except _UNPACKING_ERRORS as error:
            raise DamagedArchive("a zip file given as source cannot be opened: it is damaged, truncated or of another form.") from error

    @property
    def is_document(self) -> bool:
        """Is it one only in form: a text, a table, a program?"""
        return not _DOCUMENTS.isdisjoint(self._zip.namelist())

    def keys(self) -> Iterator[str]:
        """Member names as they lie in the file; of members with one name the last counts, as for any unzip."""
        yield from dict.fromkeys(info.filename for info in self._zip.infolist() if not info.is_dir())

    def open(self, key: str) -> BinaryIO:
        """The unpacked member in memory; one over the limits, damaged or with a wrong checksum raises `OSError`."""
        try:
            info = self._zip.getinfo(key)
            if info.file_size > min(MEMBER_LIMIT, most_unpacked(info.compress_size)):
                raise Refused(Reason.TOO_LARGE)
            # ZipFile locks around each seek and read, so that threads may share it.
            with self._zip.open(info) as member:
                return BytesIO(member.read(MEMBER_LIMIT))
        except OSError:
            raise
        except _UNPACKING_ERRORS as error:
            raise OSError(f"zip member cannot be unpacked: {type(error).__name__}") from error

    def stat(self, key: str) -> Stat:
        """Unpacked size and checksum, from the zip file's directory."""
        try:
            info = self._zip.getinfo(key)
        except KeyError as error:
            raise OSError("no such zip member") from error
        return Stat(info.file_size, f"{info.CRC:08x}")


class TarSource(ArchiveSource):
    """Every regular file inside a tar file.

    A compressed one is unpacked into a private temporary file (`TMPDIR`), which goes with the source that made it; copies of
    the source in worker processes read the same file. Of a damaged one each damage is a key too, which cannot be opened.
    """

    name = "tar"
    schemes: ClassVar[tuple[str, ...]] = ("tar",)

    def __init__(self, location: str, unpacked: str | None = None) -> None:
        super().__init__(location)
        _check_permitted(location, "tar")
        self._plain = unpacked if unpacked and Path(unpacked).is_file() else location
        try:
            opener = None if self._plain == unpacked else _opener(location)
            cut = self._unpack(opener) if opener else False
            with open_regular(self._plain) as file:
                self._members, self.damages = read_members(file, cut)
        except TAR_ERRORS as error:
            raise _broken() from error
        if self.damages and not self._members:
            raise _broken()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.location, None if self._plain == self.location else self._plain)

    def keys(self) -> Iterator[str]:
        """Member names as they lie in the file; of members with one name the last counts, as for any untar."""
        yield from self._members
        yield from (f"{_LOST}{number}" for number in range(len(self.damages)))

    def open(self, key: str) -> BinaryIO:
        """The member in memory; one that is missing, lost or over the limit raises `OSError`."""
        if key.startswith(_LOST):
            raise Refused(Reason.DAMAGED_ARCHIVE)
        member = self._members.get(key)
        if member is None:
            raise OSError("no such tar member")
        if member.size > MEMBER_LIMIT:
            raise Refused(Reason.TOO_LARGE)
        try:
            # A handle for each call: threads that share one move each other's place and get other bytes.
            with open_regular(self._plain) as file:
                content = read_member(file, member)
        except OSError:
            raise
        except TAR_ERRORS as error:
            raise OSError(f"tar member cannot be read: {type(error).__name__}") from error
        if len(content) != member.size:
            raise OSError("tar member cannot be read: the file has become shorter")
        return BytesIO(content)

    def stat(self, key: str) -> Stat:
        """Size and time of change, from the member's header."""
        member = self._members.get(key)
        if member is None:
            raise OSError("no such tar member")
        return Stat(member.size, str(member.mtime))

    def _unpack(self, opener: Callable[[str], Any]) -> bool:
        """Unpack the tar file inside the compression into a temporary file; returns whether the compressed data ends too early."""
        folder = tempfile.mkdtemp(prefix="medssl-")
        weakref.finalize(self, _remove, folder, os.getpid())
        self._plain = os.path.join(folder, "unpacked.tar")  # noqa: PTH118
        most = most_unpacked(Path(self.location).stat().st_size)
        with opener(self.location) as packed, _Copy(Path(self._plain)) as copy:
            return _unpacked(packed, copy, most)


def _opener(location: str) -> Callable[[str], Any] | None:
    with open_regular(location) as file:
        start = file.read(8)
    return next((opener for mark, opener in _OPENERS.items() if start.startswith(mark)), None)


def _unpacked(stream: Any, copy: _Copy, most: int) -> bool:
    """Copy to the end; True where the compressed data is cut there, so that what came before it holds.

    Data that is damaged elsewhere raises: deflate and xz find out late or at their end, so that nothing vouches for what came.
    """
    while True:
        try:
            # Not `read`: it would lose what it has when it comes to the damage.
            content = stream.read1(_BLOCK)
        except EOFError:
            return True
        except gzip.BadGzipFile as error:
            # Bytes behind the end that are no gzip do not matter; what came before has passed its checksum.
            if copy.size and str(error).startswith("Not a gzipped file"):
                return False
            raise _broken() from error
        except _UNPACKING_ERRORS as error:
            # Every block of bz2 is checked before it is handed over.
            if isinstance(stream, bz2.BZ2File) and copy.size:
                return True
            raise _broken() from error
        if not content:
            return False
        copy.write(content)
        if copy.size > most:
            raise DamagedArchive(f"a compressed tar file unpacks to more than {most} bytes. Unpack it and index the folder.")


def _check_permitted(location: str, kind: str) -> None:
    """What may not be read is not damaged. Its path is not shown: it may tell who is in it."""
    try:
        open_regular(location).close()
    except PermissionError as error:
        raise DamagedArchive(f"a {kind} file given as source may not be read: {error.strerror}. Have its owner permit it.") from None
    except OSError:
        return


def _broken() -> DamagedArchive:
    return DamagedArchive(
        "a tar file given as source cannot be opened: it is damaged, truncated or of another form. Copy it again, or unpack what can "
        "be saved and index the folder."
    )


def _remove(folder: str, owner: int) -> None:
    # A process that was forked from the owner holds the source too, and must not take the file from it.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


class _Copy:
    """A file that is written as long as there is room."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._out = file.open("xb")
        self._unlooked = _LOOK_EVERY
        self.size = 0

    def __enter__(self) -> _Copy:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()

    def write(self, content: bytes) -> None:
        self.size += len(content)
        self._unlooked += len(content)
        if self._unlooked >= _LOOK_EVERY:
            self._unlooked = 0
            disk = shutil.disk_usage(self._file.parent)
            if disk.free < KEEP_FREE * disk.total:
                raise self._no_room(f"{disk.free >> 20} MiB are free")
        try:
            self._out.write(content)
        except OSError as error:
            raise self._no_room(error.strerror or type(error).__name__) from error

    def _no_room(self, why: str) -> ArchiveError:
        return ArchiveError(
            f"a compressed tar file cannot be unpacked into the temporary folder {self._file.parent.parent}: {why}. Set TMPDIR to a "
            "folder with room for its content, or unpack it and index the folder."
        )
