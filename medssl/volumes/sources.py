"""What a store can be made from: an index, a folder of DICOM, a folder of NIfTI."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from medssl.errors import ArchiveError
from medssl.volumes.frames import Codec
from medssl.volumes.ingest import Incoming, Progress, StoreSummary, write_store
from medssl.volumes.preparation import Preparation

if TYPE_CHECKING:
    from medssl.archive import Index


def make_store(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    where: str | None = None,
    spacing: float | Sequence[float] | None = None,
    preparation: Preparation | None = None,
    codec: Codec = "lz4hc",
    workers: int = 2,
    progress: Progress | None = None,
) -> StoreSummary:
    """Make or complete the store `out` from index folders and folders of DICOM or NIfTI.

    `where` is SQL over the index's volume table; `spacing` is in mm (none: native). Folders that are no index are indexed first,
    beside the store in `OUT.index`: that folder holds real paths and stays private, the store holds pseudonyms only.
    """
    incoming = [item for index in _indexes(sources, Path(out), workers) for item in from_index(index, where)]
    if not incoming:
        raise ArchiveError(
            f"no volumes in {', '.join(str(source) for source in sources)}{f' where {where}' if where else ''}. "
            "`medssl index` and `medssl volumes` show what is there and why files were left out."
        )
    return write_store(incoming, out, spacing=spacing, preparation=preparation, codec=codec, workers=workers, progress=progress)


def _indexes(sources: Sequence[str | Path], out: Path, workers: int) -> Iterator[Index]:
    from medssl.archive import Index, build_index, is_index

    raw = [source for source in sources if not is_index(source)]
    yield from (Index(source) for source in sources if source not in raw)
    if raw:
        beside = out.with_name(out.name + ".index")
        build_index(raw, beside, workers=workers)
        yield Index(beside)


def from_index(index: Index, where: str | None = None) -> list[Incoming]:
    """The volumes of an index that SQL `where` selects, read when their turn comes."""
    return [
        Incoming(record.volume, record.patient, record.series, record.modality, partial(_load, index, record.volume))
        for record in index.volumes(where)
    ]


def _load(index: Index, volume: str) -> tuple[NDArray[Any], NDArray[Any]]:
    found = index.read(volume)
    return found.array, found.record.affine
