"""The sources of an index, opened and scanned, with the zip and tar files that lie inside folders."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, ClassVar, TypeGuard

from medssl.archive.headers.scan import Progress, Shard, scan, shards_of
from medssl.archive.index.folder import IndexFolder
from medssl.archive.instance import Instance
from medssl.archive.limits import Refused
from medssl.archive.outcomes import Reason
from medssl.archive.sources.folder import FolderSource
from medssl.archive.sources.locations import NotAnArchive, source_class
from medssl.archive.sources.packed import DamagedArchive, TarSource, ZipSource
from medssl.errors import ArchiveError
from medssl.source import ArchiveSource

_DAMAGES_SHOWN = 3
"""Damages of one archive that are told one by one; all are counted."""

Chosen = tuple[type[ArchiveSource], str]
"""A source's class and the location to make it with."""


class DamageWarning(UserWarning):
    """A zip or tar file of which a part is lost."""


class _NothingOf(ArchiveSource):
    """Stands for a zip or tar file of which nothing can be read: one file, counted as damaged."""

    name = "damaged"
    schemes: ClassVar[tuple[str, ...]] = ()

    def keys(self) -> Iterator[str]:
        yield ""

    def open(self, key: str) -> BinaryIO:
        raise Refused(Reason.DAMAGED_ARCHIVE)


def opened(chosen: Sequence[Chosen]) -> list[ArchiveSource]:
    """The sources; of several a damaged one costs itself and a warning. Archives are numbered: their names may tell who is in them."""
    sources: list[ArchiveSource] = []
    for number, (kind, place) in enumerate(chosen, 1):
        which = f"archive {number} of {len(chosen)}" if len(chosen) > 1 else "the archive"
        try:
            source = kind(place)
        except DamagedArchive as error:
            if len(chosen) == 1:
                raise
            _warn(f"{which} is left out: {error}")
            source = _NothingOf(place)
        for damage in source.damages[:_DAMAGES_SHOWN] if isinstance(source, TarSource) else ():
            _warn(f"{which} is damaged after its member {damage.after}, at byte {damage.at}: what lay there is lost. Copy it again.")
        sources.append(source)
    return sources


def _warn(message: str) -> None:
    warnings.warn(message, DamageWarning, stacklevel=5)


def scanned_all(sources: list[ArchiveSource], root: IndexFolder, private: Path, workers: int, progress: Progress | None) -> list[Instance]:
    """Every instance, sorted: what follows does not depend on the order in which a source names its files.

    The zip and tar files inside folders are sources too, and are added to `sources`.
    """
    shards = shards_of(_keys(source, root.root) for source in sources)
    if not shards:
        places = ", ".join(source.location for source in sources)
        raise ArchiveError(f"there is no file in {places}. Name the folder that holds the scans; it is read with all its subfolders.")
    instances = _scanned(shards, sources, private, workers, progress)
    given = len(sources)
    found = [one if one.reason != Reason.COMPRESSED_ARCHIVE else _entered(one, sources) for one in instances]
    inside = [replace(shard, source=shard.source + given) for shard in shards_of(source.keys() for source in sources[given:])]
    members = _scanned(inside, sources, private, workers, progress) if inside else []
    # An archive with members is these; one without stays a file of its own.
    filled = {shard.source for shard in inside}
    kept = [one for one in found if not isinstance(one, _Entered)] + [one.file for one in found if _is_empty(one, filled)]
    return sorted([*kept, *members], key=lambda one: one.identity)


@dataclass(frozen=True)
class _Entered:
    """A zip or tar file inside a folder, and the number of the source that it has become."""

    file: Instance
    source: int


def _is_empty(one: Instance | _Entered, filled: Collection[int]) -> TypeGuard[_Entered]:
    return isinstance(one, _Entered) and one.source not in filled


def _entered(one: Instance, sources: list[ArchiveSource]) -> Instance | _Entered:
    """A file that looks like an archive, opened as one where it lies in a folder and is one."""
    folder = sources[one.source]
    if not isinstance(folder, FolderSource):
        return one
    try:
        kind, place = source_class(os.path.join(folder.location, os.fsdecode(one.key)))  # noqa: PTH118 - names in any encoding
        source = kind(place)
    except DamagedArchive:
        return replace(one, reason=Reason.DAMAGED_ARCHIVE.value)
    except NotAnArchive:
        return one
    if isinstance(source, ZipSource) and source.is_document:
        return replace(one, reason=Reason.NOT_MEDICAL.value)
    if isinstance(source, TarSource) and source.damages:
        _warn(f"{len(source.damages)} places of a tar file inside a folder are damaged: what lay there is lost. Copy it again.")
    sources.append(source)
    return _Entered(replace(one, reason=Reason.EMPTY_FILE.value), len(sources) - 1)


def _scanned(
    shards: Sequence[Shard], sources: Sequence[ArchiveSource], private: Path, workers: int, progress: Progress | None
) -> list[Instance]:
    waiting = private / "scan"
    waiting.mkdir(mode=0o700)
    instances = scan(shards, sources, waiting, workers, progress)
    for file in waiting.iterdir():
        file.unlink()
    waiting.rmdir()
    return instances


def _keys(source: ArchiveSource, root: Path) -> Iterator[str]:
    """The source's names without those of the index itself, which may lie inside the archive's folder."""
    inside: str | None = None
    if isinstance(source, FolderSource):
        relative = os.path.relpath(root.resolve(), Path(source.location).resolve())
        inside = None if relative.startswith("..") else relative + os.sep
    for key in source.keys():  # noqa: SIM118 - a source is no dictionary
        if inside is None or not key.startswith(inside):
            yield key
