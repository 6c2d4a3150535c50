"""What a volume and a patient are called, and in which order volumes come, by their data alone.

Pseudonyms are made with a key, so that the same archive has others in every index: they may not enter what is drawn. The content of
a volume, its voxels and grid as they are stored, is the same wherever the same data were stored in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from xxhash import xxh3_128

from medssl.volumes.distribution import slabs
from medssl.volumes.preparation import Channel

_DIGITS = 32
_LARGEST = 2**63 - 1


def content_of(values: NDArray[Any], affine: NDArray[Any], channels: Sequence[Channel], labels: NDArray[Any] | None = None) -> str:
    """32 hexadecimal digits of (A, *spatial) values, their affine to a thousandth of a mm, their channels and, where labelled, classes."""
    digest = xxh3_128(repr([astuple(channel) for channel in channels]).encode())
    grid = np.rint(np.asarray(affine, np.float64) * 1000).astype(np.int64)
    for array in (values, grid, *(() if labels is None else (labels,))):
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        for slab in slabs(array):
            digest.update(np.ascontiguousarray(slab).data)
    return str(digest.hexdigest())


@dataclass(frozen=True)
class Numbers:
    """The order of a store's volumes, and what they and their patients are called."""

    order: NDArray[np.int64]
    """(N,) rows in the order of their contents."""
    samples: NDArray[np.int64]
    """(N,) one number a volume, in that order."""
    patients: NDArray[np.int64]
    """(N,) one number a patient, in that order: of the smallest content among the patient's volumes."""


def numbered(contents: pa.ChunkedArray, patients: pa.ChunkedArray) -> Numbers:
    """The numbers of rows with these contents and pseudonyms of patients; the rows come in the order of their volumes' pseudonyms.

    Equal contents come in the order of everything else that their patients have; what is alike in that too may change places without
    a difference. Raises `ValueError` for a content that is none.
    """
    if pc.any(pc.not_equal(pc.binary_length(contents), _DIGITS)).as_py():
        raise ValueError(f"a content has not {_DIGITS} digits")
    digits = "".join(contents.to_pylist())
    words = np.frombuffer(bytes.fromhex(digits), ">u8").reshape(len(contents), 2)
    _, rank = np.unique(np.frombuffer(digits.encode(), f"S{_DIGITS}"), return_inverse=True)
    whose = patients.combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.full(1 + whose.max(), len(contents))
    np.minimum.at(first, whose, rank)
    turn = _turns(first, rank, whose)
    order = np.lexsort((turn[whose], first[whose], rank))
    smallest = np.empty(len(contents), np.int64)
    smallest[rank] = np.arange(len(contents))
    among_equals = _among_equals(rank[order])
    samples = _numbers(words[order, 0], among_equals)
    of_people = _numbers(words[smallest[first], 1], turn)
    return Numbers(order, samples, of_people[whose][order])


def _turns(first: NDArray[np.int64], rank: NDArray[np.int64], whose: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each patient among those that share their smallest content."""
    turn = np.zeros(len(first), np.int64)
    shared = np.flatnonzero(np.bincount(first) > 1)
    if not len(shared):
        return turn
    everything: dict[int, list[int]] = {one: [] for one in np.flatnonzero(np.isin(first, shared)).tolist()}
    for one, place in sorted(zip(whose.tolist(), rank.tolist(), strict=True)):
        if one in everything:
            everything[one].append(place)
    alike = np.array(sorted(everything, key=lambda one: everything[one]))
    turn[alike] = _among_equals(first[alike])
    return turn


def _among_equals(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, 2 and so on within each run of equal ranks."""
    places = np.arange(len(ranks))
    begins = np.concatenate([[True], np.diff(ranks) != 0])
    return places - np.maximum.accumulate(np.where(begins, places, 0))


def _numbers(words: NDArray[np.uint64], turn: NDArray[np.int64]) -> NDArray[np.int64]:
    """Non-negative int64 of 64 digits of a content and of a place among equal ones."""
    halved: NDArray[np.int64] = (words.astype(np.uint64) >> np.uint64(1)).astype(np.int64)
    return (halved ^ turn) & _LARGEST
