"""One volume as one file: a blosc2 frame, then a checksum of every compressed chunk, then a short footer.

blosc2 does not notice corruption, so each chunk carries an xxh3_64 that is verified when the chunk is first touched and
remembered after that; the frame's header and trailer carry one too, verified when the file is opened. The footer sits behind
the frame, so `blosc2.open` reads the file as it is.

Reading goes through the wheel's own libblosc2 by ctypes, which releases the GIL: `NDArray[...]` holds it, and a second reader
thread then gains 4 % instead of 100 %. Where the library is not found, NDArray serves.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import blosc2
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from medssl.errors import MissingInput, StoreError
from medssl.faults import fault, is_fault
from medssl.files import open_regular

Codec = Literal["lz4hc", "zstd"]

CHUNK = {3: 64, 2: 512}
"""Longest side of a chunk of a volume and of an image: each chunk has a checksum and is unpacked by blocks."""
BLOCK = {3: (16, 32, 32), 2: (64, 256)}
HANDLES = 256
"""Open volumes a thread: each costs 0.1 ms to open and a memory map, of which a process may hold 65,530."""

_FOOTER = struct.Struct("<4Q2sBBI8s")
"""Sides, type ("i2", "f4"), number of sides, zero, number of checksums, magic and version."""
_MAGIC = b"medssl\x00\x01"


def encode(array: NDArray[Any], codec: Codec = "lz4hc") -> bytes:
    """The file content for `array` (C, *spatial), int16 or float32.

    SHUFFLE and never DELTA: with DELTA a read of any block but the first silently gives wrong data.
    """
    spatial = array.shape[1:]
    chunk, block = CHUNK[len(spatial)], BLOCK[len(spatial)]
    parameters = blosc2.CParams(
        codec=blosc2.Codec.LZ4HC if codec == "lz4hc" else blosc2.Codec.ZSTD,
        # Level 5 of LZ4HC takes a fifth more time for 2 % less on disk.
        clevel=4 if codec == "lz4hc" else 5,
        filters=[blosc2.Filter.SHUFFLE],
        filters_meta=[0],
        nthreads=1,
        typesize=array.dtype.itemsize,
    )
    stored = blosc2.empty(
        array.shape,
        array.dtype,
        chunks=(1, *(min(side, chunk) for side in spatial)),
        blocks=(1, *(min(side, b) for side, b in zip(spatial, block, strict=True))),
        cparams=parameters,
        contiguous=True,
    )
    # A row of chunks at a time: a turned volume would be copied whole otherwise.
    for channel in range(array.shape[0]):
        for first in range(0, spatial[0], chunk):
            row = slice(first, first + chunk)
            stored[channel : channel + 1, row] = np.ascontiguousarray(array[channel : channel + 1, row])
    frame: bytes = stored.to_cframe()
    del stored
    # Of the frame and not of `stored`: what will be read is what is digested.
    written = blosc2.ndarray_from_cframe(frame, copy=False)
    digests = [xxh3_64_intdigest(written.schunk.get_chunk(i)) for i in range(written.schunk.nchunks)]
    sides = (*array.shape, 0)[:4]
    footer = _FOOTER.pack(*sides, array.dtype.str[1:].encode(), array.ndim, 0, 1 + len(digests), _MAGIC)
    digests.insert(0, _around_chunks(memoryview(frame), footer))
    del written
    return b"".join((frame, np.asarray(digests, "<u8").tobytes(), footer))


def _around_chunks(frame: memoryview, footer: bytes) -> int:
    """Checksum of what is not a chunk: the frame's header, its table of offsets, its trailer, and the footer."""
    header = int.from_bytes(frame[0x0B:0x0F], "big")
    compressed = int.from_bytes(frame[0x27:0x2F], "big")
    return int(xxh3_64_intdigest(bytes(frame[:header]) + bytes(frame[header + compressed :]) + footer))


def digest_of(content: bytes) -> str:
    """What tells one volume file from every other: a digest of the checksums of all its parts, its shape and its type."""
    *_, count, _ = _FOOTER.unpack(content[-_FOOTER.size :])
    return str(xxh3_128_hexdigest(content[len(content) - _FOOTER.size - 8 * count :]))


class Damaged(StoreError):
    """A volume file whose bytes are not those that were written."""


