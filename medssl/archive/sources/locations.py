"""How a location finds its source: medssl's own for a folder, a zip, tar or DICOM file, else a plugin's."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from medssl.archive.sources.folder import FileSource, FolderSource, is_dicom_file
from medssl.archive.sources.packed import TarSource, ZipSource
from medssl.archive.sources.tar_members import TAR_ERRORS
from medssl.errors import ArchiveError, MissingInput, PluginError
from medssl.hookspecs import hookimpl
from medssl.source import ArchiveSource

if TYPE_CHECKING:
    from medssl.plugins import Plugins


@hookimpl
def medssl_archive_sources() -> Iterable[type[ArchiveSource]]:
    """medssl's own sources."""
    return [FolderSource, ZipSource, TarSource, FileSource]


OWN: dict[str, type[ArchiveSource]] = {scheme: cls for cls in (FolderSource, ZipSource, TarSource, FileSource) for scheme in cls.schemes}
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9-]+)(\+[A-Za-z0-9+.-]+)?:")


def find_source(location: str | Path, plugins: Plugins | None = None) -> ArchiveSource:
    """The source that opens `location`: what lies on disk under that name, else the plugin of its scheme.

    Raises `MissingInput` where nothing is there and `PluginError` where no installed package knows the scheme.
    """
    cls, place = source_class(location, plugins)
    return cls(place)


class NotAnArchive(ArchiveError):
    """A file that holds no files."""


def source_class(location: str | Path, plugins: Plugins | None = None) -> tuple[type[ArchiveSource], str]:
    """The class for `location` and the location as that class takes it (absolute, for what lies on disk)."""
    text = os.fspath(location)
    path = Path(text)
    if path.exists():
        return _on_disk(path), str(path.absolute())
    scheme = _SCHEME.match(text)
    if scheme is None:
        raise MissingInput(f"there is no folder and no zip, tar or DICOM file at {text}. Give the folder that holds the images.")
    return _by_scheme(scheme.group(1), text, plugins)


def _by_scheme(scheme: str, text: str, plugins: Plugins | None) -> tuple[type[ArchiveSource], str]:
    if scheme in OWN:
        rest = Path(text.partition(":")[2])
        if not rest.exists():
            raise MissingInput(f"there is nothing at {rest}. Give the path of a {scheme}.")
        if rest.is_dir() != (OWN[scheme] is FolderSource):
            raise NotAnArchive(f"{rest.name} is {'a' if rest.is_dir() else 'no'} folder. Give the path of a {scheme}, or the path alone.")
        return OWN[scheme], str(rest.absolute())
    from medssl.plugins import KNOWN_SCHEMES, Plugins

    known = (Plugins.load() if plugins is None else plugins).sources()
    if scheme not in known:
        package = KNOWN_SCHEMES.get(scheme)
        what = f"Install it with: pip install {package}" if package else f"Known: {', '.join(sorted(known))}. Is the plugin installed?"
        raise PluginError(f"no installed package opens '{scheme}:' archives. {what}")
    return known[scheme], text


def _on_disk(path: Path) -> type[ArchiveSource]:
    if path.is_dir():
        return FolderSource
    if path.is_file() and _is_zip(path):
        return ZipSource
    if path.is_file() and _is_tar(path):
        return TarSource
    if path.is_file() and is_dicom_file(path):
        return FileSource
    raise NotAnArchive(f"{path.name} is neither a folder nor a zip, tar or DICOM file. Give the folder that holds the images.")


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
