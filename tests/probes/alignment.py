"""A consistency loss on embeddings that sees one sample at a time."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import ConsistencyLoss, Needs, NetworkInfo, Views


class Alignment(ConsistencyLoss):
    """Predict one view's held embedding from the other (Chen and He, CVPR 2021, without batch statistics)."""

    name: ClassVar[str] = "alignment"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings"})

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        width = network.embedding_width
        self.predictor = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, views: Views) -> Tensor:
        """(B,) mean over both directions, from 0 (the same) to 2."""
        one, other = views.embeddings
        pairs = ((one, other), (other, one))
        return torch.stack([1 - F.cosine_similarity(self.predictor(a), b.detach(), dim=1) for a, b in pairs]).mean(dim=0)
