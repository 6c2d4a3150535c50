"""Batched intensity operations. Amounts are shares of each image's own standard deviation or range, so they need no units."""

from __future__ import annotations

import torch
from torch import Tensor

from medssl.augment.spatial import product_along


def spread(images: Tensor) -> Tensor:
    """(B, C, 1, ...) standard deviation of each channel of each image."""
    flat = images.flatten(2)
    centred = flat - flat.mean(dim=2, keepdim=True)
    # A norm is four times faster than torch's running variance and, on centred values, as exact.
    deviation: Tensor = torch.linalg.vector_norm(centred, dim=2) / flat.shape[2] ** 0.5
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
    return images + noise * _column(amount, images.dim()) * spread(images)


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


def _column(values: Tensor, dims: int) -> Tensor:
    return values.view(-1, *[1] * (dims - 1))
