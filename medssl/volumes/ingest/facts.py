"""What the table says of a volume's voxels: statistics, the box of the foreground, and points to place crops around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.volumes.preparation import Channel, statistics
from medssl.volumes.store.rows import body_of

POINTS = 128
"""Foreground points kept a volume: where crops may be placed without scanning it."""
CLASS_POINTS = 512
"""Labelled voxels kept a class and volume, to place crops around."""


def facts_of(content: str, channels: Sequence[Channel], values: NDArray[Any], affine: NDArray[Any]) -> dict[str, Any]:
    """Columns of a volume: (A, *shape) `values` as they are stored, the (4, 4) affine to RAS+ mm; `content` seeds the points."""
    of_arrays = {number: statistics(values[number]) for number in {channel.array for channel in channels}}
    numbers = [of_arrays[channel.array] for channel in channels]
    body = body_of(values, channels, numbers)
    box = _box_of(body)
    return {
        "channels": [channel.name for channel in channels],
        "modalities": [channel.modality for channel in channels],
        "arrays": [channel.array for channel in channels],
        "shape": list(values.shape[1:]),
        "affine": np.asarray(affine, float).reshape(-1).tolist(),
        "statistics": [number for one in numbers for number in astuple(one)],
        "box": [*box[0], *box[1]],
        "points": _packed(_sampled(body, POINTS, _seed(content))),
    }


def label_facts_of(content: str, labels: NDArray[Any], classes: Sequence[int]) -> dict[str, Any]:
    """Columns of its `labels` (*shape), as they are stored, with the `classes` that they had before."""

    def points(value: int) -> bytes:
        return _packed(_sampled(labels == value, CLASS_POINTS, _seed(f"{content}/{value}"))) if value > 0 else b""

    return {"classes": list(classes), "class_points": [points(value) for value in classes]}


def _seed(name: str) -> int:
    """A non-negative int64 that is the same on every machine and in every run."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def _packed(points: NDArray[np.int64]) -> bytes:
    return points.astype("<u2").tobytes()


def _box_of(body: NDArray[np.bool_]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First corner and one past the last of the true voxels, of which there is at least one."""
    first, last = [], []
    for axis in range(body.ndim):
        hit = np.flatnonzero(body.any(axis=tuple(other for other in range(body.ndim) if other != axis)))
        first.append(int(hit[0]))
        last.append(int(hit[-1]) + 1)
    return tuple(first), tuple(last)


def _sampled(body: NDArray[np.bool_], count: int, seed: int) -> NDArray[np.int64]:
    """(up to `count`, D) true voxels, evenly drawn by `seed`."""
    stream = np.random.Generator(np.random.Philox(seed))
    tried = np.unique(stream.integers(0, body.size, 64 * count))
    hits = tried[body[np.unravel_index(tried, body.shape)]]
    if len(hits) < count:
        hits = np.flatnonzero(body)
    chosen = stream.permutation(hits)[:count]
    return np.stack(np.unravel_index(chosen, body.shape), axis=1)
