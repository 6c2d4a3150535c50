"""Slabs of a crop along an axis, each normalised by itself."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from medssl.contracts import Crops, Draw
from medssl.errors import NetworkError
from medssl.learn.ops import cut, standardise

Axis = Literal["x", "y", "z", "last"]


def axis_of(axis: Axis, dims: int) -> int:
    """Its number; in 2D there is no z."""
    number = dims - 1 if axis == "last" else "xyz".index(axis)
    if number >= dims:
        raise NetworkError(f"crops of {dims} dimensions have no axis {axis}. Set axis: last, x or y.")
    return number


def cut_slabs(name: str, crops: Crops, axis: int, count: int, gap: int, strides: tuple[int, ...], draw: Draw) -> Tensor:
    """(B, count, C, *slab) in the order of the axis: equal slabs with at least `gap` voxels between them, moved within the others.

    Across the axis each slab lies up to half of `gap` elsewhere, so that an edge that continues says nothing.
    """
    size, stride = crops.size, strides[axis]
    thick = (size[axis] - (count - 1) * gap) // count // stride * stride
    sides = [thick if a == axis else (side - gap // 2) // s * s for a, (side, s) in enumerate(zip(size, strides, strict=True))]
    if any(side < 2 * s for side, s in zip(sides, strides, strict=True)):
        least = [count * 2 * s + (count - 1) * gap if a == axis else 2 * s + gap // 2 for a, s in enumerate(strides)]
        raise NetworkError(
            f"{name}: {count} slabs with gaps of {gap} leave {tuple(sides)} of a crop of {size}, and this network, which halves to "
            f"a stride of {strides}, needs {tuple(2 * s for s in strides)}. Take a crop of at least {tuple(least)}, or fewer slabs."
        )
    loose = size[axis] - count * thick - (count - 1) * gap
    # Sorted shares of what is left over: slabs move, and stay in order and apart.
    steps = (draw.uniform(count).sort(dim=1).values * (loose + 1)).long()
    begin = torch.arange(count, device=steps.device) * (thick + gap) + steps
    free = torch.tensor([side - own + 1 for side, own in zip(size, sides, strict=True)], device=steps.device)
    corners = (draw.uniform(count, len(size)) * free).long()
    corners[..., axis] = begin
    return torch.stack([cut(crops.images, corner, sides) for corner in corners.unbind(dim=1)], dim=1)


def normalised(slabs: Tensor) -> Tensor:
    """(B * count, C, *slab), each channel of each slab by itself, so that brightness that drifts says nothing."""
    return standardise(slabs.flatten(0, 1))
