"""The sources that come with medssl: a folder, a zip file and a tar file; and how a location finds its source."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from medssl.archive.packed import TarSource, ZipSource
from medssl.archive.tar_members import TAR_ERRORS
from medssl.errors import ArchiveError, MissingInput, PluginError
from medssl.files import open_regular
from medssl.hookspecs import hookimpl
from medssl.source import ArchiveSource, Stat

if TYPE_CHECKING:
    from medssl.plugins import Plugins


Identity = tuple[int, int]
"""Device and number of a folder: the same by whatever way it is reached."""


class FolderSource(ArchiveSource):
    """Every regular file below a folder; links to folders are followed once, pipes and devices are never opened."""

    name = "folder"
    schemes: ClassVar[tuple[str, ...]] = ("folder",)

    def keys(self) -> Iterator[str]:
        """Paths below the folder, by name within each folder."""
        # Folders that are open, innermost last, with what tells each of them: no recursion, so that no depth is too deep.
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
            path = os.path.join(below, entry.name)  # noqa: PTH118
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
        return iter(entries), below, (here.st_dev, here.st_ino)

    def open(self, key: str) -> BinaryIO:
        """The file, if it is a regular one below the folder; a pipe or device raises `OSError` at once instead of blocking."""
        if os.path.isabs(key) or ".." in PurePath(key).parts:  # noqa: PTH117
            raise OSError("not below the folder")
        return open_regular(os.path.join(self.location, key))  # noqa: PTH118

    def stat(self, key: str) -> Stat:
        """Size and time of the last change."""
        found = os.stat(os.path.join(self.location, key))  # noqa: PTH116, PTH118
        return Stat(found.st_size, str(found.st_mtime_ns))


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


@hookimpl
def medssl_archive_sources() -> Iterable[type[ArchiveSource]]:
    """medssl's own sources."""
    return [FolderSource, ZipSource, TarSource]


OWN: dict[str, type[ArchiveSource]] = {scheme: cls for cls in (FolderSource, ZipSource, TarSource) for scheme in cls.schemes}
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9-]+)(\+[A-Za-z0-9+.-]+)?:")


def find_source(location: str | Path, plugins: Plugins | None = None) -> ArchiveSource:
    """The source that opens `location`: what lies on disk under that name, else the plugin of its scheme.

    Raises `MissingInput` where nothing is there and `PluginError` where no installed package knows the scheme.
    """
    cls, place = source_class(location, plugins)
    return cls(place)


def source_class(location: str | Path, plugins: Plugins | None = None) -> tuple[type[ArchiveSource], str]:
    """The class for `location` and the location as that class takes it (absolute, for what lies on disk)."""
    text = os.fspath(location)
    path = Path(text)
    if path.exists():
        return _on_disk(path), str(path.absolute())
    scheme = _SCHEME.match(text)
    if scheme is None:
        raise MissingInput(f"there is no folder, zip or tar file at {text}. Give the folder that holds the images.")
    return _by_scheme(scheme.group(1), text, plugins)


def _by_scheme(scheme: str, text: str, plugins: Plugins | None) -> tuple[type[ArchiveSource], str]:
    if scheme in OWN:
        rest = Path(text.partition(":")[2])
        if not rest.exists():
            raise MissingInput(f"there is nothing at {rest}. Give the path of a {scheme}.")
        return OWN[scheme], str(rest.absolute())
    if plugins is None:
        from medssl.plugins import Plugins

        plugins = Plugins.load()
    known = plugins.sources()
    if scheme not in known:
        raise PluginError(f"no installed package opens '{scheme}:' archives. Known: {', '.join(sorted(known))}. Is the plugin installed?")
    return known[scheme], text


def _on_disk(path: Path) -> type[ArchiveSource]:
    if path.is_dir():
        return FolderSource
    if path.is_file() and _is_zip(path):
        return ZipSource
    if path.is_file() and _is_tar(path):
        return TarSource
    raise ArchiveError(f"{path.name} is neither a folder nor a zip or tar file. Give the folder that holds the images.")


def _is_zip(path: Path) -> bool:
    """By its directory, or by its name: then it is damaged, and the source says so."""
    return path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)


def _is_tar(path: Path) -> bool:
    if re.search(r"\.(tar(\.\w+)?|tgz|tbz2?|txz)$", path.name, re.IGNORECASE):
        return True
    try:
        return tarfile.is_tarfile(path)
    except TAR_ERRORS:
        return False
