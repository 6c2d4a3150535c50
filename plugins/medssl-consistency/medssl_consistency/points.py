"""Points of a crop, and what the feature maps of its views hold there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medssl.augment import invert
from medssl.contracts import Views
from medssl.learn.ops import read_at


@dataclass(frozen=True)
class Points:
    """P points of each crop, found again in every view."""

    features: tuple[Tensor, ...]
    """V x (B, P, F)."""
    shown: Tensor
    """(B, P) bool: whether every view shows the point."""
    place: Tensor
    """(B, P, 3) mm in the volume."""


def corresponding(views: Views, count: int) -> Points:
    """About `count` points of each crop, as many along every axis, in the middle of as many equal cells.

    No numbers are drawn: crops and views lie anywhere already.
    """
    size, device = views.crops.size, views.affines.device
    each = max(2, int(count ** (1 / len(size)) + 1e-6))
    axes = [(torch.arange(each, device=device) + 0.5) * (side / each) - 0.5 for side in size]
    lattice = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    lattice = torch.cat([lattice, torch.ones_like(lattice[:1])])
    sides = torch.tensor(size, device=device)
    features = []
    shown = torch.ones((len(views.crops), lattice.shape[1]), dtype=torch.bool, device=device)
    for feature_map, affine in zip(views.feature_maps, views.affines, strict=True):
        voxels = (invert(affine) @ lattice).mT
        shown &= ((voxels >= -0.5) & (voxels <= sides - 0.5)).all(dim=2)
        features.append(read_at(feature_map, voxels, size))
    return Points(tuple(features), shown, (views.crops.affine @ lattice).mT)
