"""Reading headers in worker processes: a shard of names in, a Parquet file of instances out."""

from __future__ import annotations

import gzip
import logging
import multiprocessing
import os
import pickle
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from medssl.archive.headers.dicom import PARSE_ERRORS, from_header, looks_like_dicom
from medssl.archive.headers.plain import HEAD
from medssl.archive.headers.reader import HeaderReader, Unread
from medssl.archive.instance import SCHEMA, Instance, from_table, to_table
from medssl.archive.limits import Refused, limit_memory, watched
from medssl.archive.nifti import names
from medssl.archive.nifti.files import NiftiProblem, is_nifti, read_nifti_header
from medssl.archive.nifti.modality import UNKNOWN, modality_of
from medssl.archive.outcomes import Reason
from medssl.archive.tables import read_table, write_table
from medssl.plugins import blame
from medssl.source import ArchiveSource, HeaderSource, StatSource

if TYPE_CHECKING:
    from pydicom import Dataset

SHARD = 256
"""Files a task reads: enough to make the task's own cost small, few enough to spread over the workers."""

_PACKED = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
"""How zip files and compressed files begin."""

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Shard:
    """Work for one task."""

    number: int
    source: int
    """Which of the sources."""
    keys: tuple[str, ...]


def scan(
    shards: Sequence[Shard], sources: Sequence[ArchiveSource], folder: Path, workers: int, progress: Progress | None
) -> list[Instance]:
    """Every instance of the shards, in their order; each shard is written to `folder` as it is done."""
    total = sum(len(shard.keys) for shard in shards)
    done = 0
    _report(progress, done, total)
    # A single shard too is read by a worker where there may be one: what a file does to its reader is not done to the caller.
    with _executor(min(workers, len(shards)), always=workers > 1) as executor:
        for count in _results(executor, shards, sources, folder):
            done += count
            _report(progress, done, total)
    return [one for shard in shards for one in from_table(read_table(folder / _name(shard), SCHEMA))]


def shards_of(sources: Iterable[Iterable[str]]) -> list[Shard]:
    """The keys of each source in shards of `SHARD`, in their order."""
    shards: list[Shard] = []
    for source, keys in enumerate(sources):
        names = iter(keys)
        while part := tuple(islice(names, SHARD)):
            shards.append(Shard(len(shards), source, part))
    return shards


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


@contextmanager
def _executor(workers: int, always: bool = False) -> Iterator[Executor | None]:
    """A pool of processes, or None where this process is to do the work itself."""
    if workers <= 1 and not always:
        yield None
        return
    # Forking spares scripts the `if __name__ == "__main__"` that a fresh interpreter would need.
    method = "fork" if sys.platform == "linux" else "spawn"
    executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method), initializer=limit_memory)
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _results(executor: Executor | None, shards: Sequence[Shard], sources: Sequence[ArchiveSource], folder: Path) -> Iterator[int]:
    if executor is None:
        yield from (scan_shard(shard, sources[shard.source], folder) for shard in shards)
        return
    pickled = [pickle.dumps(source) for source in sources]
    waiting: list[Future[int]] = [executor.submit(_in_worker, shard, pickled[shard.source], folder) for shard in shards]
    try:
        for future in as_completed(waiting):
            yield future.result()
    except BrokenProcessPool:
        for shard in shards:
            if not (folder / _name(shard)).exists():
                write_table(to_table(_alone(shard, pickled[shard.source], folder)), folder / _name(shard))
                yield len(shard.keys)


def _alone(shard: Shard, pickled: bytes, folder: Path) -> list[Instance]:
    """A shard in a process of its own, halved as long as that process gets killed, until the file that does it is found."""
    with _executor(1, always=True) as executor, suppress(BrokenProcessPool):
        assert executor is not None
        executor.submit(_in_worker, shard, pickled, folder).result()
        return from_table(read_table(folder / _name(shard), SCHEMA))
    if len(shard.keys) == 1:
        return [Instance(source=shard.source, key=os.fsencode(shard.keys[0]), reason=Reason.KILLED.value)]
    middle = len(shard.keys) // 2
    halves = (replace(shard, keys=keys) for keys in (shard.keys[:middle], shard.keys[middle:]))
    return [one for half in halves for one in _alone(half, pickled, folder)]


def _name(shard: Shard) -> str:
    return f"shard-{shard.number:08d}.parquet"


def _in_worker(shard: Shard, pickled: bytes, folder: Path) -> int:
    return scan_shard(shard, _received(pickled), folder)


@lru_cache(maxsize=1)
def _received(pickled: bytes) -> ArchiveSource:
    """A worker process opens a source once, not for each shard: a zip or tar file lists all its members when it is opened."""
    source: ArchiveSource = pickle.loads(pickled)
    return source


def scan_shard(shard: Shard, source: ArchiveSource, folder: Path) -> int:
    """Scan one shard and write it; returns the number of files."""
    with quiet_pydicom():
        found = scan_headers(source, shard.source, shard.keys) if isinstance(source, HeaderSource) else {}
        side_files: dict[str, Any] = {}
        reader = HeaderReader()
        instances = [one for key in shard.keys for one in found.get(key) or _opened(source, shard.source, key, side_files, reader)]
    write_table(to_table(instances), folder / _name(shard))
    return len(shard.keys)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """pydicom quotes header values in its warnings and its log, and those may be names."""
    logger = logging.getLogger("pydicom")
    disabled = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


