"""Trying a network without paying for it: forward passes on the meta device, where tensors have shapes and no values.

What fails there fails in training with the same message (sides that do not meet, one voxel under instance normalisation), and it
costs milliseconds whatever the crop. Networks that need values fall back to small crops on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import NetworkError
from medssl.networks.spec import NetworkSpec, SpecKey

_META_SIDES = (128, 64, 96, 256, 32, 16, 144, 240, 48, 8)
_CPU_SIDES = (64, 32, 16, 96, 128)


@dataclass(frozen=True)
class Flow:
    """What went through one module in a forward pass: shapes, and whether it gave the network's own output."""

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    is_output: bool


@dataclass(frozen=True)
class Skeleton:
    """A network that can be run on any size to see whether it takes it."""

    spec: NetworkSpec
    network: nn.Module
    device: str
    base: tuple[int, ...]
    """(D,) sides that the network takes."""
    output: tuple[int, ...]
    """Shape of the output for a batch of 2 crops of `base`."""

    def flow(self, name: str) -> Flow | None:
        """Shapes through the module `name` in one forward pass; None where it is not run, or not on one tensor."""
        try:
            module = self.network.get_submodule(name)
        except AttributeError:
            return None
        seen: list[tuple[Tensor, Tensor]] = []

        def look(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                seen.append((inputs[0], output))

        handle = module.register_forward_hook(look)
        try:
            final = run(self.network, self.spec, self.base, 2, self.device)
        finally:
            handle.remove()
        if not seen:
            return None
        reads, writes = seen[-1]
        return Flow(tuple(reads.shape), tuple(writes.shape), writes is final)


def skeleton_of(spec: NetworkSpec) -> Skeleton:
    """The skeleton of `spec`, made once; `NetworkError` where the network fails on every size that was tried."""
    return _skeleton_of(SpecKey(spec))


@lru_cache(maxsize=16)
def _skeleton_of(key: SpecKey) -> Skeleton:
    spec, problems = key.spec, []
    for device, sides in (("meta", _META_SIDES), ("cpu", _CPU_SIDES)):
        network = spec.skeleton() if device == "meta" else spec.build(seed=0)
        for size in _sizes(spec, sides):
            try:
                output = run(network, spec, size, 2, device)
            except Exception as error:  # noqa: BLE001 - whatever a network raises says that it does not take this size
                problems.append(f"{shown(size)}: {first_line(error)}")
            else:
                return Skeleton(spec, network, device, size, tuple(output.shape))
    raise NetworkError(f"{spec} failed on every crop that was tried, first on {problems[0]}. Check its options and spatial_dims.")


def run(network: nn.Module, spec: NetworkSpec, size: Sequence[int], batch: int, device: str) -> Tensor:
    """The network's main output for `batch` crops of `size`, without gradients, in training mode as the run will use it."""
    images = torch.zeros((batch, spec.in_channels, *size), device=device)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return main_output(network(images), size)


def main_output(output: Any, size: Sequence[int]) -> Tensor:
    """The full-size output among what a network returns: deep supervision gives several, stacked or in a list.

    Where none is of `size` (a network that classifies) it is the first; `NetworkError` where there is no tensor at all.
    """
    given = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else (output,)
    found = [_unstacked(item, size) for item in given if isinstance(item, Tensor)]
    if not found:
        raise NetworkError(
            f"the network returns {type(output).__name__} without a tensor in it; medssl needs one tensor, or a list of them."
        )
    return next((item for item in found if tuple(item.shape[2:]) == tuple(size)), found[0])


def dense_output(output: Any, size: Sequence[int]) -> Tensor:
    """`main_output` as (B, K, *size): one value a class and voxel; `NetworkError` where a network gives no such tensor."""
    found = main_output(output, size)
    if tuple(found.shape[2:]) != tuple(size):
        raise NetworkError(
            f"the network gives {tuple(found.shape)} for crops of {shown(size)}; segmentation needs one value a class and voxel. "
            "Choose a segmentation network, such as SegResNet."
        )
    return found


def _unstacked(output: Tensor, size: Sequence[int]) -> Tensor:
    """The first of several answers that are stacked on an axis behind the batch, the full-size one."""
    return output[:, 0] if output.dim() == len(size) + 3 else output


def _sizes(spec: NetworkSpec, sides: Sequence[int]) -> list[tuple[int, ...]]:
    fixed = fixed_size(spec)
    return [(side,) * spec.spatial_dims for side in sides] if fixed is None else [fixed]


def fixed_size(spec: NetworkSpec) -> tuple[int, ...] | None:
    """The only size that the network takes, where its option img_size fixes it."""
    fixed = spec.options.get("img_size")
    if fixed is None:
        return None
    return tuple(fixed) if isinstance(fixed, list | tuple) else (int(fixed),) * spec.spatial_dims


def shown(size: Sequence[int]) -> str:
    """`96x96x64`."""
    return "x".join(str(side) for side in size)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
