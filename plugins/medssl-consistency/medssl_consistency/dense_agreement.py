"""The loss `dense-agreement`: a voxel has the same features in two views."""

from __future__ import annotations

from itertools import permutations
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Compares, ConsistencyLoss, Needs, NetworkInfo, Views
from medssl.learn.ops import masked_mean
from medssl_consistency.points import corresponding
from medssl_consistency.projectors import mlp


class DenseAgreement(ConsistencyLoss):
    """The features of a voxel in one view predict, with a small predictor, those of the same voxel in another, which are held still.

    SimSiam for voxels, in the manner of PixPro (Xie et al., CVPR 2021), which takes a teacher and all nearby pairs: here pairs are
    exact, since the affine of every view is known, and only points that every view shows count. Norms over all points of the batch
    hold off collapse.
    """

    name: ClassVar[str] = "dense-agreement"
    needs: ClassVar[frozenset[Needs]] = frozenset({"feature_maps"})
    compares: ClassVar[Compares] = "batch"
    citation: ClassVar[str] = (
        "Xie et al., Propagate yourself: exploring pixel-level consistency for unsupervised visual representation learning, CVPR 2021; "
        "Chen and He, Exploring simple Siamese representation learning, CVPR 2021"
    )

    class Options(BaseOptions):
        """How many points, and the projector."""

        points: int = Field(default=512, ge=4, le=100_000)
        """Points of a crop, about."""
        width: int = Field(default=64, ge=2, le=8192)
        """Outputs of the projector, and of the predictor."""
        bottleneck: int = Field(default=32, ge=1, le=8192)
        """Hidden width of the predictor; narrower than `width`."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        width = self.options.width
        self.projector = mlp(max(network.feature_width, 1), width, width, last_norm=True)
        self.predictor = mlp(width, self.options.bottleneck, width)

    def forward(self, views: Views) -> Tensor:
        """(B,) mean over points and ordered pairs of views, from -1 (the same) to 1."""
        found = corresponding(views, self.options.points)
        rows = [self.projector(features.flatten(0, 1)) for features in found.features]
        predicted = [self.predictor(row) for row in rows]
        pairs = permutations(range(len(rows)), 2)
        cosine = torch.stack([F.cosine_similarity(predicted[one], rows[other].detach(), dim=1) for one, other in pairs]).mean(dim=0)
        return masked_mean(-cosine.view(found.shown.shape), found.shown)
