"""What a store can be made from: an index, a folder of DICOM, a folder of NIfTI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medssl.archive import executors
from medssl.config import BaseOptions, check
from medssl.errors import ArchiveError, UsageError
from medssl.faults import faults_as
from medssl.files import as_paths, holds_file, make_folder, open_regular, take_folder, write_atomically
from medssl.volumes.grid import as_spacing
from medssl.volumes.ingest.channels import ChannelOptions, Group, grouped, known_modality
from medssl.volumes.ingest.choice import EVERYTHING, OTHERS, PREVIEW, ChoiceOptions, candidates_of, choose, modalities_of, nothing_left
from medssl.volumes.ingest.estimating import StoreEstimate, estimated
from medssl.volumes.ingest.whose import regrouped
from medssl.volumes.ingest.writing import Incoming, Progress, StoreSummary, Unusable, fill_store, one_thread
from medssl.volumes.preparation import Preparation, as_grey, turned_round, usual_preparation, with_windows
from medssl.volumes.store.frames import Codec
from medssl.volumes.store.manifest import MANIFEST, Manifest, read_manifest

if TYPE_CHECKING:
    from medssl.archive import Index, VolumeRecord


class StoreOptions(BaseOptions):
    """What `medssl store --config` reads."""

    where: str | None = None
    """SQL condition over the volume table of the index."""
    spacing: float | tuple[float, float, float] | None = None
    """Resample to this spacing in mm; null: each volume keeps its own grid."""
    modality: str | tuple[str, ...] | None = None
    """Modalities that are taken, such as CT or [CT, MR]; NIfTI files and pictures that do not say theirs count as the one that is named."""
    choice: ChoiceOptions = ChoiceOptions()
    """Which volumes are taken of them."""
    dimensions: Literal[2, 3] | None = None
    """3: volumes; 2: 2D images by themselves, such as radiographs and photographs; null: volumes where there are any, else images."""
    grey: bool = False
    """2D images in colour become grey."""
    invert_monochrome1: bool = False
    """2D images of which low values are meant to be bright (MONOCHROME1) are turned round."""
    patient: str | None = None
    """Regular expression whose group is the patient in the names of NIfTI files and pictures, folders included, such as `(p[0-9]+)_`;
    null: BIDS and nnU-Net names, else each file is a patient's of its own."""
    patients: str | None = None
    """CSV file with the columns case (a file's name without ending) and patient, in place of `patient`."""
    channels: ChannelOptions = ChannelOptions()
    """What becomes the channels of one volume."""
    preparation: Preparation | None = None
    """How values become what a network sees; null: CT by a window, radiographs by percentiles, colours by their
    range, others by z-score."""


