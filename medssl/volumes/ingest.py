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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medssl.errors import MedsslError, StoreError, UsageError
from medssl.volumes.frames import Codec, encode
from medssl.volumes.grid import as_spacing, resample, spacing_of, to_ras
from medssl.volumes.hostile import compact, fault
from medssl.volumes.preparation import Preparation, statistics, statistics_row
from medssl.volumes.store import (
    MANIFEST,
    SCHEMA,
    Manifest,
    read_manifest,
    read_table,
    row_from_json,
    row_to_json,
    stable_id,
    volume_path,
    write_atomically,
)

POINTS = 128
"""Foreground points kept a volume: where crops may be placed without scanning it."""

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
    """(X, Y, Z) values and (4, 4) affine to RAS+ mm, in any orientation."""


@dataclass(frozen=True)
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
        }


def write_store(
    incoming: Iterable[Incoming],
    out: str | Path,
    *,
    spacing: float | Sequence[float] | None = None,
    preparation: Preparation | None = None,
    codec: Codec = "lz4hc",
    workers: int = 2,
    progress: Progress | None = None,
) -> StoreSummary:
    """Fill the store `out` with `incoming`.

    Raises `UsageError` where `out` holds something else and `StoreError` where it cannot be written.
    """
    folder = Path(out)
    wanted = Manifest(spacing=as_spacing(spacing), preparation=preparation or Preparation())
    _open_folder(folder, wanted)
    table = read_table(folder)
    done = {name for name, reason in zip(table["volume"].to_pylist(), table["reason"].to_pylist(), strict=True) if reason is None}
    items = list(incoming)
    todo = [item for item in items if item.volume not in done or not volume_path(folder, item.volume).is_file()]
    left_out: dict[str, str] = {}
    for number, (volume, reason) in enumerate(_work(todo, folder, wanted, codec, workers), 1):
        if reason is not None:
            left_out[volume] = reason
        if progress is not None:
            progress(len(items) - len(todo) + number, len(items))
    _consolidate(folder)
    return StoreSummary(folder, len(items) - len(left_out), len(todo) - len(left_out), left_out)


def _open_folder(folder: Path, wanted: Manifest) -> None:
    if (folder / MANIFEST).is_file():
        found = read_manifest(folder)
        if found != wanted:
            raise UsageError(
                f"the store {folder} was made with spacing {_shown(found)} and is asked for {_shown(wanted)}"
                f"{'' if found.spacing != wanted.spacing else ', or with another preparation'}. Use the same, or another --out."
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is no store. Give an empty or new folder to --out.")
    try:
        for name in ("volumes", "rows", "table"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the store {folder} cannot be made: {error.strerror or error}. Choose another folder.") from error
    write_atomically(folder / MANIFEST, wanted.model_dump_json(indent=1).encode())


def _shown(manifest: Manifest) -> str:
    return "native" if manifest.spacing is None else f"{list(manifest.spacing)} mm"


def _work(todo: Sequence[Incoming], folder: Path, manifest: Manifest, codec: Codec, workers: int) -> Iterator[tuple[str, str | None]]:
    """(volume, reason) of each, in order, with no more than `workers` volumes in memory."""
    rest = iter(todo)
    with ThreadPoolExecutor(max(1, workers), "medssl-ingest") as pool:

        def start(item: Incoming) -> Future[tuple[str, str | None]]:
            return pool.submit(_store_one, item, folder, manifest, codec)

        running = [start(item) for item in islice(rest, max(1, workers))]
        try:
            while running:
                yield running.pop(0).result()
                running += [start(item) for item in islice(rest, 1)]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _store_one(item: Incoming, folder: Path, manifest: Manifest, codec: Codec) -> tuple[str, str | None]:
    try:
        array, affine = item.load()
        reason = fault(array, affine)
    except (MedsslError, OSError, ValueError, EOFError, MemoryError, zlib.error) as error:
        said = str(error) if isinstance(error, MedsslError) else f"{type(error).__name__}: {error}"
        reason = _without_paths(f"cannot be read: {said.partition('cannot be read: ')[2] or said}")
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row |= {
        "volume": item.volume,
        "patient": item.patient,
        "series": item.series,
        "modality": item.modality,
        "points": b"",
        "reason": reason,
    }
    if reason is None:
        array, affine = canonical_grid(array, affine, manifest.spacing)
        reason = row["reason"] = fault(array, affine)
    if reason is None:
        array = compact(array)
        content = encode(array[None], codec)
        write_atomically(volume_path(folder, item.volume), content)
        row |= _facts(item, array, affine) | {"bytes": len(content)}
    write_atomically(folder / "rows" / f"{item.volume}.json", row_to_json(row))
    return item.volume, reason


def _without_paths(text: str) -> str:
    """A path can hold a patient's name: no reason in a store shows one."""
    return re.sub(r"\S*[/\\]\S*", "FILE", text)[:300]


def canonical_grid(array: NDArray[Any], affine: NDArray[Any], spacing: Sequence[float] | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """(X, Y, Z) and its affine on RAS+ axes, resampled to `spacing` where given: the grid that stores and predictions share."""
    flips = to_ras(affine)
    turned, turned_affine = flips.apply(array), flips.affine(affine, array.shape)
    if spacing is None:
        return turned, turned_affine
    return resample(compact(turned), turned_affine, spacing)


def _facts(item: Incoming, array: NDArray[Any], affine: NDArray[Any]) -> dict[str, Any]:
    numbers = statistics(array)
    body = numbers.foreground(array)
    box = foreground_box(body)
    return {
        "channels": [item.modality or "image"],
        "shape": list(array.shape),
        "spacing": list(spacing_of(affine)),
        "affine": np.asarray(affine, float).reshape(-1).tolist(),
        "statistics": list(statistics_row(numbers)),
        "box": [*box[0], *box[1]],
        "points": sample_points(body, POINTS, stable_id(item.volume)).astype("<u2").tobytes(),
    }


def foreground_box(body: NDArray[np.bool_]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First corner and one past the last of the true voxels, of which there is at least one."""
    first, last = [], []
    for axis in range(body.ndim):
        hit = np.flatnonzero(body.any(axis=tuple(other for other in range(body.ndim) if other != axis)))
        first.append(int(hit[0]))
        last.append(int(hit[-1]) + 1)
    return tuple(first), tuple(last)


def sample_points(body: NDArray[np.bool_], count: int, seed: int) -> NDArray[np.int64]:
    """(up to `count`, D) true voxels, evenly drawn by `seed`."""
    stream = np.random.Generator(np.random.Philox(seed))
    flat = body.reshape(-1)
    tried = np.unique(stream.integers(0, flat.size, 64 * count))
    hits = tried[flat[tried]]
    if len(hits) < count:
        hits = np.flatnonzero(flat)
    chosen = stream.permutation(hits)[:count]
    return np.stack(np.unravel_index(chosen, body.shape), axis=1)


def _consolidate(folder: Path) -> None:
    """Loose rows into one Parquet file of the table; a row is deleted only after that file is in place."""
    loose = sorted((folder / "rows").glob("*.json"))
    if not loose:
        return
    rows = sorted((row_from_json(path.read_bytes()) for path in loose), key=lambda row: str(row["volume"]))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink)
    write_atomically(folder / "table" / f"part-{time.time_ns():020d}-{uuid4().hex[:8]}.parquet", sink.getvalue().to_pybytes())
    for path in loose:
        path.unlink(missing_ok=True)