def _opened(source: ArchiveSource, number: int, key: str, side_files: dict[str, Any], reader: HeaderReader) -> list[Instance]:
    found = scan_file(source, number, key, reader)
    if found[0].kind != "nifti" or found[0].reason:
        return found
    return [replace(found[0], modality=modality_of(source, key, side_files))]


def _unread(source: ArchiveSource, number: int, key: str) -> Unread:
    """What the source says of a file without opening it."""
    name = os.fsencode(key)
    if not _has_stat(type(source)):
        return Unread(number, name)
    try:
        size, version = cast(StatSource, source).stat(key)
        return Unread(number, name, size, version)
    except OSError:
        # Opening it tells more; what cannot be opened either ends there.
        return Unread(number, name)


@lru_cache(maxsize=16)
def _has_stat(source: type[ArchiveSource]) -> bool:
    """Asking a protocol costs more than asking the file."""
    return issubclass(source, StatSource)


def scan_headers(source: HeaderSource, number: int, keys: Sequence[str]) -> dict[str, list[Instance]]:
    """Key -> what the header says, for those of `keys` that the source has a header of; all others where it cannot be asked."""
    assert isinstance(source, ArchiveSource)
    asked, found = set(keys), dict[str, list[Instance]]()
    with blame(type(source), "headers"):
        try:
            for key, header in source.headers(keys):
                if key in asked:
                    found[key] = _scan_header(header, _unread(source, number, key).instance())
        except OSError:
            left = (_unread(source, number, key).instance() for key in keys if key not in found)
            found |= {os.fsdecode(one.key): [replace(one, reason=Reason.UNREADABLE.value)] for one in left}
    return found


def _scan_header(header: Dataset, instance: Instance) -> list[Instance]:
    try:
        return from_header(header, instance)
    except (*PARSE_ERRORS, OSError, struct.error, zlib.error):
        return [replace(instance, kind="dicom", reason=Reason.CORRUPT.value)]


def scan_file(source: ArchiveSource, number: int, key: str, reader: HeaderReader) -> list[Instance]:
    """What one file is, or each of its slices; never raises for what the file holds. `reader` remembers the last file."""
    unread = _unread(source, number, key)
    try:
        with source.open(key) as file:
            start = file.read(HEAD)
            size = file.seek(0, os.SEEK_END) if len(start) == HEAD else len(start)
            if size != unread.size:
                unread = unread._replace(size=size)
            return _scan_open(file, start, unread, key, source.location, reader)
    except Refused as refused:
        return _left_out(unread, refused.reason)
    except MemoryError:
        return _left_out(unread, Reason.TOO_LARGE)
    except OSError:
        return _left_out(unread, Reason.UNREADABLE)


def _left_out(unread: Unread, reason: Reason) -> list[Instance]:
    return [replace(unread.instance(), reason=reason.value)]


def _scan_open(file: BinaryIO, start: bytes, unread: Unread, key: str, location: str, reader: HeaderReader) -> list[Instance]:
    if not start:
        return _left_out(unread, Reason.EMPTY_FILE)
    if names.is_nifti_name(key) or is_nifti(start) or (start[:2] == b"\x1f\x8b" and is_nifti(_unpacked_start(watched(file)))):
        return [_scan_nifti(watched(file), unread.instance(), os.path.join(Path(location).name, key))]  # noqa: PTH118 - any encoding
    if start.startswith(_PACKED) or start[257:262] == b"ustar":
        return _left_out(unread, Reason.COMPRESSED_ARCHIVE)
    return _scan_dicom(file, start, unread, reader)


def _unpacked_start(file: BinaryIO) -> bytes:
    file.seek(0)
    try:
        with gzip.GzipFile(fileobj=file) as packed:
            return packed.read(348)
    except Refused:
        raise
    except (OSError, EOFError, zlib.error):
        return b""


def _scan_nifti(file: BinaryIO, instance: Instance, name: str) -> Instance:
    found = replace(instance, kind="nifti", modality=UNKNOWN, patient=names.patient_of(name))
    if names.is_label(name):
        return replace(found, reason=Reason.LABEL_MAP.value)
    try:
        file.seek(0)
        header = read_nifti_header(file)
    except NiftiProblem as problem:
        return replace(found, reason=problem.reason.value)
    file.seek(0)
    digest = blake2b(digest_size=20)
    while block := file.read(1 << 20):
        digest.update(block)
    return replace(
        found,
        uid=digest.hexdigest(),
        series=digest.hexdigest(),
        study=names.session_of(name),
        shape=header.shape,
        affine=tuple(header.affine.ravel().tolist()),
        warnings=header.warnings,
    )


def _scan_dicom(file: BinaryIO, start: bytes, unread: Unread, reader: HeaderReader) -> list[Instance]:
    if not looks_like_dicom(start):
        return _left_out(unread, Reason.NOT_MEDICAL)
    try:
        return reader.read(file, start, unread)
    except (Refused, MemoryError):
        raise
    except (*PARSE_ERRORS, struct.error, zlib.error):
        return _left_out(unread, Reason.CORRUPT)
    except OSError as error:
        # pydicom raises its own, without a number, for what it cannot parse; the system's have one.
        return _left_out(unread, Reason.CORRUPT if error.errno is None else Reason.UNREADABLE)
