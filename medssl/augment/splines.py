"""Smooth fields from a few points: displacements and gains that change slowly over an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medssl.augment.spatial import product_along

FOLDS = 0.4
"""Displacements up to this share of the distance of the points fold no tissue over itself, in 2D and 3D (Choi and Lee, "Injectivity
conditions of 2D and 3D uniform cubic B-spline functions", Graphical Models 62, 2000)."""


def points_for(size: Sequence[int], step: float) -> tuple[int, ...]:
    """How many points an image of `size` takes, `step` voxels apart, those that lie around it included."""
    return tuple(int((side - 1) / step) + 4 for side in size)


def between_points(points: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, *size): the uniform cubic B-spline of `points` (B, C, *grid), the outermost of which lie beyond the image."""
    for axis, side in enumerate(size, 2):
        points = product_along(points, axis, _weights(side, points.shape[axis]).to(points).expand(points.shape[0], -1, -1))
    return points


def _weights(side: int, count: int) -> Tensor:
    """(side, count)"""
    where = 1 + torch.arange(side, dtype=torch.float64) * ((count - 3) / side)
    distance = (where[:, None] - torch.arange(count)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far)
