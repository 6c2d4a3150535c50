"""Answers about views, pooled, by part or dense."""

from __future__ import annotations

from torch import Tensor

from medssl.contracts import Views


def class_axis(answer: Tensor) -> int:
    """Dense (B, K, *size) and pooled (B, K) answers have their classes at 1; answers by part (B, P, K) have them last."""
    return 2 if answer.dim() == 3 else 1


def shown_of(views: Views, answer: Tensor) -> Tensor | None:
    """(B, 1, *size) the voxels of a dense answer that every view shows; None: all of any other answer counts."""
    dense = answer.dim() == views.crops.images.dim() and answer.shape[2:] == views.crops.images.shape[2:]
    return views.shown if dense else None
