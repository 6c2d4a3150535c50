"""Tensor operations that tasks and losses share: batched, on the crops' device, everything random from a `Draw`.

Shapes: images are (B, C, *size), masks (B, 1, *size) bool. Parts of a sample lie side by side: the inputs of a task with P
parts are (B * P, C, *size), sample b at rows b * P .. b * P + P - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from math import factorial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medssl.augment import spread
from medssl.contracts import Draw
from medssl.errors import DataError
from medssl.learn.joining import over_ranks, rank, summed, world

CANDIDATES = 5000
"""Permutations among which the next is chosen where there are more than can be listed."""
EXCLUDED = -1e30
"""The logit of what does not count: so low that its share and its gradient are 0 in float32, and finite."""


def block_mask(draw: Draw, size: Sequence[int], block: int, low: float, high: float) -> Tensor:
    """(B, 1, *size) bool, True where hidden: whole blocks on a grid that starts anywhere, as in masked autoencoders.

    Each sample draws its share of hidden blocks in [low, high] and where its grid starts, so block borders are no clue. At
    least one block is hidden and one is not. Raises `DataError` where a crop holds fewer than two blocks.
    """
    if all(side <= block for side in size):
        raise DataError(f"blocks of {block} voxels hide a crop of {tuple(size)} whole. Take a smaller block or a larger crop.")
    cells = [-(-side // block) + 1 for side in size]
    start = draw.integers(0, block, len(size))
    share = draw.uniform() * (high - low) + low
    order = draw.uniform(*cells)
    index, used = [], torch.ones_like(order, dtype=torch.bool)
    for axis, side in enumerate(size):
        cell = (start[:, axis, None] + torch.arange(side, device=start.device)) // block
        index.append(cell)
        in_crop = torch.arange(cells[axis], device=start.device) <= cell[:, -1:]
        used &= in_crop.view(-1, *[cells[axis] if other == axis else 1 for other in range(len(size))])
    place = torch.where(used, order, torch.inf).flatten(1).argsort(dim=1).argsort(dim=1)
    total = used.flatten(1).sum(dim=1)
    hidden = (share * total).round().long().clamp_min(1).minimum(total - 1)
    return take((place < hidden[:, None]).view(-1, 1, *cells), index)


def take(images: Tensor, index: Sequence[Tensor]) -> Tensor:
    """(B, C, n1, .., nD): for each sample the voxels at the outer product of its indices; `index` holds D tensors (B, n)."""
    if images.device.type == "cpu":
        # Row by row, the innermost axis while it is small; gathering goes voxel by voxel.
        taken = list(images)
        for axis in reversed(range(len(index))):
            taken = [image.index_select(axis + 1, where) for image, where in zip(taken, index[axis], strict=True)]
        return torch.stack(taken)
    for axis, where in enumerate(index):
        dim = axis + 2
        shape = [1] * images.dim()
        shape[0], shape[dim] = where.shape
        target = [*images.shape[:dim], where.shape[1], *images.shape[dim + 1 :]]
        images = images.gather(dim, where.view(shape).expand(target))
    return images


def cut(images: Tensor, corner: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, *size): from each image the box whose first voxel is `corner` (B, D) int64."""
    if images.device.type == "cpu":
        # Reading the corners of a device would wait for it; here boxes are copied row by row, which gathering does voxel by voxel.
        boxes = [tuple(slice(first, first + side) for first, side in zip(one, size, strict=True)) for one in corner.tolist()]
        return torch.stack([image[(slice(None), *box)] for image, box in zip(images, boxes, strict=True)])
    steps = [torch.arange(side, device=images.device) for side in size]
    return take(images, [corner[:, axis, None] + step for axis, step in enumerate(steps)])


def reorder(parts: Tensor, order: Tensor) -> Tensor:
    """(B, N, ...): of the parts (B, P, ...) of each sample those that its `order` (B, N) names, in that order."""
    first = torch.arange(len(parts), device=order.device)[:, None] * parts.shape[1]
    return parts.flatten(0, 1).index_select(0, (first + order).flatten()).view(*order.shape, *parts.shape[2:])


def standardise(images: Tensor) -> Tensor:
    """Each channel of each image to mean 0 and standard deviation 1 by itself; a constant one becomes 0."""
    axes = tuple(range(2, images.dim()))
    centred = images - images.mean(dim=axes, keepdim=True)
    return centred / centred.square().mean(dim=axes, keepdim=True).sqrt().clamp_min(1e-6)


