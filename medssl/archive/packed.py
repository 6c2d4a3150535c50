"""Zip and tar files as sources. A compressed tar is unpacked once, front to back: it cannot be read at random places."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

from medssl.errors import ArchiveError
from medssl.source import ArchiveSource, Stat

MEMBER_LIMIT = 2**31
"""Bytes that one member of a zip or tar file may unpack to."""
KEEP_FREE = 0.05
"""Share of the temporary folder's disk that unpacking a tar file leaves free."""
_LOOK_EVERY = 2**26
"""Bytes unpacked between two looks at the free space."""
_OPENERS: dict[bytes, Callable[[str], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x5d\x00\x00": lzma.open,
}
"""How a compressed file begins -> what reads it."""
_BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)


class ZipSource(ArchiveSource):
    """Every file inside a zip file."""

    name = "zip"
    schemes: ClassVar[tuple[str, ...]] = ("zip",)

    def __init__(self, location: str) -> None:
        super().__init__(location)
        try:
            self._zip = zipfile.ZipFile(location)
        except (zipfile.BadZipFile, OSError) as error:
            raise ArchiveError("a zip file given as source cannot be opened: it is damaged, truncated or may not be read.") from error

    def keys(self) -> Iterator[str]:
        """Member names as they lie in the file; of members with one name the last counts, as for any unzip."""
        yield from dict.fromkeys(info.filename for info in self._zip.infolist() if not info.is_dir())

    def open(self, key: str) -> BinaryIO:
        """The unpacked member in memory; one over the limit or with a wrong checksum raises `OSError`."""
        try:
            info = self._zip.getinfo(key)
            if info.file_size > MEMBER_LIMIT:
                raise OSError(f"member unpacks to {info.file_size} bytes")
            # ZipFile locks around each seek and read, so that threads may share it.
            with self._zip.open(info) as member:
                return BytesIO(member.read(MEMBER_LIMIT))
        except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError, EOFError, zlib.error) as error:
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
    the source in worker processes read the same file.
    """

    name = "tar"
    schemes: ClassVar[tuple[str, ...]] = ("tar",)

    def __init__(self, location: str, unpacked: str | None = None) -> None:
        super().__init__(location)
        self._plain = unpacked if unpacked and Path(unpacked).is_file() else location
        try:
            try:
                tar = tarfile.open(self._plain, "r:")  # noqa: SIM115 - closed below
            except tarfile.ReadError:
                self._members = self._unpack()
            else:
                with tar:
                    self._members = _members(tar)
        except _BROKEN as error:
            raise ArchiveError("a tar file given as source cannot be opened: it is damaged, truncated or may not be read.") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.location, None if self._plain == self.location else self._plain)

    def keys(self) -> Iterator[str]:
        """Member names as they lie in the file; of members with one name the last counts, as for any untar."""
        yield from self._members

    def open(self, key: str) -> BinaryIO:
        """The member in memory; one that is missing or over the limit raises `OSError`."""
        member = self._members.get(key)
        if member is None or member.size > MEMBER_LIMIT:
            raise OSError("tar member is missing or too large")
        try:
            # A handle for each call: threads that share one move each other's place and get other bytes.
            with tarfile.open(self._plain, "r:") as tar:
                stream = tar.extractfile(member)
                return BytesIO(stream.read() if stream else b"")
        except (tarfile.TarError, EOFError) as error:
            raise OSError(f"tar member cannot be read: {type(error).__name__}") from error

    def stat(self, key: str) -> Stat:
        """Size and time of change, from the member's header."""
        member = self._members.get(key)
        if member is None:
            raise OSError("no such tar member")
        return Stat(member.size, str(member.mtime))

    def _unpack(self) -> dict[str, tarfile.TarInfo]:
        """Copy the tar file inside the compression to a temporary file while its members are listed."""
        with Path(self.location).open("rb") as file:
            start = file.read(8)
        opener = next((opener for mark, opener in _OPENERS.items() if start.startswith(mark)), None)
        if opener is None:
            raise tarfile.ReadError("neither a tar file nor compressed in a known way")
        folder = tempfile.mkdtemp(prefix="medssl-")
        weakref.finalize(self, _remove, folder, os.getpid())
        self._plain = os.path.join(folder, "unpacked.tar")  # noqa: PTH118
        with opener(self.location) as packed, _Copy(packed, Path(self._plain)) as copy:
            # "r|" reads front to back; the mark for the archive's end ends it, and what follows in the file does not matter.
            return _members(tarfile.open(fileobj=cast(BinaryIO, copy), mode="r|"))


def _members(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    members: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        if member.isreg():
            # Popped first, so that the order is that of the members which count.
            members.pop(member.name, None)
            members[member.name] = member
    return members


def _remove(folder: str, owner: int) -> None:
    # A process that was forked from the owner holds the source too, and must not take the file from it.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


class _Copy:
    """A stream that writes to a file what is read from it, as long as there is room."""

    def __init__(self, stream: BinaryIO, file: Path) -> None:
        self._stream = stream
        self._file = file
        self._out = file.open("xb")
        self._unlooked = _LOOK_EVERY

    def __enter__(self) -> _Copy:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
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
        return content

    def _no_room(self, why: str) -> ArchiveError:
        return ArchiveError(
            f"a compressed tar file cannot be unpacked into the temporary folder {self._file.parent.parent}: {why}. Set TMPDIR to a "
            "folder with room for its content, or unpack it and index the folder."
        )
