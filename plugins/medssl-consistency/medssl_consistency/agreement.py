"""The loss `agreement`: two views of a crop should get the same answers."""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import ConsistencyLoss, Needs, Views
from medssl.errors import ConfigError
from medssl.learn.ops import masked_mean
from medssl_consistency.answers import class_axis, shown_of


class Agreement(ConsistencyLoss):
    """Penalty for answering two views of the same crop differently (Sajjadi et al., NeurIPS 2016; Laine and Aila, ICLR 2017).

    Dense answers arrive on the grid of the crops, and only voxels that every view shows are compared. Several tasks count
    equally, as do all pairs of views.
    """

    name: ClassVar[str] = "agreement"
    needs: ClassVar[frozenset[Needs]] = frozenset({"answers"})
    citation: ClassVar[str] = (
        "Sajjadi, Javanmardi and Tasdizen, Regularization with stochastic transformations and perturbations for deep semi-supervised "
        "learning, NeurIPS 2016; Laine and Aila, Temporal ensembling for semi-supervised learning, ICLR 2017"
    )

    class Options(BaseOptions):
        """How two answers are compared."""

        distance: Literal["l2", "kl", "cosine"] = "l2"
        """l2: mean squared difference (of values, or of probabilities); kl: symmetric Kullback-Leibler divergence, for answers that
        are classes; cosine: one minus the cosine of the whole answers, which ignores their scale."""

    options: Options

    def forward(self, views: Views) -> Tensor:
        """(B,) mean over tasks and pairs of views."""
        terms = []
        for task, answers in views.answers.items():
            kind = views.kinds[task]
            if self.options.distance == "kl" and kind != "logits":
                raise ConfigError(
                    f"agreement with distance kl compares classes, and '{task}' answers with values. Set distance: l2 or cosine."
                )
            for one, other in combinations(answers, 2):
                terms.append(self._distance(one, other, shown_of(views, one), classes=kind == "logits"))
        return torch.stack(terms).mean(dim=0)

    def _distance(self, one: Tensor, other: Tensor, shown: Tensor | None, classes: bool) -> Tensor:
        """(B,) distance of two answers (B, K, ...); classes lie along K (the last axis where there is no space)."""
        if self.options.distance == "kl":
            return _symmetric_kl(one, other, shown)
        if classes:
            one, other = one.softmax(dim=class_axis(one)), other.softmax(dim=class_axis(other))
        if self.options.distance == "l2":
            return masked_mean((one - other).square(), shown)
        kept = torch.ones_like(one) if shown is None else shown.to(one.dtype).expand_as(one)
        # The cosine of an answer that is 0 everywhere is undefined; F.cosine_similarity calls it 0 and its gradient stays finite.
        distance = 1 - F.cosine_similarity((one * kept).flatten(1), (other * kept).flatten(1), dim=1)
        return distance * kept.flatten(1).any(dim=1)


def _symmetric_kl(one: Tensor, other: Tensor, shown: Tensor | None) -> Tensor:
    axis = class_axis(one)
    log_p, log_q = one.log_softmax(dim=axis), other.log_softmax(dim=axis)
    divergence = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=axis, keepdim=True) / 2
    return masked_mean(divergence, shown)
