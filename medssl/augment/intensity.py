"""Batched intensity operations. Amounts are shares of each image's own standard deviation or range, so they need no units."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from medssl.augment.spatial import product_along
from medssl.augment.splines import between_points
from medssl.contracts import Draw

IN_CACHE = 2**16
"""Voxels that are worked on at a time where several operations follow each other."""


def spread(images: Tensor) -> Tensor:
    """(B, C, 1, ...) standard deviation of each channel of each image."""
    flat = images.flatten(2)
    # A norm is four times faster than torch's running variance and, on centred values, as exact; one image at a time stays in the cache.
    norms = [torch.linalg.vector_norm(one - one.mean(dim=1, keepdim=True), dim=1) for one in flat]
    deviation: Tensor = torch.stack(norms) / flat.shape[2] ** 0.5
    return deviation.view(*images.shape[:2], *[1] * (images.dim() - 2))


def contrast(images: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Stretch each image about its mean by `gain` (B,) and shift it by `bias` (B,) standard deviations."""
    dims = images.dim()
    mean = images.mean(dim=tuple(range(2, dims)), keepdim=True)
    return (images - mean) * _column(gain, dims) + mean + _column(bias, dims) * spread(images)


def gamma(images: Tensor, power: Tensor) -> Tensor:
    """Raise each channel, scaled to 0 .. 1 by its own range, to `power` (B,) and scale it back; a constant channel stays."""
    axes = tuple(range(2, images.dim()))
    low, high = images.amin(dim=axes, keepdim=True), images.amax(dim=axes, keepdim=True)
    width = high - low
    unit = (images - low) / width.clamp_min(torch.finfo(images.dtype).tiny)
    return torch.where(width > 0, unit ** _column(power, images.dim()) * width + low, images)


def invert(images: Tensor, chosen: Tensor) -> Tensor:
    """Let bright and dark change places within the range of each channel, in the samples `chosen` (B,) bool."""
    axes = tuple(range(2, images.dim()))
    turned = images.amin(dim=axes, keepdim=True) + images.amax(dim=axes, keepdim=True) - images
    return torch.where(_column(chosen, images.dim()), turned, images)


def add_noise(images: Tensor, noise: Tensor, amount: Tensor) -> Tensor:
    """Add `noise` (B, C, *size; standard normal) times `amount` (B,) standard deviations of each image."""
    return torch.addcmul(images, noise, _column(amount, images.dim()) * spread(images))


def add_normal_noise(images: Tensor, draw: Draw, amount: Tensor) -> Tensor:
    """Add noise of `amount` (B,) standard deviations of each image: one of 65,536 equally likely values of the normal distribution a voxel.

    The largest lies 4.2 standard deviations out. It costs a third of `draw.normal` and `add_noise`.
    """
    seeds = draw.on_cpu().integers(0, 2**63 - 1, 1)[:, 0].tolist()
    if images.device.type != "cpu":
        # Amounts that lie on the device are not read: a step would wait for them.
        noise = torch.stack([_normals(np.random.SFC64(seed), images[0].numel()).view(images.shape[1:]) for seed in seeds])
        return add_noise(images, noise.to(images), amount)
    scales = (_column(amount, images.dim()) * spread(images)).flatten(1).tolist()
    noisy = torch.empty_like(images, memory_format=torch.contiguous_format)
    for one, image, own, seed in zip(noisy, images.detach(), scales, seeds, strict=True):
        bits = np.random.SFC64(seed)
        for made, channel, scale in zip(one, image, own, strict=True):
            if not scale:
                made.copy_(channel)
                continue
            for part, source in zip(*(torch.split(values.reshape(-1), IN_CACHE) for values in (made, channel)), strict=True):
                torch.add(source, _normals(bits, len(part)).to(part), alpha=scale, out=part)
    return noisy if not images.requires_grad else images + (noisy - images.detach())


def _normals(bits: np.random.SFC64, count: int) -> Tensor:
    return _normal_values().index_select(0, torch.from_numpy(_words(bits, count).astype(np.int32)))


