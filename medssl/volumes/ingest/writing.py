"""From an archive to a store: canonical axes, one spacing, statistics, foreground, compressed and checksummed.

Each volume becomes its file first and its row after that, both under a temporary name and renamed: an ingest that is killed
goes on where it was, skips what is there, and several processes may fill one store. A volume that cannot be used costs a
recorded reason and nothing else.
"""

from __future__ import annotations

import re
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medssl.archive import executors, narrow
from medssl.archive.executors import Workers
from medssl.archive.geometry import to_ras, voxel_spacing
from medssl.errors import DataError, MedsslError, StoreError, UsageError
from medssl.faults import faults_as
from medssl.files import LOCK, holds_file, is_plain_name, lock_folder, make_folder, others_in, take_folder, write_atomically
from medssl.volumes.grid import as_spacing, resample, resample_labels
from medssl.volumes.ingest.facts import facts_of, label_facts_of
from medssl.volumes.preparation import Channel, Preparation, usual_preparation
from medssl.volumes.store.frames import Codec, digest_of, encode
from medssl.volumes.store.identity import content_of
from medssl.volumes.store.manifest import MANIFEST, Manifest, read_manifest
from medssl.volumes.store.reading import labels_path, volume_path
from medssl.volumes.store.table import SCHEMA, loose_rows, read_table, row_to_json
from medssl.volumes.store.unfinished import FOLDER as UNFINISHED
from medssl.volumes.store.unfinished import announced, forget_finished
from medssl.volumes.unusable import why_unusable

FOLDERS = ("volumes", "labels", "rows", "table", UNFINISHED)
KILLED = "storing it killed the worker process"

_PATH = re.compile(r"(?<!\S)(?:[A-Za-z]:)?[/\\][^:\n]*(?=: )|(['\"])(?:[A-Za-z]:)?[/\\].*?\1")
"""A whole path, spaces and all, before the colon that ends it or in quotes."""
_WORD_OF_A_PATH = re.compile(r"\S*[/\\]\S*?(?=[:;,.]?(?:\s|$))")
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Incoming:
    """A volume on its way into a store."""

    volume: str
    """Pseudonym, safe as a file name."""
    patient: str
    series: str
    modality: str
    load: Callable[[], tuple[NDArray[Any], NDArray[Any]]]
    """(X, Y, Z) or (A, X, Y, Z) values and (4, 4) affine to RAS+ mm, in any orientation."""
    channels: tuple[Channel, ...] = ()
    """What a network sees of it; empty: each array, by the modality's rule."""
    labels: Callable[[], NDArray[Any]] | None = None
    """(X, Y, Z) classes on the grid of the values, uint8 or int16."""
    fingerprint: str = ""
    """Of the files it comes from: a volume that is in the store with another one is made again."""
    scaled: bool = True
    """Does the affine say millimetres? That of an image whose pixel spacing is unknown counts pixels."""
    shape: tuple[int, ...] = ()
    """Arrays and sides as far as they are known before loading; with `spacing` it tells what storing will cost."""
    spacing: tuple[float, ...] = ()
    """Millimetres along the sides."""


