"""The loss `byol`: predict the teacher's embedding of another view."""

from __future__ import annotations

from itertools import permutations
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import TEACHER_MOMENTUM, Compares, ConsistencyLoss, Needs, NetworkInfo, Views
from medssl_consistency.projectors import mlp, need_two
from medssl_consistency.teaching import rising, taught


class BYOL(ConsistencyLoss):
    """2 - 2 cos between the predicted and the teacher's projection of another view (Grill et al., NeurIPS 2020).

    There are no negatives. As in the paper projector and predictor are normalised over the batch (of all ranks), which is part
    of what holds off collapse, and the teacher's momentum rises from 0.996 to 1; widths are those of smaller encoders (the
    paper: 4096 and 256).
    """

    name: ClassVar[str] = "byol"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings", "teacher"})
    compares: ClassVar[Compares] = "batch"
    teacher_follows: ClassVar[tuple[str, ...]] = ("projector",)
    citation: ClassVar[str] = "Grill et al., Bootstrap your own latent: a new approach to self-supervised learning, NeurIPS 2020"

    class Options(BaseOptions):
        """Teacher and projector."""

        momentum: float = Field(default=TEACHER_MOMENTUM, ge=0, le=1)
        """Of the teacher at the start; it rises to 1 along half a cosine."""
        hidden: int = Field(default=512, ge=2, le=8192)
        """Hidden width of projector and predictor."""
        width: int = Field(default=128, ge=2, le=8192)
        """Outputs of both."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        hidden, width = self.options.hidden, self.options.width
        self.projector = mlp(network.embedding_width, hidden, width)
        self.predictor = mlp(width, hidden, width)

    def forward(self, views: Views) -> Tensor:
        """(B,) mean over ordered pairs of views."""
        need_two(views, self.name, "normalises over the batch")
        predictions = [self.predictor(self.projector(embedding)) for embedding in views.embeddings]
        targets = taught(views, "projector")
        pairs = permutations(range(len(predictions)), 2)
        return torch.stack([2 - 2 * F.cosine_similarity(predictions[one], targets[other], dim=1) for one, other in pairs]).mean(dim=0)

    def teacher_momentum(self, progress: float) -> float:
        """Along half a cosine to 1."""
        return rising(self.options.momentum, progress)