def _words(bits: np.random.SFC64, count: int) -> NDArray[np.uint16]:
    """The next numbers of 16 bits."""
    raw: NDArray[np.uint64] = bits.random_raw(-(-count // 4))
    return raw.view(np.uint16)[:count]


@lru_cache(maxsize=1)
def _normal_values() -> Tensor:
    values = ndtri((np.arange(2**16) + 0.5) / 2**16)
    return torch.from_numpy((values / values.std()).astype(np.float32))


def fill_uniform(out: Tensor, seed: int, low: float, high: float) -> None:
    """Fill `out` with noise between `low` and `high`: one of 65,536 equally likely values, evenly spaced, a voxel. A function of `seed`.

    It costs a third of `torch.rand`.
    """
    bits, step = np.random.SFC64(seed), (high - low) / 2**16
    middle = torch.tensor((low + high + step) / 2, dtype=out.dtype, device=out.device)
    for part in torch.split(out, _in_cache(out)):
        whole = torch.from_numpy(_words(bits, part.numel()).view(np.int16)).view(part.shape)
        torch.add(middle, whole.to(part), alpha=step, out=part)


def look_up(values: Tensor, table: Tensor, low: float, high: float, out: Tensor) -> None:
    """Each of `values`, all of which lie in `low` .. `high`, through `table` (K,), whose entries are evenly spaced over these, into `out`.

    The nearest entry at or below counts: with thousands of them one look-up is as good as interpolation and costs a quarter.
    """
    # Less the lowest first, and short of K, so that no rounding leads beyond the table.
    scale = (len(table) - 0.01) / (high - low) if high > low else 0.0
    for part, made in zip(*(torch.split(one, _in_cache(values)) for one in (values, out)), strict=True):
        index = part.sub(low).mul_(scale).to(torch.int32)
        made.copy_(table.index_select(0, index.view(-1)).view(part.shape))


def _in_cache(values: Tensor) -> int:
    """How many layers along the first axis stay in a processor's cache while several operations pass over them."""
    return max(1, IN_CACHE * len(values) // max(values.numel(), 1))


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur by `sigma` (B,) voxels, as one product with a banded matrix an axis; borders keep their weight."""
    for axis in range(2, images.dim()):
        voxels = torch.arange(images.shape[axis], device=images.device, dtype=images.dtype)
        distance = (voxels[:, None] - voxels) / sigma.to(images.dtype).clamp_min(1e-3).view(-1, 1, 1)
        # Tails are cut at 4 sigma: below it they are denormal numbers, which cost ten times the rest.
        weights = torch.where(distance.abs() <= 4, torch.exp(-0.5 * distance.clamp(-4, 4) ** 2), 0.0)
        weights = weights / weights.sum(dim=2, keepdim=True)
        images = product_along(images, axis, weights)
    return images


def lower_resolution(images: Tensor, factor: Tensor) -> Tensor:
    """What is left of voxels that were `factor` (B, D; 1 or more) times as long along each axis: averaged, and interpolated back."""
    for axis in range(2, images.dim()):
        side = images.shape[axis]
        images = product_along(images, axis, _coarse_and_back(side, factor[:, axis - 2].to(images.dtype), images.device))
    return images


def _coarse_and_back(side: int, factor: Tensor, device: torch.device) -> Tensor:
    """(B, side, side): triangles as wide as a coarse voxel at the coarse centres, then linear between these."""
    step = factor.clamp(1, side).view(-1, 1, 1)
    number = torch.arange(side, device=device, dtype=factor.dtype)
    # As many centres as fit, about the middle of the side; those beyond it are never asked for.
    count = torch.floor((side - 1) / step) + 1
    centre = (number - (count - 1) / 2) * step + (side - 1) / 2
    down = (1 - (number - centre.mT).abs() / step).clamp_min(0)
    down = down / down.sum(dim=2, keepdim=True).clamp_min(torch.finfo(factor.dtype).tiny)
    where = ((number.view(1, -1, 1) - (side - 1) / 2) / step + (count - 1) / 2).clamp_min(0).minimum(count - 1)
    up = (1 - (where - number).abs()).clamp_min(0)
    return up @ down


def curve(images: Tensor, heights: Tensor) -> Tensor:
    """Values through the curve that goes straight between `heights` (B, K; rising from 0 to 1), evenly spaced over each channel's range."""
    axes = tuple(range(2, images.dim()))
    low, high = images.amin(dim=axes, keepdim=True), images.amax(dim=axes, keepdim=True)
    width = (high - low).clamp_min(torch.finfo(images.dtype).tiny)
    pieces = heights.shape[1] - 1
    place = (images - low) * (pieces / width)
    piece = place.floor().clamp_(0, pieces - 1)
    index = piece.long().flatten(1)
    below, above = (heights.gather(1, index + step).view_as(images) for step in (0, 1))
    return torch.lerp(below, above, place - piece) * (high - low) + low


def bias_field(images: Tensor, points: Tensor) -> Tensor:
    """MR's smooth gain over the image: e to the power of the cubic spline of `points` (B, 1, *grid), on what exceeds the darkest value."""
    gain = between_points(points.to(images.dtype), images.shape[2:]).exp()
    low = images.amin(dim=tuple(range(2, images.dim())), keepdim=True)
    return (images - low) * gain + low


def drop_boxes(images: Tensor, corner: Tensor, size: Tensor) -> Tensor:
    """Each image with its mean in the boxes at `corner` (B, N, D) of `size` (B, N, D) voxels."""
    return drop_boxes_(images.clone(), corner, size)


def drop_boxes_(images: Tensor, corner: Tensor, size: Tensor) -> Tensor:
    """As `drop_boxes`, in the images themselves."""
    mean = images.mean(dim=tuple(range(2, images.dim())), keepdim=True)
    first, last = corner.long().tolist(), (corner + size).long().tolist()
    for image, own, starts, ends in zip(images, mean, first, last, strict=True):
        for start, end in zip(starts, ends, strict=True):
            image[(slice(None), *(slice(max(a, 0), max(b, 0)) for a, b in zip(start, end, strict=True)))] = own
    return images


def shuffle_boxes(images: Tensor, corner: Tensor, side: int, order: Tensor) -> Tensor:
    """Each image with the voxels of its boxes of `side` voxels at `corner` (B, N, D; inside it) in another `order` (B, side ** D)."""
    return shuffle_boxes_(images.clone(), corner, side, order)


def shuffle_boxes_(images: Tensor, corner: Tensor, side: int, order: Tensor) -> Tensor:
    """As `shuffle_boxes`, in the images themselves."""
    for image, places, permutation in zip(images, corner.tolist(), order, strict=True):
        for one in places:
            box = image[(slice(None), *(slice(first, first + side) for first in one))]
            box.copy_(box.flatten(1)[:, permutation].view_as(box))
    return images


def _column(values: Tensor, dims: int) -> Tensor:
    return values.view(-1, *[1] * (dims - 1))
