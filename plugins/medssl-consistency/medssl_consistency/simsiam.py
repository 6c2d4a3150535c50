"""The loss `simsiam`: a small predictor turns one view's embedding into the other's."""

from __future__ import annotations

from itertools import permutations
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Compares, ConsistencyLoss, Needs, NetworkInfo, Views
from medssl.errors import DataError


class SimSiam(ConsistencyLoss):
    """Negative cosine between the predicted and the (held still) projection of another view (Chen and He, CVPR 2021).

    From -1 (the same) to 1. As in the paper, projections are normalised over the batch, so a sample's loss depends on its batch
    and a batch needs two samples at least. This is what holds off collapse, more than predictor and stop-gradient: with
    norms over each sample's own features instead, embeddings of small encoders collapse within a few hundred steps.
    """

    name: ClassVar[str] = "simsiam"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings"})
    compares: ClassVar[Compares] = "batch"
    citation: ClassVar[str] = "Chen and He, Exploring simple Siamese representation learning, CVPR 2021"

    class Options(BaseOptions):
        """Widths of the projector and of the predictor's bottleneck."""

        width: int = Field(default=256, ge=2, le=8192)
        """Outputs of the projector, and of the predictor."""
        bottleneck: int = Field(default=64, ge=1, le=8192)
        """Hidden width of the predictor; narrower than `width`."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        width, bottleneck = self.options.width, self.options.bottleneck
        self.projector = nn.Sequential(
            nn.Linear(network.embedding_width, width), _norm(width), nn.ReLU(), nn.Linear(width, width), _norm(width, affine=False)
        )
        self.predictor = nn.Sequential(nn.Linear(width, bottleneck), _norm(bottleneck), nn.ReLU(), nn.Linear(bottleneck, width))

    def forward(self, views: Views) -> Tensor:
        """(B,) mean over ordered pairs of views of -cos(predictor(projection), held projection of the other)."""
        if len(views.crops) < 2:
            raise DataError("simsiam normalises over the batch and needs at least 2 crops on each device. Set data.batch to 2 or more.")
        projections = [self.projector(embedding) for embedding in views.embeddings]
        predictions = [self.predictor(projection) for projection in projections]
        pairs = list(permutations(range(len(projections)), 2))
        cosines = [F.cosine_similarity(predictions[one], projections[other].detach(), dim=1) for one, other in pairs]
        return -torch.stack(cosines).mean(dim=0)


def _norm(width: int, affine: bool = True) -> nn.BatchNorm1d:
    """Over the batch, without running averages: forward stays free of side effects, and nothing here runs at test time."""
    return nn.BatchNorm1d(width, affine=affine, track_running_stats=False)