def spread_permutations(cells: int, count: int) -> Tensor:
    """(P, cells) permutations that differ most from each other, always the same ones; all of them where there are no more than `count`.

    Greedily: next comes the one whose nearest among the chosen has the largest Hamming distance. The first is not the identity.
    """
    generator = torch.Generator().manual_seed(0)
    if factorial(cells) <= CANDIDATES:
        listed = list(permutations(range(cells)))
        candidates = torch.tensor(listed, device="cpu")
        candidates = candidates[torch.randperm(len(candidates), generator=generator, device="cpu")]
    else:
        candidates = torch.stack([torch.randperm(cells, generator=generator, device="cpu") for _ in range(CANDIDATES)])
    if len(candidates) <= count:
        return candidates
    chosen = [int((candidates != torch.arange(cells, device="cpu")).sum(dim=1).argmax())]
    nearest = (candidates != candidates[chosen[0]]).sum(dim=1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = nearest.minimum((candidates != candidates[chosen[-1]]).sum(dim=1))
    return candidates[torch.tensor(chosen, device="cpu")]


def masked_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """(B,) mean of `values` (B, ...) weighted by `weight` (broadcast); 0 for a sample whose weights are all 0."""
    if weight is None:
        return values.flatten(1).mean(dim=1)
    weight = weight.to(values.dtype).expand_as(values).flatten(1)
    total = weight.sum(dim=1)
    mean = (values.flatten(1) * weight).sum(dim=1) / total.clamp_min(torch.finfo(values.dtype).tiny)
    return torch.where(total > 0, mean, torch.zeros_like(mean))


def visible_mean(images: Tensor, hidden: Tensor) -> Tensor:
    """(B, C, 1, ...) mean of each channel over the voxels that `hidden` (B, 1, *size) bool leaves; 0 where it leaves none."""
    seen = (~hidden).to(images.dtype).flatten(2)
    mean = images.flatten(2) @ seen.mT / seen.sum(dim=2, keepdim=True).clamp_min(1)
    return mean.view(*images.shape[:2], *[1] * (images.dim() - 2))


def filled(parts: Tensor, images: Tensor, empty: float) -> Tensor:
    """(B, P) bool: which of the parts (B, P, C, *part) of `images` hold more than the share `empty` of the image's spread; less is air."""
    floor = empty * spread(images).amax(dim=1).view(-1, 1)
    return spread(parts.flatten(0, 1)).amax(dim=1).view(parts.shape[:2]) > floor


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) share of right answers, of the logits (B, ..., K) of K classes for `target` (B, ...); equal logits count what guessing gives."""
    ties = (prediction == prediction.amax(dim=-1, keepdim=True)).float()
    right = ties.gather(-1, target.unsqueeze(-1)).squeeze(-1) / ties.sum(dim=-1)
    return right.view(len(right), -1).mean(dim=1)


def pool(grid: Tensor) -> Tensor:
    """(B, E) embedding: the mean over space of (B, E, *grid)."""
    return grid.flatten(2).mean(dim=2)


def by_part(embeddings: Tensor, parts: int) -> Tensor:
    """(B, parts, E) from (B * parts, E)."""
    return embeddings.reshape(-1, parts, embeddings.shape[1])


def gather(tensor: Tensor) -> Tensor:
    """(world * B, ...) the rows of every rank in the order of ranks, with a gradient into each rank's own; alone: `tensor` itself.

    What every rank loses for a row flows back into it, so a loss over gathered negatives has on N ranks the gradient it has on one.
    """
    if world() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


def own_rows(gathered: Tensor) -> Tensor:
    """This rank's rows of what `gather` gave."""
    return gathered.chunk(world())[rank()]


def info_nce(positive: Tensor, negatives: Tensor, excluded: Tensor | None = None) -> Tensor:
    """(...) cross entropy of finding the logit `positive` (...) among itself and `negatives` (..., N), without those `excluded`.

    By log-sum-exp, so it is finite at any temperature; 0, without a gradient, where every negative is excluded.
    """
    if excluded is not None:
        # A finite floor: the gradient of a log-sum-exp over nothing but infinities is no number.
        negatives = negatives.masked_fill(excluded, EXCLUDED)
    return F.softplus(negatives.logsumexp(dim=-1) - positive)


def reversed_gradient(values: Tensor, share: float) -> Tensor:
    """The values, whose gradient comes back times -`share` (Ganin and Lempitsky, ICML 2015): an adversary in one loss and one step."""
    same: Tensor = _ReverseGradient.apply(values, share)  # type: ignore[no-untyped-call]
    return same


def read_at(grid: Tensor, voxels: Tensor, size: Sequence[int]) -> Tensor:
    """(B, P, F): what a grid (B, F, *g) over images of `size` holds at `voxels` (B, P, D) of these, by linear interpolation.

    Beyond the border the nearest cell is repeated.
    """
    sides = torch.tensor(list(size), device=voxels.device, dtype=voxels.dtype)
    scaled = ((2 * voxels + 1) / sides - 1).flip(2)
    shaped = scaled.view(*scaled.shape[:2], *[1] * (len(size) - 1), len(size)).to(grid.dtype)
    found = F.grid_sample(grid, shaped, mode="bilinear", padding_mode="border", align_corners=False)
    return found.flatten(2).transpose(1, 2)


def onto_grid(values: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, C, *grid): the mean of `values` (B, C, *size) in each cell of a coarser grid."""
    if tuple(values.shape[2:]) == tuple(grid):
        return values
    pooled: Tensor = (F.adaptive_avg_pool2d if values.dim() == 4 else F.adaptive_avg_pool3d)(values, tuple(grid))  # type: ignore[arg-type]
    return pooled


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return over_ranks(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return own_rows(summed(gradients[0].contiguous()))


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, share: float) -> Tensor:
        ctx.share = share
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.share * gradients[0], None
