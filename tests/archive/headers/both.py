"""One answer by two ways: as a scan reads a file, and as pydicom alone has it read."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import BinaryIO, ClassVar

from medssl.archive.headers.dicom import read_instances
from medssl.archive.headers.reader import HeaderReader, Unread
from medssl.archive.headers.scan import quiet_pydicom, scan_file
from medssl.archive.instance import Instance
from medssl.source import ArchiveSource


class InMemory(ArchiveSource):
    """Files by their names."""

    name = "memory"
    schemes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__("memory")
        self.files = files

    def keys(self) -> Iterator[str]:
        yield from self.files

    def open(self, key: str) -> BinaryIO:
        return io.BytesIO(self.files[key])


class PydicomAlone(HeaderReader):
    """Takes no other way."""

    def read(self, file: BinaryIO, head: bytes, unread: Unread) -> list[Instance]:
        return read_instances(file, unread.instance())


def scanned(source: ArchiveSource, reader: HeaderReader) -> dict[str, list[Instance]]:
    with quiet_pydicom():
        return {key: scan_file(source, 0, key, reader) for key in source.keys()}  # noqa: SIM118 - a source is no dictionary


def check_same(source: ArchiveSource) -> None:
    """Every file of the source, in turn, ends as it does with pydicom alone."""
    fast, slow = scanned(source, HeaderReader()), scanned(source, PydicomAlone())
    for key, instances in fast.items():
        assert instances == slow[key], key
