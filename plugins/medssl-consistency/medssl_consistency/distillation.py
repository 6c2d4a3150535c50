"""What `dino` and `ibot` share: prototypes, and answers that are distributions over them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STUDENT = 0.1
"""The student's temperature in both papers."""


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


def warmed(first: float, last: float, progress: float, over: float = 0.3) -> float:
    """From `first` to `last` in a straight line over the first part of the run."""
    return first + (last - first) * min(1.0, progress / over)