@dataclass(frozen=True, repr=False)
class StoreSummary:
    """What an ingest did."""

    folder: Path
    volumes: int
    """Volumes of these sources that are in the store now."""
    added: int
    """Those of them that were not there before."""
    left_out: dict[str, str]
    """Volume -> why it is not in the store."""
    unread: dict[str, int] = field(default_factory=dict)
    """Reason -> files that were indexed on the way and are in no volume."""
    not_chosen: dict[str, str] = field(default_factory=dict)
    """Volume -> why it is not chosen."""

    def __repr__(self) -> str:
        apart = f"{len(self.left_out)} left out, {len(self.not_chosen)} not chosen, {sum(self.unread.values())} files unread"
        return f"StoreSummary({str(self.folder)!r}, {self.volumes} volumes, {self.added} added, {apart})"

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how many volumes and files, without the numbers that differ from one to the next."""
        volumes = Counter(re.split(r"[:\d\[]", reason)[0].strip() or reason for reason in self.left_out.values())
        return dict(volumes + Counter(self.unread))

    def document(self) -> dict[str, Any]:
        """The JSON of `medssl store`."""
        return {
            "store": str(self.folder),
            "volumes": self.volumes,
            "added": self.added,
            "rejected": self.rejected,
            "left_out": self.left_out,
            "not_chosen": self.not_chosen,
        }


def write_store(
    incoming: Iterable[Incoming],
    out: str | Path,
    *,
    spacing: float | Sequence[float] | None = None,
    preparation: Preparation | None = None,
    axis: Literal["slice", "time"] | None = None,
    dimensions: Literal[2, 3] = 3,
    codec: Codec = "lz4hc",
    workers: int = 2,
    progress: Progress | None = None,
) -> StoreSummary:
    """Fill the store `out` with `incoming`; `axis` is what their channels count, when they are slices or frames; `dimensions` 2 of images,
    (X, Y, 1) each.

    Until the last of them is there the store is unfinished (`Store.check_finished`). Raises `UsageError` where `out` holds something
    else and `StoreError` where it cannot be written. `workers` are threads of this process.
    """
    preparation = preparation or usual_preparation(dimensions)
    manifest = Manifest(spacing=as_spacing(spacing), preparation=preparation, axis=axis, dimensions=dimensions)
    return fill_store(list(incoming), Path(out), manifest, executors.threads(max(1, workers)), codec=codec, progress=progress)


def fill_store(
    items: Sequence[Incoming],
    folder: Path,
    wanted: Manifest,
    workers: Workers,
    *,
    codec: Codec = "lz4hc",
    progress: Progress | None = None,
) -> StoreSummary:
    """As `write_store`, into the store that `wanted` describes; in processes and on a cluster `items` must be such as travel there."""
    _check_names(items)
    folder = folder.absolute()  # a worker may stand elsewhere
    with _opened(folder, wanted):
        done = _done(folder)
        todo = [item for item in items if not _is_there(item, folder, done)]
        left_out: dict[str, str] = {}
        with announced(folder, {item.volume: item.fingerprint for item in todo}):
            for number, (volume, reason) in enumerate(_work(todo, folder, wanted, codec, workers), 1):
                if reason is not None:
                    left_out[volume] = reason
                if progress is not None:
                    progress(len(items) - len(todo) + number, len(items))
            _consolidate(folder)
        forget_finished(folder)
    return StoreSummary(folder, len(items) - len(left_out), len(todo) - len(left_out), left_out)


def pending(incoming: Sequence[Incoming], out: Path) -> list[Incoming]:
    """Those that `write_store` would make; changes nothing."""
    _check_names(incoming)
    if not holds_file(out / MANIFEST):
        return list(incoming)
    done = _done(out)
    return [item for item in incoming if not _is_there(item, out, done)]


def _check_names(items: Sequence[Incoming]) -> None:
    bad = next((item.volume for item in items if not is_plain_name(item.volume)), None)
    if bad is not None:
        raise UsageError(f"a volume cannot be stored under the name {ascii(bad)[:80]}: letters, digits, dots, dashes and underscores only.")


def _done(folder: Path) -> dict[str, str]:
    """Volume -> fingerprint of those that are in the store."""
    table = read_table(folder).select(["volume", "reason", "fingerprint"]).to_pylist()
    return {row["volume"]: row["fingerprint"] or "" for row in table if row["reason"] is None}


def _is_there(item: Incoming, folder: Path, done: dict[str, str]) -> bool:
    files = [volume_path(folder, item.volume), *([labels_path(folder, item.volume)] if item.labels else [])]
    return done.get(item.volume) == item.fingerprint and all(path.is_file() for path in files)


@contextmanager
def _opened(folder: Path, wanted: Manifest) -> Iterator[None]:
    """The store's folder, made where it is missing, held beside other ingests of the same store."""
    with faults_as(StoreError, f"the store {folder} cannot be made"):
        known = _check_folder(folder, wanted)
        if not known:
            take_folder(folder)
        for name in FOLDERS:
            make_folder(folder / name)
        held = lock_folder(folder, alone=False, swept=("", *FOLDERS))
    try:
        if not known:
            _write(folder / MANIFEST, wanted.model_dump_json(indent=1).encode())
        yield
    finally:
        held.release()


