"""Several slices at one place: what tells them apart, so that each part holds every place at most once.

Header values come first, one or two of them; then InstanceNumber, where it runs strictly in order; then whatever leaves fewest
slices over. What cannot be told apart is named slice by slice.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from medssl.archive.instance import UNNUMBERED, WHOLE, Instance

Value = Callable[[Instance], Hashable]

_VALUES: tuple[tuple[str, Value], ...] = (
    ("stack", lambda one: one.stack),
    ("image type", lambda one: one.image_type),
    ("temporal position", lambda one: one.temporal),
    ("acquisition number", lambda one: one.acquisition),
    ("trigger time", lambda one: one.trigger),
    ("b-value", lambda one: one.diffusion),
    ("inversion time", lambda one: one.inversion),
    ("flip angle", lambda one: one.flip),
    ("kernel", lambda one: one.reconstruction),
    ("dimension index", lambda one: one.dimensions),
    ("object", lambda one: "" if one.frame == WHOLE else one.uid),
    ("acquisition time", lambda one: one.acquired),
)
"""What may tell slices at one place apart, tried in this order."""
_CLOCKS = frozenset({"trigger time", "acquisition time"})
"""Values that may tick from slice to slice: then they part a volume into pieces, and not one volume from another."""
_OF_A_VOLUME = ("stack", "image type", "temporal position", "b-value", "inversion time", "flip angle", "kernel", "dimension index")
"""Values that the slices of one volume share where slices have them at all."""
_DENSE = 0.75
"""Share of the places from its first to its last that a part by a clock must have."""
_TELLING = 1000
"""Orders among which the one found must be, to be no chance where slices are missing."""
BY_NUMBER = "instance number"
_NUMBERED = "repetitions are told apart by InstanceNumber alone, which runs in order through all of them"
_FEWEST = "some places occur several times and nothing tells their slices apart; those slices are left out"


@dataclass(frozen=True)
class Parting:
    """Slices told apart: in each part every place at most once, sorted as they came."""

    parts: tuple[tuple[Instance, ...], ...]
    by: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    beyond: tuple[Instance, ...] = ()
    """What nothing tells apart."""


Indices = list[int]
Worth = tuple[int, int]
"""Slices that end in a volume, and the number of volumes, negative: more of the first is better, then fewer of the second."""
Placed = Callable[[list[Instance]], Worth]


def told_apart(group: Sequence[Instance], places: Sequence[int], placed: Placed) -> Parting:
    """Part slices that are sorted along the normal; `places` numbers the place of each, `placed` says what a part is worth."""

    def gain(parts: list[Indices]) -> Worth:
        worths = [placed([group[index] for index in part]) for part in parts if part]
        return sum(slices for slices, _ in worths), sum(volumes for _, volumes in worths)

    clean = [(names, parts) for names, parts in _by_headers(group, places) if not _repeated(parts, places)]
    if len(set(places)) == len(group):
        # Nothing repeats, but what lies between each other may still be two volumes: then the headers must do better than the places.
        clean.insert(0, ((), [list(range(len(group)))]))
        names, parts = max(clean, key=lambda found: gain(found[1]))
        return Parting(_instances(group, parts), names)
    complete = next(((names, parts) for names, parts in clean if _complete(parts, places)), None)
    names, parts = complete or max(clean, key=lambda found: gain(found[1]), default=((), []))
    placed_so = gain(parts)
    if placed_so[0] == len(group):
        return Parting(_instances(group, parts), names)
    numbered = _by_number(group, places)
    if numbered and all(_alike([group[index] for index in part]) for part in numbered) and gain(numbered) > placed_so:
        return Parting(_instances(group, numbered), (BY_NUMBER,), (_NUMBERED,))
    return Parting(_instances(group, parts), names) if placed_so[0] else _fewest_left(group, places, gain)


def _instances(group: Sequence[Instance], parts: Sequence[Indices]) -> tuple[tuple[Instance, ...], ...]:
    return tuple(tuple(group[index] for index in part) for part in parts)


def _by_headers(group: Sequence[Instance], places: Sequence[int]) -> Iterator[tuple[tuple[str, ...], list[Indices]]]:
    """The group parted by each value that differs, then by each pair of them."""
    differ = [(name, value) for name, value in _VALUES if len({value(one) for one in group}) > 1]
    for count in (1, 2):
        for chosen in combinations(differ, count):
            parts = _parted(group, [value for _, value in chosen])
            clocks = any(name in _CLOCKS for name, _ in chosen)
            if not clocks or all(_dense(part, places) for part in parts):
                yield tuple(name for name, _ in chosen), parts


def _parted(group: Sequence[Instance], values: Sequence[Value]) -> list[Indices]:
    parts: dict[Hashable, Indices] = defaultdict(list)
    for index, one in enumerate(group):
        parts[tuple(value(one) for value in values)].append(index)
    return [part for _, part in sorted(parts.items(), key=lambda item: repr(item[0]))]


def _dense(part: Indices, places: Sequence[int]) -> bool:
    within = len({places[index] for index in part})
    return within > _DENSE * (places[part[-1]] - places[part[0]] + 1)


def _repeated(parts: Sequence[Indices], places: Sequence[int]) -> bool:
    return any(len({places[index] for index in part}) < len(part) for part in parts)


def _complete(parts: Sequence[Indices], places: Sequence[int]) -> bool:
    every = len(set(places))
    return all(len(part) == every for part in parts)


def _alike(part: Sequence[Instance]) -> bool:
    """Do slices that are taken for one volume agree in what volumes have?"""
    return all(len({value(one) for one in part}) == 1 for name, value in _VALUES if name in _OF_A_VOLUME)


def _by_number(group: Sequence[Instance], places: Sequence[int]) -> list[Indices] | None:
    """The repetitions by rank of InstanceNumber, where the numbers are distinct and run through (repetition, place) in order."""
    numbers = [one.number for one in group]
    if UNNUMBERED in numbers or len(set(numbers)) < len(numbers):
        return None
    order = sorted(range(len(group)), key=lambda index: numbers[index])
    last = max(places)
    upwards = [places[index] for index in order]
    for walk in (upwards, [last - place for place in upwards]):
        found = _in_turn(walk, last + 1) or _on_lattice(walk, [numbers[index] for index in order], last + 1)
        if found:
            parts: dict[int, Indices] = defaultdict(list)
            for repetition, index in zip(found, order, strict=True):
                parts[repetition].append(index)
            return [sorted(parts[repetition]) for repetition in sorted(parts)]
    return None


def _in_turn(walk: Sequence[int], depth: int) -> list[int] | None:
    """The repetition of each, for places in the order of numbers: whole repetition after repetition, the last of which may break off,
    or whole place after place."""
    if all(place == index % depth for index, place in enumerate(walk)):
        return [index // depth for index in range(len(walk))]
    times, rest = divmod(len(walk), depth)
    if rest == 0 and all(place == index // times for index, place in enumerate(walk)):
        return [index % times for index in range(len(walk))]
    return None


def _on_lattice(walk: Sequence[int], numbers: Sequence[int], depth: int) -> list[int] | None:
    """The same where slices are missing: the numbers then leave them out, so that each still says repetition and place."""
    counts = Counter(walk)
    if len(numbers) < 2 or _arrangements(counts) < _TELLING:
        return None
    first = numbers[0] - walk[0]
    if all((number - place - first) % depth == 0 for number, place in zip(numbers, walk, strict=True)):
        return [(number - place - first) // depth for number, place in zip(numbers, walk, strict=True)]
    times = max(counts.values())
    for base in range(numbers[0] - walk[0] * times - times + 1, numbers[0] - walk[0] * times + 1):
        ranks = [number - base - place * times for number, place in zip(numbers, walk, strict=True)]
        if all(0 <= rank < times for rank in ranks):
            return ranks
    return None


def _arrangements(counts: Counter[int]) -> float:
    """In how many orders the numbers could run through these places."""
    return math.exp(min(math.lgamma(counts.total() + 1) - sum(math.lgamma(count + 1) for count in counts.values()), 700.0))


def _fewest_left(group: Sequence[Instance], places: Sequence[int], gain: Callable[[list[Indices]], Worth]) -> Parting:
    """No parting is clean: the one by which most slices are placed when those at repeated places are set aside; none at best."""
    choices: list[tuple[tuple[str, ...], list[Indices]]] = [((), [list(range(len(group)))])]
    choices += [choice for choice in _by_headers(group, places) if len(choice[0]) == 1]
    kept = [(names, [_single(part, places) for part in parts]) for names, parts in choices]
    names, parts = max(kept, key=lambda choice: gain(choice[1]))
    used = {index for part in parts for index in part}
    beyond = tuple(one for index, one in enumerate(group) if index not in used)
    return Parting(_instances(group, [part for part in parts if part]), names, (_FEWEST,), beyond)


def _single(part: Indices, places: Sequence[int]) -> Indices:
    """Those of a part whose place occurs once in it."""
    counts = Counter(places[index] for index in part)
    return [index for index in part if counts[places[index]] == 1]
