"""The loss `simsiam`: a small predictor turns one view's embedding into the other's."""

from __future__ import annotations

from itertools import permutations
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Compares, ConsistencyLoss, Needs, NetworkInfo, Views
from medssl_consistency.projectors import mlp, need_two


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
        self.projector = mlp(network.embedding_width, width, width, last_norm=True)
        self.predictor = mlp(width, bottleneck, width)

    def forward(self, views: Views) -> Tensor:
        """(B,) mean over ordered pairs of views of -cos(predictor(projection), held projection of the other)."""
        need_two(views, self.name, "normalises over the batch")
        projections = [self.projector(embedding) for embedding in views.embeddings]
        predictions = [self.predictor(projection) for projection in projections]
        pairs = list(permutations(range(len(projections)), 2))
        cosines = [F.cosine_similarity(predictions[one], projections[other].detach(), dim=1) for one, other in pairs]
        return -torch.stack(cosines).mean(dim=0)
