"""Bringing the answers of views to one grid, and knowing which voxels can be compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medssl.augment import invert, is_identity, resample, shown_by


def on_crops(answer: Tensor, affine: Tensor) -> Tensor:
    """(B, K, *size) on the grid of the crops, from a dense answer on the grid of the view; differentiable."""
    return resample(answer, invert(affine))


def shown_by_all(affines: Sequence[Tensor], size: Sequence[int]) -> Tensor | None:
    """(B, 1, *size) bool: the voxels of the crops that every view shows; None where all do."""
    moved = [affine for affine in affines if not is_identity(affine)]
    if not moved:
        return None
    return torch.stack([shown_by(affine, size) for affine in moved]).all(dim=0)
