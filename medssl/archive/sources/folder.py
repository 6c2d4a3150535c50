"""A folder as a source, every regular file below it; and a single DICOM file, which may hold a whole volume."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import BinaryIO, ClassVar

from medssl.files import open_regular, read_start
from medssl.source import ArchiveSource, Stat

Identity = tuple[int, int]
"""Device and number of a folder: the same by whatever way it is reached."""


class FolderSource(ArchiveSource):
    """Every regular file below a folder; links to folders are followed once, pipes and devices are never opened."""

    name = "folder"
    schemes: ClassVar[tuple[str, ...]] = ("folder",)

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self._below = os.path.join(location, "")  # noqa: PTH118

    def keys(self) -> Iterator[str]:
        """Paths below the folder, by name within each folder."""
        # Folders that are open, innermost last, with how paths below them begin and what tells each of them: no recursion, so that no
        # depth is too deep.
        walk: list[tuple[Iterator[os.DirEntry[str]], str, Identity]] = []
        waiting: str | None = ""
        while waiting is not None or walk:
            if waiting is not None:
                found = self._entered(waiting)
                if found is None:
                    # A folder that may not be read is listed itself, so that it is counted as unreadable and not forgotten.
                    yield waiting
                elif all(found[2] != identity for _, _, identity in walk):
                    walk.append(found)
                waiting = None
                continue
            entries, below, _ = walk[-1]
            entry = next(entries, None)
            if entry is None:
                walk.pop()
                continue
            path = below + entry.name
            if _is_folder(entry):
                waiting = path
            elif _is_file(entry):
                yield path

    def _entered(self, below: str) -> tuple[Iterator[os.DirEntry[str]], str, Identity] | None:
        folder = os.path.join(self.location, below)  # noqa: PTH118 - names in any encoding, as the system gives them
        try:
            here = os.stat(folder)  # noqa: PTH116
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            return None
        return iter(entries), below and below + os.sep, (here.st_dev, here.st_ino)

    def open(self, key: str) -> BinaryIO:
        """The file, if it is a regular one below the folder; a pipe or device raises `OSError` at once instead of blocking."""
        return open_regular(self._path(key))

    def start(self, key: str, count: int) -> tuple[Stat, bytes]:
        """What `stat` says, and the first bytes, of such a file."""
        found, content = read_start(self._path(key), count)
        return Stat(found.st_size, str(found.st_mtime_ns)), content

    def stat(self, key: str) -> Stat:
        """Size and time of the last change."""
        found = os.stat(self._below + key)  # noqa: PTH116
        return Stat(found.st_size, str(found.st_mtime_ns))

    def _path(self, key: str) -> str:
        if os.path.isabs(key) or (".." in key and ".." in PurePath(key).parts):  # noqa: PTH117
            raise OSError("not below the folder")
        return self._below + key


class FileSource(ArchiveSource):
    """One DICOM file: an enhanced object, a radiograph, or a slice."""

    name = "file"
    schemes: ClassVar[tuple[str, ...]] = ("file",)

    def keys(self) -> Iterator[str]:
        """Its name."""
        yield PurePath(self.location).name

    def open(self, key: str) -> BinaryIO:
        """The file, whose name is the only key."""
        if key != PurePath(self.location).name:
            raise OSError("another file")
        return open_regular(self.location)

    def stat(self, key: str) -> Stat:
        """Size and time of the last change."""
        found = os.stat(self.location)  # noqa: PTH116
        return Stat(found.st_size, str(found.st_mtime_ns))


def is_dicom_file(path: Path) -> bool:
    """Does a file that lies by itself say that it is DICOM, by the mark at its beginning or by its name?"""
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    with open_regular(path) as file:
        return file.read(132)[128:] == b"DICM"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        # A dangling link is no pipe or device: it is listed and ends as unreadable.
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))  # noqa: PTH110
    except OSError:
        return entry.is_symlink()
