"""What the files of a source are, each read under limits; nothing that a file holds raises."""

from __future__ import annotations

import gzip
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self, cast

from medssl.archive.headers.dicom import PARSE_ERRORS, from_header, looks_like_dicom
from medssl.archive.headers.plain import HEAD
from medssl.archive.headers.reader import HeaderReader, Unread
from medssl.archive.instance import Instance
from medssl.archive.limits import Refused, watched
from medssl.archive.nifti import names
from medssl.archive.nifti.files import NiftiProblem, is_nifti, read_nifti_header
from medssl.archive.nifti.modality import UNKNOWN, modality_of
from medssl.archive.outcomes import Reason
from medssl.archive.pictures.files import PictureProblem, is_picture, read_picture_stream
from medssl.plugins import blame
from medssl.source import ArchiveSource, HeaderSource, StartSource, StatSource

if TYPE_CHECKING:
    from pydicom import Dataset

_PACKED = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
"""How zip files and compressed files begin."""


def scan_files(source: ArchiveSource, number: int, keys: Sequence[str]) -> list[Instance]:
    """What each file of a source is, or each of its slices, in the order of `keys`."""
    with quiet_pydicom():
        found = scan_headers(source, number, keys) if isinstance(source, HeaderSource) else {}
        side_files: dict[str, Any] = {}
        reader = HeaderReader()
        return [one for key in keys for one in found.get(key) or _opened(source, number, key, side_files, reader)]


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
    if found[0].kind not in ("nifti", "picture") or found[0].reason:
        return found
    return [replace(found[0], modality=modality_of(source, key, side_files))]


def before_reading(source: ArchiveSource, number: int, key: str) -> Unread:
    """What the source says of a file without opening it."""
    name = os.fsencode(key)
    if not _has_stat(type(source)):
        return Unread(number, name)
    try:
        return Unread(number, name, *cast(StatSource, source).stat(key))
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
                    found[key] = _scan_header(header, before_reading(source, number, key).instance())
        except OSError:
            left = (before_reading(source, number, key).instance() for key in keys if key not in found)
            found |= {os.fsdecode(one.key): [replace(one, reason=Reason.UNREADABLE.value)] for one in left}
    return found


def _scan_header(header: Dataset, instance: Instance) -> list[Instance]:
    try:
        return from_header(header, instance)
    except (*PARSE_ERRORS, OSError, struct.error, zlib.error):
        return [replace(instance, kind="dicom", reason=Reason.CORRUPT.value)]


def scan_file(source: ArchiveSource, number: int, key: str, reader: HeaderReader) -> list[Instance]:
    """What one file is, or each of its slices; never raises for what the file holds. `reader` remembers the last file."""
    unread: Unread | None = None
    try:
        if _has_start(type(source)):
            count = reader.start
            (size, version), start = cast(StartSource, source).start(key, count)
            # Where the system knows no size beforehand, the end tells it.
            unread = Unread(number, os.fsencode(key), size if len(start) == count else len(start), version)
            with _Later(partial(source.open, key)) as later:
                return _scan_open(cast(BinaryIO, later), start, unread, key, source.location, reader)
        unread = before_reading(source, number, key)
        with source.open(key) as file:
            start = file.read(HEAD)
            size = file.seek(0, os.SEEK_END) if len(start) == HEAD else len(start)
            unread = unread._replace(size=size)
            return _scan_open(file, start, unread, key, source.location, reader)
    except Refused as refused:
        reason = refused.reason
    except MemoryError:
        reason = Reason.TOO_LARGE
    except OSError:
        reason = Reason.UNREADABLE
    return _left_out(unread or before_reading(source, number, key), reason)


@lru_cache(maxsize=16)
def _has_start(source: type[ArchiveSource]) -> bool:
    """A class that opens otherwise than the one from which it has `start` is opened."""
    names = {"open", "stat", "start"}
    return "start" in next((vars(kind) for kind in source.__mro__ if not names.isdisjoint(vars(kind))), ())


class _Later:
    """A file that is opened when something is asked of it: what most files are, their start tells."""

    def __init__(self, opened: Callable[[], BinaryIO]) -> None:
        self._opened = opened

    def __getattr__(self, name: str) -> Any:
        if name == "_file":
            self._file = self._opened()
            return self._file
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if "_file" in vars(self):
            self._file.close()


def _left_out(unread: Unread, reason: Reason) -> list[Instance]:
    return [replace(unread.instance(), reason=reason.value)]


def _scan_open(file: BinaryIO, start: bytes, unread: Unread, key: str, location: str, reader: HeaderReader) -> list[Instance]:
    if not start:
        return _left_out(unread, Reason.EMPTY_FILE)
    if names.is_nifti_name(key) or is_nifti(start) or (start[:2] == b"\x1f\x8b" and is_nifti(_unpacked_start(watched(file)))):
        return [_scan_nifti(watched(file), unread.instance(), _called(location, key))]
    if is_picture(start):
        return [_scan_picture(watched(file), unread.instance(), _called(location, key))]
    if start.startswith(_PACKED) or start[257:262] == b"ustar":
        return _left_out(unread, Reason.COMPRESSED_ARCHIVE)
    return _scan_dicom(file, start, unread, reader)


def _called(location: str, key: str) -> str:
    """The name of an image file below the one of the archive, which may say what it is too."""
    return os.path.join(Path(location).name, key)  # noqa: PTH118 - any encoding


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
    return replace(_named(found, file, name), shape=header.shape, affine=tuple(header.affine.ravel().tolist()), warnings=header.warnings)


def _named(found: Instance, file: BinaryIO, name: str) -> Instance:
    """An image file is called by what it holds, and its visit by its name."""
    file.seek(0)
    digest = blake2b(digest_size=20)
    while block := file.read(1 << 20):
        digest.update(block)
    return replace(found, uid=digest.hexdigest(), series=digest.hexdigest(), study=names.session_of(name))


def _scan_picture(file: BinaryIO, instance: Instance, name: str) -> Instance:
    """A picture is decoded once: nothing less tells that it is whole."""
    found = replace(instance, kind="picture", modality=UNKNOWN, patient=names.patient_of(name))
    if names.is_label(name):
        return replace(found, reason=Reason.LABEL_MAP.value)
    try:
        picture = read_picture_stream(file)
    except PictureProblem as problem:
        return replace(found, reason=problem.reason.value)
    samples, columns, rows, _ = picture.array.shape
    return replace(_named(found, file, name), rows=rows, columns=columns, samples=samples, frames=1, warnings=picture.notes)


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
