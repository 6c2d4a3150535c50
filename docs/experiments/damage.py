"""Bytes and documents that are no more what they were, by chance."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

Draw = np.random.Generator
Make = Callable[[Draw], bytes]
"""A content, damaged."""
Use = Callable[[Path, bytes], str]
"""What is done with a damaged content in an empty folder; says how it ended."""


def mutated(content: bytes, draw: Draw) -> bytes:
    """A few bytes changed, a stretch overwritten, zeroed, repeated or taken out, or the end cut off."""
    damaged = bytearray(content)
    for _ in range(draw.integers(1, 4)):
        at = int(draw.integers(0, len(damaged)))
        length = int(draw.choice([1, 1, 1, 4, 16, 300, 2000]))
        kind = draw.integers(0, 6)
        if kind == 0:
            damaged[at : at + length] = bytes(len(damaged[at : at + length]))
        elif kind == 1:
            damaged[at : at + length] = b"\xff" * len(damaged[at : at + length])
        elif kind == 2:
            damaged[at : at + length] = draw.bytes(len(damaged[at : at + length]))
        elif kind == 3:
            damaged[at : at + length] = damaged[at : at + length] * 2
        elif kind == 4 and len(damaged) > length + 1:
            del damaged[at : at + length]
        elif kind == 5 and at > 0:
            del damaged[at:]
    return bytes(damaged)


ODD: list[Any] = [None, True, -1, 0, 3, 2**31, 2**70, 1e300, 0.5, "", "x" * 1000, "../x", "/etc/passwd", "os.system", "\x1b[31m"]
ODD += [[], {}, [1], [[]], ["x"], {"a": 1}, {"": None}]
"""What stands where something else was."""


def misstated(document: Any, draw: Draw) -> Any:
    """The same mappings and lists with a few values replaced, taken out, renamed, or put where others were."""
    document = deepcopy(document)
    for _ in range(draw.integers(1, 4)):
        places = [(inner, key) for inner in _within(document) for key in (inner if isinstance(inner, dict) else range(len(inner)))]
        if not places:
            break
        inner, key = places[int(draw.integers(0, len(places)))]
        other, there = places[int(draw.integers(0, len(places)))]
        kind = draw.integers(0, 6)
        if kind <= 2:
            inner[key] = ODD[int(draw.integers(0, len(ODD)))]
        elif kind == 3:
            del inner[key]
        elif kind == 4 and isinstance(inner, dict):
            inner[f"{key}x"] = inner.pop(key)
        elif kind == 5:
            inner[key] = deepcopy(other[there])
    return document


def _within(value: Any) -> list[Any]:
    """All mappings and lists in it, itself too."""
    if not isinstance(value, dict | list):
        return []
    return [value, *(one for inner in (value.values() if isinstance(value, dict) else value) for one in _within(inner))]


def damaging(make: Make) -> Make:
    """The content with bytes that are not what they were."""
    return lambda draw: mutated(make(draw), draw)
