"""The small networks between an embedding and a loss, and their options."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field
from torch import Tensor, nn

from medssl.config import BaseOptions
from medssl.contracts import Views
from medssl.errors import DataError
from medssl.learn.ops import gather, own_rows


class ContrastOptions(BaseOptions):
    """Temperature and projector of a loss that finds an embedding among others."""

    temperature: float = Field(default=0.2, ge=0.001, le=100)
    """Cosines are divided by it; low ones let the most similar negatives decide."""
    hidden: int = Field(default=256, ge=2, le=8192)
    """Hidden width of the projector, and of the predictor where there is one."""
    width: int = Field(default=128, ge=2, le=8192)
    """Width in which views are compared."""


class BatchNorm(nn.BatchNorm1d):
    """Over the batch of all ranks, without running averages: `forward` stays free of side effects, and two ranks make what one would."""

    def __init__(self, width: int, affine: bool = True) -> None:
        super().__init__(width, affine=affine, track_running_stats=False)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, width) normalised."""
        return own_rows(super().forward(gather(rows)))


def mlp(*widths: int, norm: bool = True, last_norm: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between, normalised over the batch or not; with `last_norm` after the last too, without scale and shift."""
    layers: list[nn.Module] = []
    steps = list(pairwise(widths))
    for place, (inputs, outputs) in enumerate(steps):
        last = place == len(steps) - 1
        normed = last_norm if last else norm
        layers.append(nn.Linear(inputs, outputs, bias=not normed))
        if normed:
            layers.append(BatchNorm(outputs, affine=not last))
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def need_two(views: Views, name: str, why: str) -> None:
    """Raise `DataError` where a loss that compares crops is given one."""
    if len(views.crops) < 2:
        raise DataError(f"{name} {why} and needs at least 2 crops on each device. Set data.batch to 2 or more.")
