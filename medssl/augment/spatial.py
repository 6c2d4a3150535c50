"""Batched affine resampling of crops, with every affine known exactly.

An affine is (B, D, D + 1) and maps a voxel of the view to a voxel of the crop: `crop = M @ view + t`, voxel centres at whole
numbers. Outside the crop the nearest voxel is repeated; `shown_by` says which voxels are real. Parameters are drawn first and
applied deterministically, by the cheapest exact way for what was drawn: a flip, matrix products along the axes, a rotation in
one plane with the third axis as channels, or trilinear sampling. All four give the same numbers up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

EXACT = 1e-4
"""Voxels: an affine nearer than this to whole flips counts as one; also how far outside the grid still counts as inside."""


def identity(batch: int, dims: int, device: torch.device | str = "cpu") -> Tensor:
    """(batch, dims, dims + 1): a view that is the crop."""
    return torch.eye(dims, dims + 1, device=device).expand(batch, dims, dims + 1).clone()


def is_identity(affine: Tensor) -> bool:
    """True where every affine of (..., D, D + 1) is exactly the identity."""
    dims = affine.shape[-2]
    return bool((affine == torch.eye(dims, dims + 1, device=affine.device, dtype=affine.dtype)).all())


def invert(affine: Tensor) -> Tensor:
    """(B, D, D + 1): voxel of the crop -> voxel of the view."""
    matrix = torch.linalg.inv(affine[..., :-1])
    return torch.cat([matrix, -matrix @ affine[..., -1:]], dim=-1)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """(B, N, D + 1): first `inner` (B, D, D + 1), then `outer` (B, N, D + 1)."""
    matrix = outer[..., :-1] @ inner
    return torch.cat([matrix[..., :-1], matrix[..., -1:] + outer[..., -1:]], dim=-1)


def about_centre(matrix: Tensor, size: Sequence[int]) -> Tensor:
    """(B, D, D + 1) affine that applies `matrix` (B, D, D) about the centre of a grid of `size`."""
    centre = torch.tensor([(side - 1) / 2 for side in size], device=matrix.device, dtype=matrix.dtype)
    return torch.cat([matrix, (centre - matrix @ centre).unsqueeze(-1)], dim=-1)


def rotation(plane: Tensor, angle: Tensor, dims: int) -> Tensor:
    """(B, D, D) rotation by `angle` (B,) radians; in 3D about the axis numbered `plane` (B,), in 2D in the only plane."""
    batch = angle.shape[0]
    cosine, sine = torch.cos(angle), torch.sin(angle)
    if dims == 2:
        return torch.stack([cosine, -sine, sine, cosine], dim=-1).view(batch, 2, 2)
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    about = [
        [one, zero, zero, zero, cosine, -sine, zero, sine, cosine],
        [cosine, zero, sine, zero, one, zero, -sine, zero, cosine],
        [cosine, -sine, zero, sine, cosine, zero, zero, zero, one],
    ]
    table = torch.stack([torch.stack(entries, dim=-1) for entries in about], dim=1).view(batch, 3, 3, 3)
    return table[torch.arange(batch, device=angle.device), plane]


def resample(images: Tensor, affine: Tensor) -> Tensor:
    """(B, C, *size) views of `images` (B, C, *size) by linear interpolation; differentiable in `images`."""
    if images.device.type != "cpu":
        return _sample(images, affine)
    rows = affine.detach().double().tolist()
    views = [_one(images[b : b + 1], affine[b : b + 1], rows[b]) for b in range(images.shape[0])]
    return torch.cat(views)


def resample_nearest(values: Tensor, affine: Tensor, outside: int | float | bool) -> Tensor:
    """(B, C, *size) views of `values` (B, C, *size; labels, masks) by nearest voxel; `outside` where the view leaves the crop."""
    size = values.shape[2:]
    place = torch.zeros((), dtype=torch.int64, device=values.device)
    inside = torch.ones((), dtype=torch.bool, device=values.device)
    for coordinate, side in zip(_coordinates(affine, size), size, strict=True):
        nearest = torch.floor(coordinate + 0.5).long()
        inside = inside & (nearest >= 0) & (nearest < side)
        place = place * side + nearest.clamp_(0, side - 1)
    flat = place.flatten(1).unsqueeze(1).expand(-1, values.shape[1], -1)
    taken = values.flatten(2).gather(2, flat).view(values.shape)
    return torch.where(inside.unsqueeze(1), taken, torch.full_like(taken, outside))


def shown_by(affine: Tensor, size: Sequence[int]) -> Tensor:
    """(B, 1, *size) bool: the voxels of the crop that a view of the same size shows."""
    coordinates = _coordinates(invert(affine), size)
    halves = [(side - 1) / 2 for side in size]
    inside = [c.sub_(half).abs_() <= half + EXACT for c, half in zip(coordinates, halves, strict=True)]
    shown = inside[0]
    for other in inside[1:]:
        shown &= other
    return shown.unsqueeze(1)


def _one(image: Tensor, affine: Tensor, rows: list[list[float]]) -> Tensor:
    """One sample (1, C, *size) by the cheapest exact way for its affine."""
    dims = len(rows)
    size = image.shape[2:]
    off = {axis for axis in range(dims) for other in range(dims) if other != axis and (rows[axis][other] or rows[other][axis])}
    if not off:
        flips = [axis for axis in range(dims) if rows[axis][axis] < 0]
        whole = [abs(abs(rows[a][a]) - 1) < EXACT and abs(rows[a][-1] - (size[a] - 1 if a in flips else 0)) < EXACT for a in range(dims)]
        if all(whole):
            return image.flip([axis + 2 for axis in flips]) if flips else image
        return _along_axes(image, affine, range(dims))
    if dims == 3 and len(off) == 2:
        (still,) = {0, 1, 2} - off
        first, second = sorted(off)
        moved = _along_axes(image, affine, [still]).movedim(still + 2, 2)
        flat = moved.reshape(1, -1, size[first], size[second])
        plane = affine[:, [first, second]][:, :, [first, second, 3]]
        turned = _sample(flat, plane).reshape(moved.shape)
        return turned.movedim(2, still + 2)
    return _sample(image, affine)


def _along_axes(images: Tensor, affine: Tensor, axes: Sequence[int]) -> Tensor:
    """Scale, shift and flip along single axes, as one product with a banded matrix an axis."""
    for axis in axes:
        side = images.shape[axis + 2]
        voxels = torch.arange(side, device=images.device, dtype=affine.dtype)
        source = (affine[:, axis, axis, None] * voxels + affine[:, axis, -1, None]).clamp(0, side - 1)
        images = product_along(images, axis + 2, (1 - (source[:, :, None] - voxels).abs()).clamp_min(0).to(images.dtype))
    return images


def product_along(images: Tensor, axis: int, weights: Tensor) -> Tensor:
    """Each line of `images` (B, ...) along `axis` times the matrix of its sample in `weights` (B, n, n), without moving axes."""
    batch, side = images.shape[0], images.shape[axis]
    before, after = math.prod(images.shape[1:axis]), math.prod(images.shape[axis + 1 :])
    if after == 1:
        return (images.reshape(batch, before, side) @ weights.mT).view(images.shape)
    return (weights.unsqueeze(1) @ images.reshape(batch, before, side, after)).view(images.shape)


def _coordinates(affine: Tensor, size: Sequence[int]) -> list[Tensor]:
    """D tensors (B, *size): where each voxel of a grid of `size` lies on the other side of the affine."""
    dims = len(size)
    result = []
    for axis in range(dims):
        total = affine[:, axis, -1].view(-1, *[1] * dims)
        for other, side in enumerate(size):
            shape = [1] * (dims + 1)
            shape[other + 1] = side
            steps = torch.arange(side, device=affine.device, dtype=affine.dtype).view(shape)
            total = total + affine[:, axis, other].view(-1, *[1] * dims) * steps
        result.append(total)
    return result


def _sample(images: Tensor, affine: Tensor) -> Tensor:
    size = images.shape[2:]
    sides = [max(side - 1, 1) for side in size]
    scaled = [2 * c / side - 1 for c, side in zip(_coordinates(affine, size), sides, strict=True)]
    grid = torch.stack(scaled[::-1], dim=-1).to(images.dtype)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)
