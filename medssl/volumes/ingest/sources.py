"""What a store can be made from: an index, a folder of DICOM, a folder of NIfTI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medssl.archive.nifti.modality import checked_modality
from medssl.config import BaseOptions, check
from medssl.errors import ArchiveError, UsageError
from medssl.faults import faults_as
from medssl.files import holds_file
from medssl.volumes.ingest.channels import ChannelOptions, Group, grouped, known_modality
from medssl.volumes.ingest.writing import Incoming, Progress, StoreSummary, Unusable, write_store
from medssl.volumes.preparation import Preparation, as_grey, turned_round, usual_preparation, with_windows
from medssl.volumes.store.frames import Codec
from medssl.volumes.store.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    from medssl.archive import Index, VolumeRecord


class StoreOptions(BaseOptions):
    """What `medssl store --config` reads."""

    where: str | None = None
    """SQL condition over the volume table of the index."""
    spacing: float | tuple[float, float, float] | None = None
    """Resample to this spacing in mm; null: each volume keeps its own grid."""
    modality: str | None = None
    """Modality of NIfTI files and pictures that do not say theirs, such as CT."""
    dimensions: Literal[2, 3] | None = None
    """3: volumes; 2: 2D images by themselves, such as radiographs and photographs; null: volumes where there are any, else images."""
    grey: bool = False
    """2D images in colour become grey."""
    invert_monochrome1: bool = False
    """2D images of which low values are meant to be bright (MONOCHROME1) are turned round."""
    channels: ChannelOptions = ChannelOptions()
    """What becomes the channels of one volume."""
    preparation: Preparation | None = None
    """How values become what a network sees; null: CT by a window, radiographs by percentiles, colours by their
    range, others by z-score."""


def make_store(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    where: str | None = None,
    spacing: float | Sequence[float] | None = None,
    modality: str | None = None,
    preparation: Preparation | None = None,
    channels: ChannelOptions | Mapping[str, Any] | None = None,
    dimensions: Literal[2, 3] | None = None,
    grey: bool = False,
    invert_monochrome1: bool = False,
    codec: Codec = "lz4hc",
    workers: int = 2,
    progress: Progress | None = None,
) -> StoreSummary:
    """Make or complete the store `out` from index folders and folders of DICOM or NIfTI.

    `where` is SQL over the index's volume table; `spacing` is in mm (none: native); `modality` is that of NIfTI files that do not say
    it, and decides how they are prepared; `channels` says what becomes the channels of one volume. Folders that are no index are
    indexed first, beside the store in `OUT.index`: that folder holds real paths and stays private, the store holds pseudonyms only.

    A store holds volumes or 2D images: `dimensions` says which; without it what the store holds already, else volumes where there are any.
    `grey` and `invert_monochrome1` are of 2D images, and become part of the preparation.
    """
    modality = None if modality is None else checked_modality(modality)
    if not sources:
        raise UsageError("no source given. Name an index folder, or a folder of DICOM or NIfTI files.")
    options = channels if isinstance(channels, ChannelOptions) else check(ChannelOptions, dict(channels or {}), "channels")
    indexes, unread = _indexes(sources, Path(out), workers)
    found = [(index, index.volumes(where)) for index in indexes]
    dimensions = dimensions or _dimensions(Path(out), [record for _, records in found for record in records])
    prepared = (preparation or usual_preparation(dimensions)).model_copy(
        update={name: True for name, asked in (("grey", grey), ("invert_monochrome1", invert_monochrome1)) if asked}
    )
    chosen = [(index, [record for record in records if record.dimensions == dimensions]) for index, records in found]
    others = sum(len(records) for _, records in found) - sum(len(records) for _, records in chosen)
    unread = {**unread, **({_OTHERS[dimensions]: others} if others else {})}
    incoming = list(
        {item.volume: item for index, records in chosen for item in _of_index(index, records, modality, options, prepared)}.values()
    )
    if dimensions == 2:
        _refuse_mixed(incoming)
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
        preparation=with_windows(prepared, options.windows),
        axis=options.axis,
        dimensions=dimensions,
        codec=codec,
        workers=workers,
        progress=progress,
    )
    return replace(done, unread=unread)


_OTHERS = {
    2: "volumes, which need a store of their own (--dimensions 3)",
    3: "2D images, which need a store of their own (--dimensions 2)",
}
"""What a store of so many dimensions leaves out."""


def _dimensions(out: Path, records: Sequence[VolumeRecord]) -> Literal[2, 3]:
    """What the store holds that is there, else volumes where there are any."""
    with faults_as(UsageError, f"the store {out} cannot be read"):
        there = holds_file(out / MANIFEST)
    if there:
        return read_manifest(out).dimensions
    return 2 if records and all(record.dimensions == 2 for record in records) else 3


def _refuse_mixed(incoming: Sequence[Incoming]) -> None:
    """A network reads one number of channels."""
    counts = Counter(len(item.channels) for item in incoming if item.channels)
    if len(counts) > 1:
        found = ", ".join(f"{count} of {channels} channel{'s' * (channels > 1)}" for channels, count in sorted(counts.items()))
        raise UsageError(
            f"the images have different numbers of channels: {found}. Make all of them grey with --grey, or choose by --where, such as "
            '"colours = 3".'
        )


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


def _of_index(
    index: Index, records: Sequence[VolumeRecord], modality: str | None, options: ChannelOptions, preparation: Preparation
) -> list[Incoming]:
    """These volumes of an index, joined as `options` say and read when their turn comes; `modality` where the index knows none.

    Raises `ArchiveError` where none of them could be read.
    """
    index.check_readable()
    groups = grouped(index, records, options, modality, preparation.grey)
    return [_incoming(index, group, options, modality, preparation) for group in groups]


def _incoming(index: Index, group: Group, options: ChannelOptions, modality: str | None, preparation: Preparation) -> Incoming:
    first, channels = group.records[0], () if group.reason else group.channels(options, modality)
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
        partial(_load, index, group, preparation),
        channels,
        fingerprint="" if plain else made_of,
        scaled=bool(first.spacing),
    )


def _load(index: Index, group: Group, preparation: Preparation) -> tuple[NDArray[Any], NDArray[Any]]:
    if group.reason is not None:
        raise Unusable(group.reason)
    if len(group.records) == 1 and group.records[0].kind != "nifti" and group.records[0].dimensions == 2:
        return image_of(index, group.records[0], preparation, group.picked or None)
    first = index.read(group.records[0].volume)
    if group.picked:
        return first.array[list(group.picked)], first.record.affine
    if len(group.records) == 1:
        return first.array, first.record.affine
    others = [index.read(record.volume).array for record in group.records[1:]]
    return np.stack([first.array, *others]), first.record.affine


def image_of(
    index: Index, record: VolumeRecord, preparation: Preparation, frames: Sequence[int] | None = None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(A, X, Y, 1) values and affine of a 2D image: its colours, or its `frames`, as `preparation` turns and greys them."""
    array = index.read(record.volume, frames).array.reshape(-1, record.colours, *record.shape[:3])
    if preparation.grey and record.colours > 1:
        array = np.stack([as_grey(frame) for frame in array])[:, None]
    if preparation.invert_monochrome1 and record.inverted:
        array = np.stack([turned_round(frame) for frame in array])
    return array.reshape(-1, *record.shape[:3]), record.affine
