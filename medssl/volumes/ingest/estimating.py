"""What a store will cost before it is made: a few volumes are made in memory, and the others are taken to be like them."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from medssl.volumes.ingest.writing import Incoming, attempted, pending
from medssl.volumes.store.frames import Codec
from medssl.volumes.store.manifest import Manifest

MEASURED = 3
"""Volumes of each modality that are made in memory."""


@dataclass(frozen=True)
class StoreEstimate:
    """What an ingest would do."""

    volumes: int
    """Volumes of these sources that would be in the store."""
    there: int
    """Those of them that are there already."""
    bytes: int
    """On disk, of those that are not there."""
    seconds: float
    """Likewise, where nothing else keeps the processor busy."""
    measured: int
    """Volumes that were made to know it."""
    left_out: dict[str, str]
    """Of the measured ones: volume -> why it cannot be stored."""
    not_chosen: dict[str, str] = field(default_factory=dict)
    """Volume -> why it is not chosen."""
    unread: dict[str, int] = field(default_factory=dict)
    """Reason -> files that were indexed on the way and are in no volume."""

    def document(self) -> dict[str, Any]:
        """The JSON of `medssl store --dry-run`."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class _Cost:
    """Of one volume, or of several."""

    voxels: int = 0
    """Read and stored."""
    stored: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: _Cost) -> _Cost:
        return _Cost(self.voxels + other.voxels, self.stored + other.stored, self.bytes + other.bytes, self.seconds + other.seconds)


def estimated(
    incoming: Sequence[Incoming], out: str | Path, manifest: Manifest, *, codec: Codec = "lz4hc", workers: int = 2
) -> StoreEstimate:
    """What `fill_store` would do with the same arguments; `out` is only read."""
    todo = pending(incoming, Path(out))
    kinds: dict[str, list[Incoming]] = defaultdict(list)
    for item in todo:
        kinds[item.modality].append(item)
    costs: dict[str, _Cost] = {}
    left_out: dict[str, str] = {}
    measured = 0
    for modality, items in kinds.items():
        costs[modality] = _Cost()
        for item in _evenly(items):
            measured += 1
            cost = _measured(item, manifest, codec)
            if isinstance(cost, str):
                left_out[item.volume] = cost
            else:
                costs[modality] += cost
    every = sum(costs.values(), start=_Cost())
    found = [_expected(item, manifest, costs[item.modality] if costs[item.modality].bytes else every) for item in todo]
    found = [cost for item, cost in zip(todo, found, strict=True) if item.volume not in left_out]
    seconds = sum(cost.seconds for cost in found) / max(1, min(workers, os.cpu_count() or 1))
    return StoreEstimate(
        len(incoming) - len(left_out), len(incoming) - len(todo), sum(cost.bytes for cost in found), round(seconds, 3), measured, left_out
    )


def _evenly(items: Sequence[Incoming]) -> list[Incoming]:
    """A few of them, from the smallest to the largest."""
    ordered = sorted(items, key=lambda item: (prod(item.shape), item.volume))
    return [ordered[place] for place in sorted({round(step * (len(items) - 1) / (MEASURED - 1)) for step in range(MEASURED)})]


def _voxels(item: Incoming, manifest: Manifest) -> tuple[int, int]:
    """Read and stored."""
    read = prod(item.shape)
    if manifest.spacing is None or not item.spacing:
        return read, read
    sides = np.array(item.shape[-len(item.spacing) :]) * item.spacing / np.array(manifest.spacing[: len(item.spacing)])
    return read, item.shape[0] * int(prod(sides.round().clip(1)))


def _measured(item: Incoming, manifest: Manifest, codec: Codec) -> _Cost | str:
    """What a volume costs, or the reason why it cannot be stored."""
    start = time.perf_counter()
    _, files, reason = attempted(item, Path(), manifest, codec)
    if reason is not None:
        return reason
    read, stored = _voxels(item, manifest)
    return _Cost(read + stored, stored, sum(map(len, files.values())), time.perf_counter() - start)


def _expected(item: Incoming, manifest: Manifest, like: _Cost) -> _Cost:
    read, stored = _voxels(item, manifest)
    share, more = stored / max(1, like.stored), (read + stored) / max(1, like.voxels)
    return _Cost(read + stored, stored, round(like.bytes * share), like.seconds * more)
