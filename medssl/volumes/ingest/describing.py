"""The transforms of a MONAI pipeline: where they are, whether they draw at random, and what tells them from changed ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

from medssl.errors import UsageError

_DEPTH = 6


def transforms_of(data: Any) -> list[Any]:
    """The transforms of a dataset, and of the datasets that it is made of."""
    found = [] if getattr(data, "transform", None) is None else [data.transform]
    inner = [*([data.dataset] if hasattr(data, "dataset") else []), *getattr(data, "datasets", ())]
    return [*found, *(one for dataset in inner for one in transforms_of(dataset))]


def refuse_random(transforms: Iterable[Any]) -> None:
    """`UsageError` naming the transforms that draw at random."""
    from monai.transforms.traits import RandomizableTrait

    drawn = [type(one).__name__ for transform in transforms for one in _leaves(transform) if isinstance(one, RandomizableTrait)]
    if drawn:
        raise UsageError(
            f"the transforms of the data draw at random ({', '.join(dict.fromkeys(drawn))}), and a store keeps what they give once. Leave "
            "them out: crops are cut by medssl (size=...), and views= says how images are augmented."
        )


def described(value: Any, depth: int = _DEPTH) -> Any:
    """A transform by its class and settings, without what changes by itself (its random state, addresses in memory)."""
    if value is None or isinstance(value, str | int | float | bool | Enum):
        return repr(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [described(one, depth - 1) for one in value] if depth else type(value).__name__
    if isinstance(value, Mapping):
        return {str(key): described(one, depth - 1) for key, one in value.items()} if depth else type(value).__name__
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    settings = getattr(value, "__dict__", None)
    if not depth or not isinstance(settings, dict) or isinstance(value, type) or not type(value).__module__.startswith("monai.transforms"):
        return name
    return name, {key: described(one, depth - 1) for key, one in sorted(settings.items()) if key != "R"}


def _leaves(transform: Any) -> Iterator[Any]:
    """A transform, or those that it is composed of."""
    inner = getattr(transform, "transforms", None)
    if isinstance(inner, Iterable):
        for one in inner:
            yield from _leaves(one)
    else:
        yield transform