class _Handle(Protocol):
    def read(self, start: Sequence[int], stop: Sequence[int], out: NDArray[Any]) -> None: ...

    def chunk_digest(self, number: int) -> int: ...


class FrameFile:
    """One opened volume file, for one thread alone: sharing a libblosc2 handle between threads aborts the process."""

    def __init__(self, path: Path, verified: bytearray | None = None, native: bool = True) -> None:
        self.path = path
        self._map = _map(path)
        frame, self._digests, footer = _split(path, memoryview(self._map))
        if _around_chunks(frame, footer) != int(self._digests[0]):
            raise _damaged(path, "its header does not match its checksum")
        self.digest = str(xxh3_128_hexdigest(self._digests.tobytes() + footer))
        """As of `digest_of`."""
        *sides, kind, dims, _, _, _ = _FOOTER.unpack(footer)
        if kind not in (b"i2", b"f4", b"u1") or dims not in (3, 4) or not all(0 < side < 2**31 for side in sides[:dims]):
            raise _damaged(path, "it is of no shape or type that a store holds")
        self.shape: tuple[int, ...] = tuple(sides[:dims])
        self.dtype = np.dtype("<" + kind.decode())
        library = _library() if native else None
        self._handle: _Handle = _Native(library, self._map, len(frame), path) if library else _Plain(frame)
        spatial = self.shape[1:]
        self._chunk = (1, *(min(side, CHUNK[len(spatial)]) for side in spatial))
        self._grid = tuple(-(-side // chunk) for side, chunk in zip(self.shape, self._chunk, strict=True))
        if len(self._digests) != 1 + int(np.prod(self._grid)):
            raise _damaged(path, "it has another number of chunks than checksums")
        self.verified = verified if verified is not None and len(verified) == len(self._digests) else bytearray(len(self._digests))

    def read(self, start: Sequence[int], stop: Sequence[int], out: NDArray[Any]) -> None:
        """Fill the contiguous `out` with the box [start, stop), channel first; the chunks it touches are verified once.

        Raises `Damaged` where a chunk does not match its checksum.
        """
        inside = all(0 <= lo < hi <= side for lo, hi, side in zip(start, stop, self.shape, strict=True))
        fits = out.shape == tuple(hi - lo for lo, hi in zip(start, stop, strict=True))
        if not (inside and fits and out.flags.c_contiguous and out.dtype == self.dtype):
            raise ValueError(f"box {tuple(start)} to {tuple(stop)} of {self.shape} does not fit volume or buffer {out.shape} {out.dtype}")
        self._verify(start, stop)
        self._handle.read(start, stop, out)

    def _verify(self, start: Sequence[int], stop: Sequence[int]) -> None:
        ranges = [range(lo // c, (hi - 1) // c + 1) for lo, hi, c in zip(start, stop, self._chunk, strict=True)]
        numbers = [0]
        for axis, side in zip(ranges, self._grid, strict=True):
            numbers = [number * side + step for number in numbers for step in axis]
        for number in numbers:
            if not self.verified[number + 1]:
                if self._handle.chunk_digest(number) != int(self._digests[number + 1]):
                    raise _damaged(self.path, f"chunk {number} does not match its checksum")
                self.verified[number + 1] = 1


def _map(path: Path) -> mmap.mmap:
    try:
        with open_regular(path) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise MissingInput(
            f"the volume file {path} is gone: it was there when the store was made. Make the store again with `medssl store`."
        ) from error
    except (OSError, ValueError) as error:
        if is_fault(error):
            raise StoreError(fault(error, f"the volume file {path} cannot be read")) from error
        raise StoreError(f"the volume file {path} cannot be read: {error}. Delete it and make the store again.") from error


def _split(path: Path, content: memoryview) -> tuple[memoryview, NDArray[np.uint64], bytes]:
    if len(content) < _FOOTER.size + 0x40:
        raise _damaged(path, "it is truncated")
    footer = bytes(content[-_FOOTER.size :])
    *_, count, magic = _FOOTER.unpack(footer)
    length = len(content) - _FOOTER.size - 8 * count
    if magic != _MAGIC or length < 0x40 or int.from_bytes(content[0x10:0x18], "big") != length:
        raise _damaged(path, "it is truncated or is no volume file of this version")
    return content[:length], np.frombuffer(content[length : length + 8 * count], "<u8"), footer


def _damaged(path: Path, why: str) -> Damaged:
    return Damaged(f"the volume file {path} is damaged: {why}. Delete it and make the store again with `medssl store`.")


class _Plain:
    """Reads through blosc2.NDArray."""

    def __init__(self, frame: memoryview) -> None:
        # blosc2 makes no copy of the frame: it must live as long as the array.
        self._frame = bytes(frame)
        self._array = blosc2.ndarray_from_cframe(self._frame)

    def read(self, start: Sequence[int], stop: Sequence[int], out: NDArray[Any]) -> None:
        out[...] = self._array[tuple(slice(lo, hi) for lo, hi in zip(start, stop, strict=True))]

    def chunk_digest(self, number: int) -> int:
        return int(xxh3_64_intdigest(self._array.schunk.get_chunk(number)))


class _Native:
    """Reads through libblosc2 by ctypes. The map outlives the handle, and the handle is freed by the thread that reads."""

    def __init__(self, library: Any, mapped: mmap.mmap, length: int, path: Path) -> None:
        self._library, self._map = library, mapped
        self._bytes = np.frombuffer(mapped, np.uint8)
        self._pointer = ctypes.c_void_p()
        address = ctypes.c_void_p(self._bytes.ctypes.data)
        if library.b2nd_from_cframe(address, length, False, ctypes.byref(self._pointer)) < 0:
            raise _damaged(path, "blosc2 cannot open it")
        self._path = path

    def read(self, start: Sequence[int], stop: Sequence[int], out: NDArray[Any]) -> None:
        sides = ctypes.c_int64 * len(start)
        code = self._library.b2nd_get_slice_cbuffer(
            self._pointer, sides(*start), sides(*stop), ctypes.c_void_p(out.ctypes.data), sides(*out.shape), out.nbytes
        )
        if code < 0:
            raise _damaged(self._path, f"blosc2 gives error {code}")

    def chunk_digest(self, number: int) -> int:
        schunk = ctypes.cast(self._pointer, ctypes.POINTER(ctypes.c_void_p))[0]
        chunk, owned = ctypes.c_void_p(), ctypes.c_bool(False)
        size = self._library.blosc2_schunk_get_chunk(ctypes.c_void_p(schunk), number, ctypes.byref(chunk), ctypes.byref(owned))
        if size < 0 or not chunk.value:
            raise _damaged(self._path, f"chunk {number} cannot be read")
        try:
            return int(xxh3_64_intdigest(ctypes.string_at(chunk, size)))
        finally:
            if owned.value:
                _free()(chunk)

    def __del__(self) -> None:
        if getattr(self, "_pointer", None):
            self._library.b2nd_free(self._pointer)


@lru_cache(maxsize=1)
def _library() -> Any | None:
    """The libblosc2 that the wheel ships, with the signatures of the calls used here; None where it is not found."""
    folder = Path(blosc2.__file__).parent
    for path in sorted(folder.rglob("libblosc2*")):
        if path.suffix == ".a":
            continue
        try:
            library = ctypes.CDLL(str(path))
            library.b2nd_from_cframe.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool, ctypes.c_void_p]
            library.b2nd_get_slice_cbuffer.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64]
            library.b2nd_free.argtypes = [ctypes.c_void_p]
            library.blosc2_init.restype = None
            library.blosc2_schunk_get_chunk.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
        except (OSError, AttributeError):
            continue
        library.blosc2_init()
        return library
    return None


@lru_cache(maxsize=1)
def _free() -> Any:
    function = ctypes.CDLL(None).free
    function.argtypes = [ctypes.c_void_p]
    return function


class FrameCache:
    """Opened files, the `HANDLES` least recently used of each thread; what was verified is shared by all threads."""

    def __init__(self, native: bool = True) -> None:
        self._native = native
        self._local = threading.local()
        # Of every file that was ever opened, so by text: a path takes a kilobyte.
        self._verified: dict[str, bytearray] = {}

    def open(self, path: Path) -> FrameFile:
        """The opened file, for use by the calling thread alone."""
        files: OrderedDict[Path, FrameFile] | None = getattr(self._local, "files", None)
        if files is None:
            files = self._local.files = OrderedDict()
        file = files.get(path)
        if file is not None:
            files.move_to_end(path)
            return file
        file = FrameFile(path, self._verified.get(str(path)), self._native)
        self._verified[str(path)] = file.verified
        files[path] = file
        if len(files) > HANDLES:
            files.popitem(last=False)
        return file
