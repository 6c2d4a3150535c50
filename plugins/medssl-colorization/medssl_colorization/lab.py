"""CIE Lab, and bins of its colours."""

from __future__ import annotations

import torch
from torch import Tensor

SRGB = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
"""Linear sRGB to XYZ."""
WHITE = (0.95047, 1.0, 1.08883)
"""D65."""
REACH = 110.0
"""a and b of colours on a screen lie within."""


def lab_of(rgb: Tensor) -> Tensor:
    """(B, 3, *size) L in 0 .. 100 and a, b, of sRGB in 0 .. 1."""
    rgb = rgb.clamp(0, 1)
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix, white = (torch.tensor(values, device=rgb.device, dtype=rgb.dtype) for values in (SRGB, WHITE))
    xyz = (matrix @ linear.flatten(2)) / white[:, None]
    f = torch.where(xyz > 0.008856, xyz.clamp_min(1e-8) ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], dim=1).view(rgb.shape)


def rgb_of(lab: Tensor) -> Tensor:
    """(B, 3, *size) sRGB in 0 .. 1 of L, a and b; what no screen shows is shown as near as it can."""
    flat = lab.flatten(2)
    middle = (flat[:, 0] + 16) / 116
    f = torch.stack([middle + flat[:, 1] / 500, middle, middle - flat[:, 2] / 200], dim=1)
    matrix, white = (torch.tensor(values, device=lab.device, dtype=lab.dtype) for values in (SRGB, WHITE))
    xyz = torch.where(f > 6 / 29, f**3, (f - 16 / 116) / 7.787) * white[:, None]
    linear = (torch.linalg.inv(matrix) @ xyz).clamp(0, 1)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp_min(1e-8) ** (1 / 2.4) - 0.055, 12.92 * linear).view(lab.shape)


def bins_of(ab: Tensor, width: float) -> Tensor:
    """(B, *size) int64 number of the square of a and b in which each colour of (B, 2, *size) lies."""
    place = ((ab + REACH) / width).long().clamp(0, bins_across(width) - 1)
    return place[:, 0] * bins_across(width) + place[:, 1]


def middles_of(bins: Tensor, width: float) -> Tensor:
    """(B, 2, *size) a and b in the middle of the squares with these numbers (B, *size)."""
    across = bins_across(width)
    return torch.stack([bins // across, bins % across], dim=1) * width + width / 2 - REACH


def bins_across(width: float) -> int:
    """Bins along a, and along b."""
    return int(-(-2 * REACH // width))
