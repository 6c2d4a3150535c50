"""What a store can be made from: an index, a folder of DICOM, a folder of NIfTI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from medssl.errors import ArchiveError, UsageError
from medssl.faults import faults_as
from medssl.files import holds_file
from medssl.volumes.ingest.writing import Incoming, Progress, StoreSummary, write_store
from medssl.volumes.preparation import Preparation
from medssl.volumes.store.frames import Codec

if TYPE_CHECKING:
    from medssl.archive import Index


def make_store(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    where: str | None = None,
    spacing: float | Sequence[float] | None = None,
    modality: str | None = None,
    preparation: Preparation | None = None,
    codec: Codec = "lz4hc",
    workers: int = 2,
    progress: Progress | None = None,
) -> StoreSummary:
    """Make or complete the store `out` from index folders and folders of DICOM or NIfTI.

    `where` is SQL over the index's volume table; `spacing` is in mm (none: native); `modality` is that of NIfTI files that do not say
    it, and decides how they are prepared. Folders that are no index are indexed first,
    beside the store in `OUT.index`: that folder holds real paths and stays private, the store holds pseudonyms only.
    """
    if not sources:
        raise UsageError("no source given. Name an index folder, or a folder of DICOM or NIfTI files.")
    indexes, unread = _indexes(sources, Path(out), workers)
    incoming = list({item.volume: item for index in indexes for item in from_index(index, where, modality)}.values())
    if not incoming:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(unread.items()))
        raise ArchiveError(
            f"no volumes in {', '.join(str(source) for source in sources)}{f' where {where}' if where else ''}"
            f"{f'; its files: {reasons}' if reasons else ''}. "
            "`medssl index` and `medssl volumes` show what is there and why files were left out."
        )
    done = write_store(incoming, out, spacing=spacing, preparation=preparation, codec=codec, workers=workers, progress=progress)
    return replace(done, unread=unread)


def _indexes(sources: Sequence[str | Path], out: Path, workers: int) -> tuple[list[Index], dict[str, int]]:
    """The opened indexes, and what those made here could not read."""
    from medssl.archive import Index, build_index

    raw = [source for source in sources if not is_index(Path(source))]
    found = [Index(source) for source in sources if is_index(Path(source))]
    if not raw:
        return found, {}
    beside = out.with_name(out.name + ".index")
    summary = build_index(raw, beside, workers=workers)
    return [*found, Index(beside)], summary.rejected


def is_index(folder: Path) -> bool:
    """Is this the folder of an index, rather than a folder of images?"""
    with faults_as(UsageError, f"{folder} cannot be read"):
        return holds_file(folder / "index.json") and (folder / "private").is_dir()


def from_index(index: Index, where: str | None = None, modality: str | None = None) -> list[Incoming]:
    """The volumes of an index that SQL `where` selects, read when their turn comes; `modality` where the index knows none.

    Raises `ArchiveError` where none of them could be read.
    """
    index.check_readable()
    return [
        Incoming(
            record.volume,
            record.patient,
            record.series,
            modality.upper() if modality and record.modality in ("", "unknown") else record.modality,
            partial(_load, index, record.volume),
        )
        for record in index.volumes(where)
    ]


def _load(index: Index, volume: str) -> tuple[NDArray[Any], NDArray[Any]]:
    found = index.read(volume)
    return found.array, found.record.affine