def _check_folder(folder: Path, wanted: Manifest) -> bool:
    """Whether the folder is a store already, and the one that is wanted."""
    if holds_file(folder / MANIFEST):
        found = read_manifest(folder)
        if found.dimensions != wanted.dimensions:
            raise UsageError(
                f"the store {folder} holds {_KINDS[found.dimensions]} and is asked for {_KINDS[wanted.dimensions]}. "
                "Each needs a store of its own: give another folder."
            )
        if found != wanted:
            raise UsageError(
                f"the store {folder} was made with spacing {_shown(found)} and is asked for {_shown(wanted)}"
                f"{'' if found.spacing != wanted.spacing else ', or with another preparation or other channels'}. "
                "Use the same, or another folder."
            )
        return True
    # Another process may just be making the same store: what it has made so far is nobody else's.
    foreign = others_in(folder, lambda name: name in (*FOLDERS, LOCK, MANIFEST))
    if foreign or (folder.exists() and not folder.is_dir()):
        holds = f" ({', '.join(foreign[:3])})" if foreign else ""
        raise UsageError(f"{folder} exists and is no store{holds}. Give an empty or new folder.")
    return False


_KINDS = {3: "volumes", 2: "2D images"}


def _shown(manifest: Manifest) -> str:
    return "native" if manifest.spacing is None else f"{list(manifest.spacing)} mm"


def one_thread() -> None:
    """For a process beside others: torch takes every core otherwise, and waits for threads that a fork has left behind."""
    import torch

    torch.set_num_threads(1)


def _work(todo: Sequence[Incoming], folder: Path, manifest: Manifest, codec: Codec, workers: Workers) -> Iterator[tuple[str, str | None]]:
    """(volume, reason) of each, as they are done; as many are in memory as there are workers."""
    store = partial(_store_one, folder=folder, manifest=manifest, codec=codec)
    with closing(executors.mapped(store, todo, workers, partial(_store_alone, store, folder))) as done:
        yield from ((item.volume, reason) for item, reason in done)


def _store_one(item: Incoming, folder: Path, manifest: Manifest, codec: Codec) -> str | None:
    """Why it is not stored, or None."""
    found, files, reason = attempted(item, folder, manifest, codec)
    for path, content in files.items():
        _write(path, content)
    _write_row(item, folder, found | {"reason": reason})
    return reason


def _store_alone(store: Callable[[Incoming], str | None], folder: Path, item: Incoming) -> str | None:
    """One whose worker died, in a process of its own: it may have been the fault of another."""
    try:
        with executors.processes(1, one_thread) as executor:
            return executor.submit(store, item).result()
    except BrokenExecutor:
        reason = f"cannot be read: {KILLED}"
        _write_row(item, folder, {"reason": reason})
        return reason


def _write_row(item: Incoming, folder: Path, found: dict[str, Any]) -> None:
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row |= {name: getattr(item, name) for name in ("volume", "patient", "series", "modality", "fingerprint")} | {"points": b""} | found
    _write(folder / "rows" / f"{item.volume}.json", row_to_json(row))


def attempted(item: Incoming, folder: Path, manifest: Manifest, codec: Codec) -> tuple[dict[str, Any], dict[Path, bytes], str | None]:
    """What the row says of a volume and the content of its files, or the reason why it cannot be stored; writes nothing."""
    try:
        return *_made(item, folder, manifest, codec), None
    except (MedsslError, OSError, ValueError, EOFError, MemoryError, zlib.error) as error:
        return {}, {}, _reason(error)


def _made(item: Incoming, folder: Path, manifest: Manifest, codec: Codec) -> tuple[dict[str, Any], dict[Path, bytes]]:
    """What the row says of a volume, and the content of its files."""
    channels, values, affine, labels, classes = _load(item, manifest)
    if manifest.dimensions == 2:
        values, labels = values[..., 0], None if labels is None else labels[..., 0]
    content = content_of(values, affine, channels, labels)
    spacing = voxel_spacing(affine)[: manifest.dimensions] if item.scaled else ()
    row = {"content": content, "spacing": list(spacing), **facts_of(content, channels, values, affine)}
    file = encode(values, codec)
    files = {volume_path(folder, item.volume): file}
    row |= {"bytes": len(file), "dtype": values.dtype.str[1:], "digest": digest_of(file)}
    if labels is not None:
        file = files[labels_path(folder, item.volume)] = encode(labels[None], codec)
        row |= label_facts_of(content, labels, classes) | {"labels_digest": digest_of(file)}
    return row, files


class Unusable(DataError):
    """A volume that can be read and not be used."""


