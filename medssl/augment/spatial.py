"""Batched resampling of crops, with every affine known exactly.

An affine is (B, D, D + 1) and maps a voxel of the view to a voxel of the crop: `crop = M @ view + t`, voxel centres at whole
numbers. Outside the crop the nearest voxel is repeated; `shown_by` says which voxels are real. A view may have another size than the
crop, so that a change of spacing is part of the same interpolation. Parameters are drawn first and applied deterministically, by the
cheapest exact way for what was drawn: a flip, matrix products along the axes, a rotation in one plane with the third axis as channels,
or trilinear sampling. All four give the same numbers up to rounding. A displacement (B, D, *size of the view) is added to where
the affine leads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

EXACT = 1e-4
"""Voxels: an affine nearer than this to whole flips counts as one; also how far outside the grid still counts as inside."""
BAND = 16
"""Rows of a banded matrix that are multiplied at a time."""
WIDE_BAND = 48
"""The same along the last axis, where narrow products are slow."""
SLAB = 16
"""Layers of a view that are sampled at a time."""


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


def about_centre(matrix: Tensor, size: Sequence[int], view: Sequence[int] | None = None) -> Tensor:
    """(B, D, D + 1) affine that applies `matrix` (B, D, D) about the centre of a grid of `size`; the view has the size `view`."""
    centre, seen = (
        torch.tensor([(side - 1) / 2 for side in sides], device=matrix.device, dtype=matrix.dtype) for sides in (size, view or size)
    )
    return torch.cat([matrix, (centre - matrix @ seen).unsqueeze(-1)], dim=-1)


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


def resample(images: Tensor, affine: Tensor, size: Sequence[int] | None = None, displacement: Tensor | None = None) -> Tensor:
    """(B, C, *size) views of `images` (B, C, *crop) by linear interpolation; differentiable in `images`.

    `size` is that of the views, by default the crop's own. The affine's centre is then another: see `about_centre`.
    """
    sides = tuple(images.shape[2:] if size is None else size)
    if images.device.type != "cpu":
        return _sample(images, _coordinates(affine, sides, displacement))
    rows = affine.detach().double().tolist()

    def view(b: int) -> Tensor:
        one = slice(b, b + 1)
        if displacement is not None:
            return _anywhere(images[one], affine[one], sides, displacement[one])
        return _one(images[one], affine[one], rows[b], sides)

    if torch.is_grad_enabled() and images.requires_grad:
        return torch.cat([view(b) for b in range(len(images))])
    # Copied while it is in the processor's cache, and its memory is free for the next one.
    done = images.new_empty(*images.shape[:2], *sides)
    for b in range(len(images)):
        flips = None if displacement is not None else _flips(rows[b], images.shape[2:], sides)
        if flips is None or images.dtype not in (torch.float32, torch.float64):
            done[b] = view(b)[0]
        else:
            # numpy reads backwards; torch would make a copy before.
            turned = (slice(None), *(slice(None, None, -1 if axis in flips else 1) for axis in range(len(sides))))
            np.copyto(done[b].numpy(), images[b].detach().numpy()[turned])
    return done


def resample_nearest(
    values: Tensor, affine: Tensor, outside: int | float | bool, size: Sequence[int] | None = None, displacement: Tensor | None = None
) -> Tensor:
    """(B, C, *size) views of `values` (B, C, *crop; labels, masks) by nearest voxel; `outside` where the view leaves the crop."""
    crop, sides = values.shape[2:], tuple(values.shape[2:] if size is None else size)
    place = torch.zeros((), dtype=torch.int64, device=values.device)
    inside = torch.ones((), dtype=torch.bool, device=values.device)
    for coordinate, side in zip(_coordinates(affine, sides, displacement), crop, strict=True):
        nearest = torch.floor(coordinate + 0.5).long()
        inside = inside & (nearest >= 0) & (nearest < side)
        place = place * side + nearest.clamp_(0, side - 1)
    flat = place.flatten(1).unsqueeze(1).expand(-1, values.shape[1], -1)
    taken = values.flatten(2).gather(2, flat).view(*values.shape[:2], *sides)
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


def _one(image: Tensor, affine: Tensor, rows: list[list[float]], sides: tuple[int, ...]) -> Tensor:
    """One sample (1, C, *crop) by the cheapest exact way for its affine."""
    dims = len(rows)
    size = tuple(image.shape[2:])
    off = {axis for axis in range(dims) for other in range(dims) if other != axis and (rows[axis][other] or rows[other][axis])}
    flips = _flips(rows, size, sides)
    if flips is not None:
        return image.flip([axis + 2 for axis in flips]) if flips else image
    if not off:
        return _along_axes(image, affine, range(dims), sides)
    if dims == 3 and len(off) == 2:
        (still,) = {0, 1, 2} - off
        first, second = sorted(off)
        moved = _along_axes(image, affine, [still], sides).movedim(still + 2, 2)
        plane = affine[:, [first, second]][:, :, [first, second, 3]]
        turned = _sample(moved.flatten(1, 2), _coordinates(plane, (sides[first], sides[second]), None))
        return turned.view(*moved.shape[:3], sides[first], sides[second]).movedim(2, still + 2)
    return _anywhere(image, affine, sides, None)


def _flips(rows: list[list[float]], size: Sequence[int], sides: Sequence[int]) -> list[int] | None:
    """The axes along which an affine flips a grid of `size`; None where it does anything else."""
    dims = len(rows)
    flips = [axis for axis in range(dims) if rows[axis][axis] < 0]
    whole = [abs(abs(rows[a][a]) - 1) < EXACT and abs(rows[a][-1] - (size[a] - 1 if a in flips else 0)) < EXACT for a in range(dims)]
    straight = not any(rows[a][b] for a in range(dims) for b in range(dims) if a != b)
    return flips if straight and all(whole) and tuple(sides) == tuple(size) else None


def _along_axes(images: Tensor, affine: Tensor, axes: Sequence[int], sides: Sequence[int]) -> Tensor:
    """Scale, shift and flip along single axes, as one product with a banded matrix an axis."""
    for axis in axes:
        side = images.shape[axis + 2]
        voxels = torch.arange(side, device=images.device, dtype=affine.dtype)
        seen = torch.arange(sides[axis], device=images.device, dtype=affine.dtype)
        source = (affine[:, axis, axis, None] * seen + affine[:, axis, -1, None]).clamp(0, side - 1)
        images = product_along(images, axis + 2, (1 - (source[:, :, None] - voxels).abs()).clamp_min(0).to(images.dtype))
    return images


def product_along(images: Tensor, axis: int, weights: Tensor) -> Tensor:
    """Each line of `images` (B, ...) along `axis` times the matrix of its sample in `weights` (B, n, side), without moving axes.

    On the CPU zeros beside the band that a matrix holds are not multiplied.
    """
    batch, side, wanted = images.shape[0], images.shape[axis], weights.shape[1]
    before, after = math.prod(images.shape[1:axis]), math.prod(images.shape[axis + 1 :])
    shape = (*images.shape[:axis], wanted, *images.shape[axis + 1 :])
    lines = images.reshape(batch, before, side, after)
    differentiated = torch.is_grad_enabled() and (images.requires_grad or weights.requires_grad)
    if images.device.type != "cpu" or differentiated or images.dtype not in (torch.float32, torch.float64):
        return (lines.squeeze(3) @ weights.mT if after == 1 else weights.unsqueeze(1) @ lines).view(shape)
    done = lines.new_empty(batch, before, wanted, after)
    for one, new, matrix in zip(lines.detach(), done, weights.detach(), strict=True):
        for rows, columns in _bands(matrix, WIDE_BAND if after == 1 else BAND):
            part = matrix[rows, columns]
            if after == 1:
                torch.mm(one[:, columns, 0], part.mT, out=new[:, rows, 0])
            elif before == 1:
                torch.mm(part, one[0, columns], out=new[0, rows])
            else:
                # Many small products, of which numpy makes little ado.
                np.matmul(part.numpy(), one[:, columns].numpy(), out=new[:, rows].numpy())
    return done.view(shape)


def _bands(matrix: Tensor, side: int) -> list[tuple[slice, slice]]:
    """Rows and the columns that any of them weighs."""
    table = (matrix != 0).numpy()
    found = []
    for first in range(0, len(table), side):
        used = np.flatnonzero(table[first : first + side].any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
        found.append((slice(first, min(first + side, len(table))), columns))
    return found


def _coordinates(affine: Tensor, size: Sequence[int], displacement: Tensor | None = None) -> list[Tensor]:
    """D tensors (B, *size): where each voxel of a grid of `size` lies on the other side of the affine."""
    dims = len(size)
    steps = [torch.arange(side, device=affine.device, dtype=affine.dtype) for side in size]
    result = []
    for axis in range(affine.shape[1]):
        total = affine[:, axis, -1].view(-1, *[1] * dims)
        # From the last axis: only the last sum is as large as the grid.
        for other in reversed(range(dims)):
            total = total + affine[:, axis, other].view(-1, *[1] * dims) * steps[other].view(-1, *[1] * (dims - 1 - other))
        result.append(total if displacement is None else total + displacement[:, axis])
    return result


def _sample(images: Tensor, coordinates: Sequence[Tensor]) -> Tensor:
    """`images` (B, C, *crop) at `coordinates` (D of (B, *size))."""
    scaled = [2 / max(side - 1, 1) * c - 1 for c, side in zip(coordinates, images.shape[2:], strict=True)]
    if images.device.type == "cpu" and images.dtype == torch.float32 and len(scaled) == 2:
        grid = _pairs(scaled[1], scaled[0])
    else:
        grid = torch.stack(scaled[::-1], dim=-1).to(images.dtype)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _pairs(first: Tensor, second: Tensor) -> Tensor:
    """(..., 2): a complex number is two real ones, and is made six times faster than they are stacked."""
    return torch.view_as_real(torch.complex(first, second))


def _anywhere(image: Tensor, affine: Tensor, sides: tuple[int, ...], displacement: Tensor | None) -> Tensor:
    """One sample (1, C, *crop) wherever affine and displacement lead.

    torch samples planes several times faster than volumes. So a volume is one plane with its layers below each other, sampled in a
    layer and in the next one at once, as two channels, between which is interpolated; in slabs that stay in the processor's cache.
    """
    size = tuple(image.shape[2:])
    if len(size) == 2 or size[0] == 1 or image.dtype != torch.float32:
        return _sample(image, _coordinates(affine, sides, displacement))
    layers, height, width = size
    rows = (layers - 1) * height
    both = _with_next_layer(image)
    # Rows and columns as torch counts them in a plane, from -1 to 1.
    steps = [1.0, 2 / max(rows - 1, 1), 2 / max(width - 1, 1)]
    scale, start = (torch.tensor(one).view(1, 3, 1) for one in (steps, [0.0, -1.0, -1.0]))
    linear = affine * scale + torch.cat([torch.zeros(1, 3, 3), start], dim=2)
    planes = _coordinates(linear[..., 1:], sides[1:])
    slabs = []
    for first in range(0, sides[0], SLAB):
        number = torch.arange(first, min(first + SLAB, sides[0])).view(1, -1, 1, 1)
        layer, row, column = (plane.unsqueeze(1) + linear[:, axis, 0] * number for axis, plane in enumerate(planes))
        if displacement is not None:
            part = displacement[:, :, first : first + SLAB]
            layer, row, column = (one.add_(part[:, axis], alpha=steps[axis]) for axis, one in enumerate((layer, row, column)))
        layer = layer.clamp_(0, layers - 1)
        above = layer.floor().clamp_(max=layers - 2)
        row = row.clamp_(-1, (height - 1) * steps[1] - 1).add_(above, alpha=height * steps[1])
        grid = _pairs(column, row).view(1, -1, sides[2], 2)
        pair = F.grid_sample(both, grid, padding_mode="border", align_corners=True).view(1, 2, -1, *layer.shape[1:])
        slabs.append(torch.lerp(pair[:, 0], pair[:, 1], layer.sub_(above).unsqueeze(1)))
    return torch.cat(slabs, dim=2)


def _with_next_layer(image: Tensor) -> Tensor:
    """(1, 2 C, (layers - 1) * height, width): the layers below each other, and beside each its next one."""
    _, channels, layers, height, width = image.shape
    if channels == 1 and image.is_contiguous() and not (torch.is_grad_enabled() and image.requires_grad):
        return image.as_strided((1, 2, (layers - 1) * height, width), (0, height * width, width, 1), image.storage_offset())
    return torch.cat([image[:, :, :-1], image[:, :, 1:]], dim=1).view(1, 2 * channels, -1, width)
