"""The small networks between an embedding and a loss."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from medssl.contracts import Views
from medssl.errors import DataError
from medssl.learn.ops import gather, own_rows


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
