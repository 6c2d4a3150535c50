"""Which class each value and each named segment of the labels is: as `data.classes`, `data.label_values` or `dataset.json` says, else
each value is its class."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medssl.archive.labels.merging import BACKGROUND, IGNORE, Classes, matches
from medssl.volumes.crops import UNKNOWN
from medssl.volumes.ingest import Unusable

Given = Mapping[int, int | Literal["ignore"]]
Named = Mapping[str, int | str | Sequence[int | str]]
"""Class -> the values of its voxels, or the names of its segments."""
_MISSING = np.iinfo(np.int16).min


@dataclass(frozen=True)
class LabelValues:
    """Value in the label files -> class that is trained."""

    classes: Mapping[int, int] | None = None
    """Value -> class, `UNKNOWN` for voxels that are ignored; None: each value is its class."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Value -> what `dataset.json` calls it."""
    declared: frozenset[int] = frozenset()
    """Values that `dataset.json` says labels hold; empty where it says nothing."""
    said_by: str = "data.label_values"
    """What says it, for messages."""
    segments: Classes | None = None
    """Which named segments are which class, where the user says so."""

    def classes_in(self, array: NDArray[Any]) -> NDArray[Any]:
        """Values of a label file -> classes, uint8 or int16; what is ignored is -1. Raises `Unusable` for a value without a class."""
        if self.classes is None:
            return array
        out = np.full(array.shape, _MISSING, np.int16)
        for value, one in self.classes.items():
            out[array == value] = one
        unknown = np.unique(array[out == _MISSING])
        if unknown.size:
            shown = ", ".join(f"{value:.10g}" for value in unknown[:10])
            raise Unusable(f"holds the value {shown}, to which {self.said_by} gives no class. Name the value there, or correct the label.")
        return out if min(self.classes.values()) < 0 or max(self.classes.values()) > 255 else out.astype(np.uint8)

    def values_of(self, classes: NDArray[Any]) -> NDArray[Any]:
        """Classes -> values as label files have them; of several values that are one class the smallest, of none its own number."""
        if self.classes is None:
            return classes
        first = self._values()
        table = np.array([first.get(number, number) for number in range(1 + max(first))])
        kind = next(
            kind for kind in (np.uint8, np.int16, np.int32) if np.iinfo(kind).min <= table.min() and table.max() <= np.iinfo(kind).max
        )
        restored: NDArray[Any] = table.astype(kind)[classes]
        return restored

    @property
    def outputs(self) -> int | None:
        """How many outputs the named classes take, background included; None where each value is its class."""
        return None if self.classes is None else 1 + max(self._values())

    def _values(self) -> dict[int, int]:
        """Class -> its value."""
        first: dict[int, int] = {}
        for value in sorted(self.classes or {}, key=lambda value: (value < 0, value)):
            first.setdefault((self.classes or {})[value], value)
        for number in sorted(set(self.class_names()) - set(first)):
            # Of segments without a value: the class's own number, unless another class has that.
            first[number] = next(value for value in count(number) if value not in first.values())
        return first

    def named(self, value: int) -> str:
        """The value, with its name where it has one."""
        return f"{value} '{self.names[value]}'" if value in self.names else str(value)

    def class_names(self) -> dict[int, str]:
        """Class -> what the user or `dataset.json` calls it, where they do; background aside."""
        if self.segments is not None:
            return {self.segments.number(name): name for name in self.segments.named if self.segments.number(name) > 0}
        pairs = [(value if self.classes is None else self.classes.get(value, UNKNOWN), name) for value, name in self.names.items()]
        return {one: name for one, name in reversed(pairs) if one > 0}

    def document(self) -> dict[str, int] | None:
        """As a checkpoint's state holds it."""
        if self.classes is None:
            return None
        every = {value: one for one, value in self._values().items()} | dict(self.classes)
        return {str(value): one for value, one in sorted(every.items())}

    @classmethod
    def of_document(cls, document: Mapping[str, int] | None) -> LabelValues:
        """Back from a checkpoint's state."""
        return cls(
            None if document is None else {int(value): one for value, one in document.items()}, said_by="the run's data.label_values"
        )


def check_given(given: Given) -> None:
    """Raises `ValueError` where the classes of `data.label_values` do not count on from 0."""
    found = sorted({one for one in given.values() if one != "ignore"} | {0})
    if found != list(range(len(found))):
        raise ValueError(f"label_values: the classes {', '.join(map(str, found))} do not count on from 0")


def check_named(named: Named) -> Classes:
    """As `Classes`; raises `ValueError` for a class without values or names, for a value of two classes, or where no class is left."""
    found = {name: (said,) if isinstance(said, int | str) else tuple(said) for name, said in named.items()}
    empty = [name for name, said in found.items() if not said]
    if empty:
        raise ValueError(f"classes: '{empty[0]}' has neither values nor names")
    first: dict[int | str, str] = {}
    for name, said in found.items():
        for one in said:
            if first.setdefault(one, name) != name:
                raise ValueError(f"classes: {one!r} is named for '{first[one]}' and for '{name}'; a voxel has one class")
    if not set(found) - {BACKGROUND, IGNORE}:
        raise ValueError("classes: no class is left beside background and ignore")
    return Classes(found)


def _of_classes(classes: Classes, names: Mapping[int, str], values: frozenset[int]) -> LabelValues:
    """Values as the classes name them, by themselves or by what `dataset.json` calls them; named segments likewise."""
    found: dict[int, int] = {0: 0}
    called: dict[int, str] = {}
    for name, said in classes.named.items():
        for one in said:
            for value in [one] if isinstance(one, int) else [value for value, known in names.items() if matches(one, known)]:
                found[value] = classes.number(name)
                called[value] = name
    return LabelValues(found, called, values, "data.classes", classes)


def label_values(given: Given | None, dataset: Any, classes: Classes | None = None) -> LabelValues:
    """What the options say, else what the content of a `dataset.json` says, as nnU-Net and Decathlon write it."""
    names, ignored = _declared(dataset)
    values = frozenset(names)
    shown = {value: name for value, name in names.items() if name}
    if classes is not None:
        return _of_classes(classes, shown, values)
    if given is not None:
        return LabelValues({0: 0} | {value: UNKNOWN if one == "ignore" else one for value, one in given.items()}, shown, values)
    if ignored is not None:
        return LabelValues(
            {value: value for value in values - {ignored} | {0}} | {ignored: UNKNOWN}, shown, values - {ignored}, "dataset.json"
        )
    return LabelValues(None, shown, values)


def _declared(dataset: Any) -> tuple[dict[int, str], int | None]:
    """(value -> name, the value that nnU-Net calls "ignore"); regions of several values have no name of a value."""
    labels = dataset.get("labels") if isinstance(dataset, Mapping) else None
    if not isinstance(labels, Mapping):
        return {}, None
    found: dict[int, str] = {}
    for key, said in labels.items():
        if isinstance(said, str) and str(key).lstrip("-").isdigit():
            found[int(key)] = said
        elif isinstance(said, int):
            found[said] = str(key)
        elif isinstance(said, list) and all(isinstance(value, int) for value in said):
            found |= {value: found.get(value, "") for value in said}
    ignored = next((value for value, name in found.items() if name == "ignore"), None)
    return found, ignored


def proposal(values: Collection[int]) -> str:
    """The option that numbers these values as 0, 1, 2 and so on."""
    return "data.label_values={" + ", ".join(f"{value}: {number}" for number, value in enumerate(sorted({0, *values}))) + "}"
