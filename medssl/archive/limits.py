"""What one file of an archive may cost, whatever it says of itself: processor time, memory, and bytes that it unpacks to."""

from __future__ import annotations

import io
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from medssl.archive.outcomes import Reason
from medssl.errors import ArchiveError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SECONDS = 30.0
"""Processor seconds that reading what a file is may take: those of headers take milliseconds, of a large .nii.gz some seconds."""
UNPACKED = 2**28
"""Bytes to which any file may unpack."""
RATIO = 100
"""How often its own size a file may unpack to beyond that: scans shrink to a half or a tenth, a bomb to a thousandth."""
PIXELS = 2**26
"""Pixels of one 2D image that are read: a mammogram has 2**25."""
MEMORY = 2**32
"""Bytes that a worker process may take beyond what it begins with."""
_BLOCK = 2**20


class Refused(ArchiveError, OSError):
    """A file that is not read, with the reason that the index keeps. An `OSError`, as `ArchiveSource.open` promises."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason

    def __reduce__(self) -> tuple[type[Refused], tuple[Reason]]:
        return Refused, (self.reason,)


def most_unpacked(packed: int) -> int:
    """Bytes to which so many packed ones may unpack."""
    return max(UNPACKED, RATIO * packed)


def limit_memory() -> None:
    """Let this process, a worker, take `MEMORY` more than it has; where the system knows no such limit nothing is done."""
    if sys.platform != "linux":
        return
    import resource

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [taken + MEMORY, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))


class _Watched(io.RawIOBase):
    """A file that can be read for so long."""

    name = ""
    """pydicom asks for one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = time.thread_time() + SECONDS

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        # Time of this thread's own: a slow disk or busy neighbours are not the file's fault.
        if time.thread_time() > self._end:
            raise Refused(Reason.TOO_LONG)
        content = self._file.read(memoryview(buffer).nbytes)
        memoryview(buffer)[: len(content)] = content
        return len(content)


class _Buffered(io.BufferedReader):
    """Sets no more memory aside than there are bytes: a damaged file can ask for gigabytes of itself."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _BLOCK:
            here = self.tell()
            size = max(0, min(size, self.seek(0, io.SEEK_END) - here))
            self.seek(here)
        return super().read(size)


def watched(file: BinaryIO) -> BinaryIO:
    """The same bytes; reading on after `SECONDS` of processor time raises `Refused`."""
    return cast(BinaryIO, _Buffered(_Watched(file), 2**14))


def inflated(stream: BinaryIO, most: int) -> bytes:
    """What a raw deflate stream unpacks to; raises `Refused` where that is more than `most`, `zlib.error` or `EOFError` where broken."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    parts: list[bytes] = []
    size = 0
    while not unpacker.eof:
        packed = unpacker.unconsumed_tail or stream.read(_BLOCK)
        if not packed:
            raise EOFError("the deflate stream is cut")
        parts.append(unpacker.decompress(packed, _BLOCK))
        size += len(parts[-1])
        if size > most:
            raise Refused(Reason.TOO_LARGE)
    return b"".join(parts)
