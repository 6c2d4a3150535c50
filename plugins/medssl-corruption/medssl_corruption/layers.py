"""Small convolutional layers of these tasks' own."""

from __future__ import annotations

from typing import Any

from torch import nn


def conv(dims: int) -> type[Any]:
    """The convolution of 2 or 3 dimensions."""
    return nn.Conv2d if dims == 2 else nn.Conv3d


def block(dims: int, inputs: int, outputs: int, stride: int | tuple[int, ...] = 1) -> nn.Sequential:
    """A 3-wide convolution, normalised in groups, and ReLU."""
    groups = next(count for count in (8, 4, 2, 1) if outputs % count == 0)
    return nn.Sequential(conv(dims)(inputs, outputs, 3, stride=stride, padding=1), nn.GroupNorm(groups, outputs), nn.ReLU())


def upward(dims: int, inputs: int, outputs: int, scale: int | tuple[int, ...] = 2) -> nn.Sequential:
    """Twice (or `scale` times) the size, then a block."""
    return nn.Sequential(nn.Upsample(scale_factor=scale, mode="bilinear" if dims == 2 else "trilinear"), block(dims, inputs, outputs))
