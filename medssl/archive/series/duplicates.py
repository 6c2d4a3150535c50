"""Files that say they are the same instance: kept once where they are, quarantined where they are not."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields, replace
from hashlib import blake2b
from typing import Protocol

import numpy as np

from medssl.archive.instance import Instance
from medssl.archive.outcomes import Reason
from medssl.archive.pixels.images import image_values
from medssl.archive.pixels.values import PixelProblem, rescaled, slice_values
from medssl.source import ArchiveSource

_NAMING = frozenset({"source", "key", "size", "version", "reason", "warnings"})
_WRITING = frozenset({"accession", "decimals", "location", "number", "taken"})
_ENCODING = frozenset({"syntax", "pixels_at", "frame_at", "frame_length", "bits_allocated", "bits_stored", "high_bit", "padding"})
"""Fields that may differ between two files, between two ways of writing, and between two encodings of one image."""
_CONTENT = [field.name for field in fields(Instance) if field.name not in _NAMING | _WRITING | _ENCODING]


class Numbered(Protocol):
    """Sources by their numbers."""

    def __getitem__(self, number: int, /) -> ArchiveSource:
        """The source of that number."""


def mark_duplicates(instances: Sequence[Instance], sources: Numbered) -> list[Instance]:
    """The same instances in the same order, with `DUPLICATE` on all but the first of equal ones and `CONFLICT` on all of unequal ones.

    Equal means: the same bytes, or the same header (of what matters here) and the same decoded values.
    """
    by_uid: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for index, one in enumerate(instances):
        if not one.reason:
            by_uid[one.kind, one.uid, one.frame].append(index)
    result = list(instances)
    digests: dict[tuple[int, bytes], bytes] = {}
    for indices in by_uid.values():
        if len(indices) > 1:
            same = _all_equal([instances[index] for index in indices], sources, digests)
            for place, index in enumerate(indices):
                if not same or place:
                    reason = Reason.DUPLICATE if same else Reason.CONFLICT
                    result[index] = replace(instances[index], reason=reason.value)
    return result


def _all_equal(group: Sequence[Instance], sources: Numbered, digests: dict[tuple[int, bytes], bytes]) -> bool:
    """`digests` keeps those of files: one may hold many slices."""
    if group[0].kind != "dicom":
        # Called by what they hold.
        return True
    if len({one.size for one in group}) == 1:
        for one in group:
            if (one.source, one.key) not in digests:
                digests[one.source, one.key] = _file_digest(one, sources)
        if len({digests[one.source, one.key] for one in group}) == 1:
            return True
    if len({tuple(getattr(one, name) for name in _CONTENT) for one in group}) > 1:
        return False
    found = {_value_digest(one, sources) for one in group}
    return len(found) == 1 and None not in found


def _file_digest(one: Instance, sources: Numbered) -> bytes:
    digest = blake2b(digest_size=20)
    try:
        with sources[one.source].open(os.fsdecode(one.key)) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        # It cannot be compared, so it equals nothing.
        return one.key
    return digest.digest()


def _value_digest(one: Instance, sources: Numbered) -> bytes | None:
    try:
        source = sources[one.source]
        values = image_values(source, one) if one.is_image else rescaled(slice_values(source, one), one)
        return blake2b(values.astype(np.float64).tobytes(), digest_size=20).digest()
    except (OSError, PixelProblem):
        return None
