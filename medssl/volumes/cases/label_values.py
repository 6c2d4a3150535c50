"""Which class each value of the label files is: as `data.label_values` or `dataset.json` says, else each value is its class."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medssl.volumes.crops import UNKNOWN
from medssl.volumes.ingest import Unusable

Given = Mapping[int, int | Literal["ignore"]]
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
        """Classes -> values as label files have them; of several values that are one class the smallest."""
        if self.classes is None:
            return classes
        first: dict[int, int] = {}
        for value in sorted(self.classes, key=lambda value: (value < 0, value)):
            first.setdefault(self.classes[value], value)
        table = np.array([first.get(number, number) for number in range(1 + max(first))])
        kind = next(
            kind for kind in (np.uint8, np.int16, np.int32) if np.iinfo(kind).min <= table.min() and table.max() <= np.iinfo(kind).max
        )
        restored: NDArray[Any] = table.astype(kind)[classes]
        return restored

    def named(self, value: int) -> str:
        """The value, with its name where it has one."""
        return f"{value} '{self.names[value]}'" if value in self.names else str(value)

    def document(self) -> dict[str, int] | None:
        """As a checkpoint's state holds it."""
        return None if self.classes is None else {str(value): one for value, one in sorted(self.classes.items())}

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


def label_values(given: Given | None, dataset: Any) -> LabelValues:
    """What the option says, else what the content of a `dataset.json` says, as nnU-Net and Decathlon write it."""
    names, ignored = _declared(dataset)
    values = frozenset(names)
    shown = {value: name for value, name in names.items() if name}
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