def _load(item: Incoming, manifest: Manifest) -> tuple[tuple[Channel, ...], NDArray[Any], NDArray[Any], NDArray[Any] | None, Sequence[int]]:
    """Channels, values, affine and labels as they are stored, and the classes of the label as it came: a small one may have no voxel
    on the store's grid. Raises `Unusable` and whatever loading raises."""
    values, affine = item.load()
    labels = item.labels() if item.labels is not None else None
    channels = item.channels or _plain_channels(item.modality, values)
    classes = [] if labels is None else np.unique(labels).tolist()
    flat = manifest.dimensions == 2
    if flat and values.shape[-1] != 1:
        _refuse(f"a volume in a store of 2D images: shape {list(values.shape[-3:])}")
    return channels, *placed(values, affine, manifest.spacing, channels, labels, flat=flat, scaled=item.scaled), classes


def _reason(error: Exception) -> str:
    """A path can hold a patient's name: no reason in a store shows one."""
    if isinstance(error.__cause__, MedsslError) and not isinstance(error, Unusable):
        error = error.__cause__  # what is wrong with a file, before its path was put in front
    said = str(error) if isinstance(error, MedsslError) else f"{type(error).__name__}: {error}"
    if not isinstance(error, Unusable):
        said = f"cannot be read: {said.partition('cannot be read: ')[2] or said}"
    return _WORD_OF_A_PATH.sub("FILE", _PATH.sub("FILE", said))[:300]


def _plain_channels(modality: str, values: NDArray[Any]) -> tuple[Channel, ...]:
    name, count = modality or "image", values.shape[0] if values.ndim == 4 else 1
    return tuple(Channel(name if count == 1 else f"{name} {number}", modality, number) for number in range(count))


def placed(
    values: NDArray[Any],
    affine: NDArray[Any],
    spacing: Sequence[float] | None,
    channels: Sequence[Channel],
    labels: NDArray[Any] | None = None,
    *,
    flat: bool = False,
    scaled: bool = True,
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[Any] | None]:
    """Values, affine and label on the grid that stores and predictions share: (A, X, Y, Z) on RAS+ axes, at `spacing` where given.

    `values` are (X, Y, Z) or (A, X, Y, Z) in any orientation; int16 or float32 comes back. `flat`: they may be a 2D image, one slice that
    stays the last axis. `scaled`: the affine is in mm. Raises `Unusable` with the reason.
    """
    names = {channel.array: channel.name for channel in reversed(channels)}
    _refuse(why_unusable(values, affine, names, flat))
    flat = flat and values.shape[-1] == 1
    values = values.reshape(-1, *values.shape[-3:])
    if len(values) != 1 + max(names):
        _refuse(f"it has {len(values)} channel(s), not {1 + max(names)} ({', '.join(channel.name for channel in channels)})")
    if labels is not None and labels.shape != values.shape[1:]:
        _refuse(f"its label has shape {list(labels.shape)} and the image {list(values.shape[1:])}")
    flips = to_ras(affine, flat)
    turned, turned_affine = flips.apply(values), flips.affine(affine, values.shape[1:])
    before = voxel_spacing(turned_affine)
    labels = None if labels is None else flips.apply(labels)
    if spacing is not None and flat:
        spacing = (*spacing[:2], before[2])
    if spacing is not None and not scaled:
        _refuse("its pixel spacing is unknown, so it cannot be resampled")
    if spacing is not None and not np.allclose(before, spacing, rtol=1e-4):
        turned, turned_affine = resample(narrow(turned), turned_affine, spacing)
        labels = None if labels is None else resample_labels(labels, before, spacing)
        _refuse(why_unusable(turned, turned_affine, names, flat))
    return narrow(turned), turned_affine, labels


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise Unusable(reason)


def _consolidate(folder: Path) -> None:
    """Loose rows into one Parquet file of the table; a row is deleted only after that file is in place."""
    loose = loose_rows(folder)
    if not loose:
        return
    rows = sorted(loose.values(), key=lambda row: str(row["volume"]))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink)
    _write(folder / "table" / f"part-{time.time_ns():020d}-{uuid4().hex[:8]}.parquet", sink.getvalue().to_pybytes())
    for path in loose:
        path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    """All of `content` under `path` or nothing; raises `StoreError`."""
    with faults_as(StoreError, f"{path} cannot be written", "What is stored already is good: run the same command again."):
        write_atomically(path, content)
