"""Cells of a crop: a grid of equal boxes, and a patch anywhere in each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from medssl.contracts import Draw
from medssl.errors import NetworkError
from medssl.learn.ops import cut


def cells_of(grid: Sequence[int]) -> list[tuple[int, ...]]:
    """The cells of a grid, in the order in which they are numbered."""
    return list(product(*[range(count) for count in grid]))


def patch_sides(name: str, size: Sequence[int], grid: Sequence[int], strides: Sequence[int], jitter: int) -> tuple[int, ...]:
    """Sides of the patch that each cell of `grid` leaves beside `jitter`, in whole strides; `NetworkError` where that is too little."""
    sides = tuple((side // count - jitter) // stride * stride for side, count, stride in zip(size, grid, strides, strict=True))
    least = [2 * stride for stride in strides]
    if any(side < needed for side, needed in zip(sides, least, strict=True)):
        raise NetworkError(
            f"{name}: a grid of {tuple(grid)} cells on a crop of {tuple(size)} leaves patches of {sides} beside a jitter of {jitter}, and "
            f"this network, which halves to a stride of {tuple(strides)}, needs at least {tuple(least)}. Take a crop of at least "
            f"{tuple((needed + jitter) * count for needed, count in zip(least, grid, strict=True))}, fewer cells, or fewer levels."
        )
    return sides


def cut_cells(images: Tensor, grid: Sequence[int], patch: Sequence[int], draw: Draw) -> Tensor:
    """(B, cells, C, *patch): from each cell a patch anywhere in it."""
    device = images.device
    cell = torch.tensor([side // count for side, count in zip(images.shape[2:], grid, strict=True)], device=device)
    start = torch.tensor(cells_of(grid), device=device) * cell
    free = cell - torch.tensor(list(patch), device=device) + 1
    corner = start + (draw.uniform(len(start), len(patch)) * free).long()
    return torch.stack([cut(images, corner[:, number], patch) for number in range(len(start))], dim=1)
