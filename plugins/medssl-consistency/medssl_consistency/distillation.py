"""What `dino` and `ibot` share: prototypes, and answers that are distributions over them."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import TEACHER_MOMENTUM

STUDENT = 0.1
"""The student's temperature in both papers."""

WARMING = 0.3
"""Share of the run over which the teacher's temperature moves from the first to the last."""


class DistillationOptions(BaseOptions):
    """The teacher's temperatures and momentum, and where the prototypes lie."""

    bottleneck: int = Field(default=128, ge=2, le=8192)
    """Width in which the prototypes lie."""
    first: float = Field(default=0.04, gt=0, le=1)
    """The teacher's temperature at the start."""
    last: float = Field(default=0.07, gt=0, le=1)
    """The teacher's temperature after 30 % of the run."""
    momentum: float = Field(default=TEACHER_MOMENTUM, ge=0, le=1)
    """Of the teacher at the start; it rises to 1 along half a cosine."""

    def temperature(self, progress: float) -> float:
        """The teacher's: from `first` to `last` in a straight line over the first part of the run."""
        return self.first + (self.last - self.first) * min(1.0, progress / WARMING)


class Prototypes(nn.Module):
    """Cosines of a projected embedding with learned directions: DINO's head, whose last layer is weight-normalised."""

    def __init__(self, inputs: int, hidden: int, bottleneck: int, count: int) -> None:
        super().__init__()
        layers = [nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)]
        self.layers = nn.Sequential(*layers)
        self.directions = nn.Parameter(torch.randn(count, bottleneck))

    def forward(self, embeddings: Tensor) -> Tensor:
        """(..., count) from (..., inputs)."""
        return F.linear(F.normalize(self.layers(embeddings), dim=-1), F.normalize(self.directions, dim=1))


def distilled(student: Tensor, teacher: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """(...) cross entropy of the student's distribution over (..., K) prototypes with the teacher's, centred and sharpened."""
    target = ((teacher.detach() - centre) / temperature).softmax(dim=-1)
    return -(target * (student / STUDENT).log_softmax(dim=-1)).sum(dim=-1)