def make_store(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    where: str | None = None,
    spacing: float | Sequence[float] | None = None,
    modality: str | Sequence[str] | None = None,
    choice: ChoiceOptions | Mapping[str, Any] | None = None,
    preparation: Preparation | None = None,
    channels: ChannelOptions | Mapping[str, Any] | None = None,
    dimensions: Literal[2, 3] | None = None,
    grey: bool = False,
    invert_monochrome1: bool = False,
    patient: str | None = None,
    patients: str | Path | None = None,
    codec: Codec = "lz4hc",
    workers: int = 2,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> StoreSummary:
    """Make or complete the store `out` from index folders and folders of DICOM or NIfTI.

    `where` is SQL over the index's volume table; `spacing` is in mm (none: native); `modality` names those that are taken (none: all),
    and that of NIfTI files and pictures that do not say theirs, which decides how they are prepared; `choice` says which volumes are
    taken (`ChoiceOptions()` as the command does, none: all); `channels` says what becomes the channels of one volume. Folders that are
    no index are indexed first, beside the store in `OUT.index`: that folder holds real paths and stays private, the store holds
    pseudonyms only.

    A store holds volumes or 2D images: `dimensions` says which; without it what the store holds already, else volumes where there are any.
    `grey` and `invert_monochrome1` are of 2D images, and become part of the preparation. `patient`, a regular expression, or `patients`, a
    CSV file, says whose NIfTI files and pictures are.

    `workers` are processes of this machine; `executor` does the work instead of them, where sources and store lie under the same paths,
    and stays open.
    """
    given = {
        "where": where,
        "spacing": as_spacing(spacing),
        "modality": modality if modality is None or isinstance(modality, str) else tuple(modality),
        "choice": EVERYTHING if choice is None else _plain(choice),
        "preparation": preparation,
        "channels": _plain(channels or {}),
        "dimensions": dimensions,
        "grey": grey,
        "invert_monochrome1": invert_monochrome1,
        "patient": patient,
        "patients": patients,
    }
    options = check(StoreOptions, given, "store")
    return store_as(sources, out, options, codec=codec, workers=workers, progress=progress, executor=executor)


def _plain(given: BaseOptions | Mapping[str, Any]) -> BaseOptions | dict[str, Any]:
    return given if isinstance(given, BaseOptions) else dict(given)


def store_as(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    options: StoreOptions,
    *,
    codec: Codec = "lz4hc",
    workers: int = 2,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> StoreSummary:
    """As `make_store`, with what is asked as one record: that of `medssl store --config`."""
    sources = as_paths(sources)
    indexes, unread = _indexes(sources, _beside(out), workers, executor)
    selected = _selected(indexes, Path(out), options)
    _refuse_nothing(selected, sources, options.where, unread)
    among = executors.given(executor) if executor else executors.local(min(workers, len(selected.incoming)), one_thread)
    done = fill_store(selected.incoming, Path(out), selected.manifest, among, codec=codec, progress=progress)
    return replace(done, unread=unread, not_chosen=selected.not_chosen)


def estimate_store(
    sources: str | Path | Sequence[str | Path], out: str | Path, options: StoreOptions, *, codec: Codec = "lz4hc", workers: int = 2
) -> StoreEstimate:
    """What `store_as` with the same arguments would make: measured on a few volumes, and nothing is written.

    Folders that are no index are indexed first, in a private folder that is gone when this returns.
    """
    sources = as_paths(sources)
    with TemporaryDirectory(prefix="medssl-") as folder:
        own = Path(folder) / "index"
        _give_names(_beside(out), own)
        indexes, unread = _indexes(sources, own, workers)
        selected = _selected(indexes, Path(out), options)
        _refuse_nothing(selected, sources, options.where, unread)
        found = estimated(selected.incoming, out, selected.manifest, codec=codec, workers=workers)
    return replace(found, unread=unread, not_chosen=selected.not_chosen)


@dataclass(frozen=True)
class _Selected:
    incoming: list[Incoming]
    not_chosen: dict[str, str]
    manifest: Manifest


def _selected(indexes: Sequence[Index], out: Path, options: StoreOptions) -> _Selected:
    from medssl.archive import without_previews

    modalities, choice = modalities_of(options.modality), options.choice
    named = modalities[0] if len(modalities) == 1 else None
    if options.channels.series or options.channels.frames:
        # These say themselves which volumes of a study or series belong together.
        choice = choice.model_copy(update={"reconstructions": "all"})
    listed = [index.volumes(options.where) for index in indexes]
    without = [without_previews(records) for records in listed]
    manifest = _manifest(options, options.dimensions or _dimensions(out, [record for scans in without for record in scans]))
    dimensions, preparation = manifest.dimensions, manifest.preparation
    incoming: dict[str, Incoming] = {}
    not_chosen: dict[str, str] = {}
    for index, records, scans in zip(indexes, listed, without, strict=True):
        index.check_readable()
        not_chosen |= {record.volume: PREVIEW for record in records if record.kind == "picture" and len(scans) < len(records)}
        not_chosen |= {record.volume: OTHERS[dimensions] for record in scans if record.dimensions != dimensions}
        alike = regrouped(index, [one for one in scans if one.dimensions == dimensions], options.patient, options.patients)
        chosen = choose(candidates_of(index, alike, named), choice, modalities)
        for group in grouped(index, chosen.chosen, options.channels, named, preparation.grey):
            item = _incoming(index, group, options.channels, named, preparation)
            incoming[item.volume] = item
        not_chosen |= chosen.left_out
    if dimensions == 2:
        _refuse_mixed(list(incoming.values()))
    left = {volume: reason for volume, reason in not_chosen.items() if volume not in incoming}
    return _Selected(list(incoming.values()), left, manifest)


def _manifest(options: StoreOptions, dimensions: Literal[2, 3]) -> Manifest:
    """As the store will say it."""
    also = {name: True for name in ("grey", "invert_monochrome1") if getattr(options, name)}
    preparation = (options.preparation or usual_preparation(dimensions)).model_copy(update=also)
    return Manifest(
        spacing=as_spacing(options.spacing),
        preparation=with_windows(preparation, options.channels.windows),
        axis=options.channels.axis,
        dimensions=dimensions,
    )


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


def _refuse_nothing(selected: _Selected, sources: Sequence[str | Path], where: str | None, unread: Mapping[str, int]) -> None:
    if selected.incoming:
        return
    among = f"{', '.join(str(source) for source in sources)}{f' where {where}' if where else ''}"
    if selected.not_chosen:
        raise UsageError(f"of the {len(selected.not_chosen)} volumes in {among} none is chosen: {nothing_left(selected.not_chosen)}.")
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(unread.items()))
    raise ArchiveError(
        f"no volumes in {among}{f'; its files: {reasons}' if reasons else ''}. "
        "`medssl index` and `medssl volumes` show what is there and why files were left out."
    )


def _beside(out: str | Path) -> Path:
    """The index of sources that are none."""
    return Path(out).with_name(Path(out).name + ".index")


def _give_names(known: Path, fresh: Path) -> None:
    """An index that is made for the moment names its volumes as the one that is there."""
    from medssl.archive.index.folder import IndexFolder

    if is_index(known):
        take_folder(fresh)
        make_folder(IndexFolder(fresh).private)
        with faults_as(UsageError, f"{known} cannot be read"), open_regular(IndexFolder(known).key) as key:
            write_atomically(IndexFolder(fresh).key, key.read(4096))


def _indexes(
    sources: Sequence[str | Path], beside: Path, workers: int, executor: Executor | None = None
) -> tuple[list[Index], dict[str, int]]:
    """The opened indexes, and what the one that is made in `beside`, of the sources that are none, could not read."""
    from medssl.archive import Index, build_index

    if not sources:
        raise UsageError("no source given. Name an index folder, or a folder of DICOM or NIfTI files.")
    raw = [source for source in sources if not is_index(Path(source))]
    found = [Index(source) for source in sources if is_index(Path(source))]
    if not raw:
        return found, {}
    summary = build_index(raw, beside, workers=workers, executor=executor)
    return [*found, Index(beside)], summary.rejected


def is_index(folder: Path) -> bool:
    """Is this the folder of an index, rather than a folder of images?"""
    with faults_as(UsageError, f"{folder} cannot be read"):
        return holds_file(folder / "index.json") and (folder / "private").is_dir()


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
        partial(load_group, index, group, preparation),
        channels,
        fingerprint="" if plain else made_of,
        scaled=bool(first.spacing),
        shape=(max(1, len({channel.array for channel in channels})), *first.shape[: first.dimensions]),
        spacing=first.spacing,
    )


def load_group(index: Index, group: Group, preparation: Preparation) -> tuple[NDArray[Any], NDArray[Any]]:
    """(A, X, Y, Z) or (X, Y, Z) values and the affine to RAS+ mm; `Unusable` with the group's reason."""
    if group.reason is not None:
        raise Unusable(group.reason)
    if len(group.records) == 1 and group.records[0].is_image:
        return image_of(index, group.records[0], preparation, group.picked or None)
    first = index.clear_padding(index.read(group.records[0].volume))
    if group.picked:
        return first.array[list(group.picked)], first.record.affine
    if len(group.records) == 1:
        return first.array, first.record.affine
    others = [index.clear_padding(index.read(record.volume)).array for record in group.records[1:]]
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
