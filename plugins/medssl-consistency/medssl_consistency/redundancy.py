"""The losses `vicreg` and `barlow`: views agree, and the features of an embedding differ from each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Compares, ConsistencyLoss, Needs, NetworkInfo, Views
from medssl.learn.ops import gather
from medssl_consistency.projectors import mlp, need_two


class VICReg(ConsistencyLoss):
    """Invariance, variance and covariance of the embeddings of two views (Bardes, Ponce and LeCun, ICLR 2022).

    Weights 25, 25 and 1 as in the paper, whose expander has three layers of 8192; here 512. Variance and covariance are taken
    over the batch of all ranks; small batches estimate them badly, and one with fewer crops than features has dependent ones.
    """

    name: ClassVar[str] = "vicreg"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings"})
    compares: ClassVar[Compares] = "batch"
    citation: ClassVar[str] = "Bardes, Ponce and LeCun, VICReg: variance-invariance-covariance regularization, ICLR 2022"
    suite: ClassVar[dict[str, Any]] = {"options": {"width": 16}}

    class Options(BaseOptions):
        """What the three parts count, and the expander."""

        invariance: float = Field(default=25.0, ge=0, le=1000)
        """What the squared difference of two views counts."""
        variance: float = Field(default=25.0, ge=0, le=1000)
        """What a feature counts whose standard deviation over the batch is below 1."""
        covariance: float = Field(default=1.0, ge=0, le=1000)
        """What two features count that vary together."""
        width: int = Field(default=512, ge=2, le=8192)
        """Of each of the three layers of the expander."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.projector = mlp(network.embedding_width, *[self.options.width] * 3)

    def forward(self, views: Views) -> Tensor:
        """(B,) mean over pairs of views; what belongs to the batch is the same for every sample."""
        need_two(views, self.name, "takes variances over the batch")
        return over_pairs(views, self.projector, self._of)

    def _of(self, one: Tensor, other: Tensor) -> Tensor:
        value = self.options.invariance * (one - other).square().mean(dim=1)
        for everyone in (gather(one), gather(other)):
            centred = everyone - everyone.mean(dim=0)
            covariance = centred.mT @ centred / (len(centred) - 1)
            spread = (covariance.diagonal() + 1e-4).sqrt()
            value = value + self.options.variance / 2 * F.relu(1 - spread).mean()
            together = covariance.square().sum() - covariance.diagonal().square().sum()
            value = value + self.options.covariance * together / len(covariance)
        return value


class BarlowTwins(ConsistencyLoss):
    """The correlation of the features of two views is the identity (Zbontar et al., ICML 2021).

    Weight 0.005 off the diagonal, as in the paper, whose projector has three layers of 8192; here 512. Correlations are taken over
    the batch of all ranks.
    """

    name: ClassVar[str] = "barlow"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings"})
    compares: ClassVar[Compares] = "batch"
    citation: ClassVar[str] = "Zbontar et al., Barlow twins: self-supervised learning via redundancy reduction, ICML 2021"

    class Options(BaseOptions):
        """What redundancy counts, and the projector."""

        redundancy: float = Field(default=0.005, ge=0, le=10)
        """What a squared correlation of two different features counts beside that of a feature with itself."""
        width: int = Field(default=512, ge=2, le=8192)
        """Of each of the three layers of the projector."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.projector = mlp(network.embedding_width, *[self.options.width] * 3, last_norm=True)

    def forward(self, views: Views) -> Tensor:
        """(B,) mean over pairs of views, the same for every sample."""
        need_two(views, self.name, "takes correlations over the batch")
        return over_pairs(views, self.projector, self._of)

    def _of(self, one: Tensor, other: Tensor) -> Tensor:
        first, second = gather(one), gather(other)
        correlation = first.mT @ second / len(first)
        same = correlation.diagonal()
        different = correlation.square().sum() - same.square().sum()
        return ((same - 1).square().sum() + self.options.redundancy * different).expand(len(one))


def over_pairs(views: Views, project: Callable[[Tensor], Tensor], of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(B,) the mean of a symmetric loss over all pairs of views."""
    projected = [project(embedding) for embedding in views.embeddings]
    return torch.stack([of(one, other) for one, other in combinations(projected, 2)]).mean(dim=0)
