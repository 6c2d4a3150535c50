"""What a store can be made from: an index, a folder of DICOM, a folder of NIfTI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medssl.archive.nifti.modality import checked_modality
from medssl.config import BaseOptions, check
from medssl.errors import ArchiveError, UsageError
from medssl.faults import faults_as
from medssl.files import holds_file
from medssl.volumes.ingest.channels import ChannelOptions, Group, grouped, known_modality
from medssl.volumes.ingest.writing import Incoming, Progress, StoreSummary, Unusable, write_store
from medssl.volumes.preparation import Preparation, with_windows
from medssl.volumes.store.frames import Codec

if TYPE_CHECKING:
    from medssl.archive import Index


class StoreOptions(BaseOptions):
    """What `medssl store --config` reads."""

    where: str | None = None
    """SQL condition over the volume table of the index."""
    spacing: float | tuple[float, float, float] | None = None
    """Resample to this spacing in mm; null: each volume keeps its own grid."""
    modality: str | None = None
    """Modality of NIfTI files that do not say theirs, such as CT."""
    channels: ChannelOptions = ChannelOptions()
    """What becomes the channels of one volume."""
    preparation: Preparation = Preparation()
    """How values become what a network sees."""


def make_store(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    where: str | None = None,
    spacing: float | Sequence[float] | None = None,
    modality: str | None = None,
    preparation: Preparation | None = None,
    channels: ChannelOptions | Mapping[str, Any] | None = None,
    codec: Codec = "lz4hc",
    workers: int = 2,
    progress: Progress | None = None,
) -> StoreSummary:
    """Make or complete the store `out` from index folders and folders of DICOM or NIfTI.

    `where` is SQL over the index's volume table; `spacing` is in mm (none: native); `modality` is that of NIfTI files that do not say
    it, and decides how they are prepared; `channels` says what becomes the channels of one volume. Folders that are no index are
    indexed first, beside the store in `OUT.index`: that folder holds real paths and stays private, the store holds pseudonyms only.
    """
    modality = None if modality is None else checked_modality(modality)
    if not sources:
        raise UsageError("no source given. Name an index folder, or a folder of DICOM or NIfTI files.")
    options = channels if isinstance(channels, ChannelOptions) else check(ChannelOptions, dict(channels or {}), "channels")
    indexes, unread = _indexes(sources, Path(out), workers)
    incoming = list({item.volume: item for index in indexes for item in from_index(index, where, modality, options)}.values())
    if not incoming:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(unread.items()))
        raise ArchiveError(
            f"no volumes in {', '.join(str(source) for source in sources)}{f' where {where}' if where else ''}"
            f"{f'; its files: {reasons}' if reasons else ''}. "
            "`medssl index` and `medssl volumes` show what is there and why files were left out."
        )
    done = write_store(
        incoming,
        out,
        spacing=spacing,
        preparation=with_windows(preparation or Preparation(), options.windows),
        axis=options.axis,
        codec=codec,
        workers=workers,
        progress=progress,
    )
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


def from_index(
    index: Index, where: str | None = None, modality: str | None = None, options: ChannelOptions | None = None
) -> list[Incoming]:
    """The volumes of an index that SQL `where` selects, joined as `options` say and read when their turn comes; `modality` where the
    index knows none.

    Raises `ArchiveError` where none of them could be read.
    """
    index.check_readable()
    options = options or ChannelOptions()
    return [_incoming(index, group, options, modality) for group in grouped(index, index.volumes(where), options, modality)]


def _incoming(index: Index, group: Group, options: ChannelOptions, modality: str | None) -> Incoming:
    first, channels = group.records[0], group.channels(options, modality)
    # Whoever stores the same volume by another rule makes it again.
    plain = len(channels) == 1 and group.reason is None and channels[0].name == channels[0].modality
    made_of = " ".join(
        [
            *(record.volume for record in group.records),
            *map(str, group.picked),
            *(f"{channel.name}/{channel.array}" for channel in channels),
        ]
    )
    return Incoming(
        first.volume,
        first.patient,
        first.series,
        known_modality(first, modality),
        partial(_load, index, group),
        channels,
        fingerprint="" if plain else made_of,
    )


def _load(index: Index, group: Group) -> tuple[NDArray[Any], NDArray[Any]]:
    if group.reason is not None:
        raise Unusable(group.reason)
    first = index.read(group.records[0].volume)
    if group.picked:
        return first.array[list(group.picked)], first.record.affine
    if len(group.records) == 1:
        return first.array, first.record.affine
    others = [index.read(record.volume).array for record in group.records[1:]]
    return np.stack([first.array, *others]), first.record.affine
