"""The loss `uda`: the answer about a changed crop should be the sharpened answer about the crop itself."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from medssl.config import BaseOptions
from medssl.contracts import ConsistencyLoss, Needs, Views
from medssl.errors import ConfigError
from medssl.learn.ops import masked_mean
from medssl_consistency.answers import class_axis, shown_of


class UDA(ConsistencyLoss):
    """KL from the sharpened answer about view 0, held still, to that about every other view (Xie et al., NeurIPS 2020).

    Only where the answer about view 0 is sure, and only voxels that every view shows; what is not sure counts 0 in the mean, as
    in the paper. Sharpening 0.4 and threshold 0.8 are the paper's for images. Its training signal annealing belongs to the
    labelled part; here `ramp` lets this part come in slowly instead. It is for answers that are classes: in fine-tuning with
    `unlabelled` volumes for the segmentation itself.
    """

    name: ClassVar[str] = "uda"
    needs: ClassVar[frozenset[Needs]] = frozenset({"answers"})
    citation: ClassVar[str] = "Xie et al., Unsupervised data augmentation for consistency training, NeurIPS 2020"
    suite: ClassVar[dict[str, Any]] = {"only": "pooled", "options": {"sure": 0.1}}

    class Options(BaseOptions):
        """Which answers count, and how."""

        temperature: float = Field(default=0.4, ge=0.01, le=1)
        """The target's logits are divided by it: below 1 it is surer than the answer was; 1 leaves it as it is."""
        sure: float = Field(default=0.8, ge=0, lt=1)
        """Least probability of the likeliest class for an answer to be a target."""
        ramp: float = Field(default=0.0, ge=0, le=1)
        """Share of the run over which the loss comes in, in a straight line from 0; 0: it counts from the start."""

    options: Options

    def forward(self, views: Views) -> Tensor:
        """(B,) mean over tasks and changed views."""
        terms = []
        for task, (clean, *changed) in views.answers.items():
            if views.kinds[task] != "logits":
                raise ConfigError(f"uda compares classes, and '{task}' answers with values. Take agreement for it.")
            terms += [self._distance(clean, answer, shown_of(views, clean)) for answer in changed]
        weight = min(1.0, views.progress / self.options.ramp) if self.options.ramp else 1.0
        return weight * torch.stack(terms).mean(dim=0)

    def _distance(self, clean: Tensor, changed: Tensor, shown: Tensor | None) -> Tensor:
        axis = class_axis(clean)
        with torch.no_grad():
            sure = clean.softmax(dim=axis).amax(dim=axis, keepdim=True) >= self.options.sure
            target = (clean / self.options.temperature).log_softmax(dim=axis)
        divergence = (target.exp() * (target - changed.log_softmax(dim=axis))).sum(dim=axis, keepdim=True)
        return masked_mean(divergence * sure, shown)
