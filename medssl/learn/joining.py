"""Joining what several micro batches and ranks hold, in the order of the global sample numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from hashlib import blake2b
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
BATCH_SECOND = frozenset({"affines"})
"""Fields whose first axis counts views and the second samples."""


def world() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them."""
    return dist.get_rank() if world() > 1 else 0


def joined(micro_batches: Sequence[T]) -> T:
    """One record (a tensor, or dataclasses, mappings and tuples of them) from those of every micro batch of every rank.

    Each micro batch is joined over the ranks before the next, which is the order of `Crops.index`. What is no tensor is taken from
    the first. Raises `ValueError` where the batches do not hold the same fields in the same shapes: ranks would wait for each other.
    """
    found = [tuple(_signature(record)) for record in micro_batches]
    agreed = over_ranks(torch.tensor([_number(one) for one in found]))
    if bool((agreed != agreed[0]).any()):
        raise ValueError(
            "the batches of a step hold other fields, or other shapes, in one micro batch or rank than in the next "
            f"(here {found[0]}). Give the same fields with the same number of columns in every batch."
        )
    record: T = _joined(list(micro_batches), 0)
    return record


def _joined(values: list[Any], dim: int) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat([over_ranks(value, dim) for value in values], dim=dim)
    if is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in fields(first)]
        parts = {name: _joined([getattr(value, name) for value in values], int(name in BATCH_SECOND)) for name in names}
        return replace(first, **parts)
    if isinstance(first, Mapping):
        return {key: _joined([value[key] for value in values], dim) for key in first}
    if isinstance(first, tuple):
        return tuple(_joined(list(items), dim) for items in zip(*values, strict=True))
    return first


def _signature(value: Any, name: str = "") -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor in a record."""
    if isinstance(value, Tensor):
        yield name, str(value.dtype).removeprefix("torch."), tuple(value.shape)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _signature(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))
    elif isinstance(value, Mapping):
        for key in value:
            yield from _signature(value[key], f"{name}.{key}")
    elif isinstance(value, tuple):
        for place, item in enumerate(value):
            yield from _signature(item, f"{name}.{place}")


def _number(signature: Any) -> int:
    return int.from_bytes(blake2b(repr(signature).encode(), digest_size=8).digest(), "little") >> 1


def over_ranks(tensor: Tensor, dim: int = 0) -> Tensor:
    """The tensors of all ranks, which have one shape, one behind the other along `dim`, without a gradient."""
    if world() == 1:
        return tensor
    sent = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
    sent = sent.detach().to(_where(sent)).contiguous()
    received = [torch.empty_like(sent) for _ in range(world())]
    dist.all_gather(received, sent)
    return torch.cat(received, dim=dim).to(device=tensor.device, dtype=tensor.dtype)


def summed(values: Tensor) -> Tensor:
    """`values` added up over the ranks, without a gradient."""
    if world() == 1:
        return values
    total = values.detach().to(_where(values), copy=True)
    dist.all_reduce(total)
    return total.to(values.device)


def _where(tensor: Tensor) -> torch.device:
    """The device from which a tensor can be sent."""
    return torch.device("cuda") if dist.get_backend() == "nccl" else tensor.device
