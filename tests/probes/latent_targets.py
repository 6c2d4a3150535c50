"""Two tasks with targets from a teacher: I-JEPA's latent prediction, and masked self-distillation with a centre, as in iBOT."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw, ModuleHead, NetworkInfo, PooledHead, PretextBatch, PretextTask, TaskNeeds
from medssl.learn.ops import block_mask, masked_mean


class Predictor(nn.Module):
    """From the visible tokens' mean and a hidden token's place: that token."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, tokens: Tensor, batch: PretextBatch) -> Tensor:
        return self.layers(tokens.mean(dim=1, keepdim=True) + self.place[batch.target])


class LatentPrediction(PretextTask):
    """Predict what the teacher makes of hidden tokens from the visible ones (Assran et al., CVPR 2023)."""

    name: ClassVar[str] = "latent-prediction"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    needs: ClassVar[frozenset[TaskNeeds]] = frozenset({"teacher"})
    citation: ClassVar[str] = (
        "Assran et al., Self-supervised learning from images with a joint-embedding predictive architecture, CVPR 2023"
    )

    class Options(BaseOptions):
        """How much is hidden, and how the teacher follows."""

        ratio: float = Field(default=0.5, gt=0, lt=1)
        """Share of the tokens that is hidden."""
        momentum: float = Field(default=0.9, ge=0, le=1)
        """The teacher's momentum at the start; it rises to 1."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.predictor = Predictor(network.tokens, network.embedding_width)

    def head(self) -> ModuleHead:
        return ModuleHead(self.predictor, "tokens", sees_batch=True)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        order = draw.permutation(self.network.tokens)
        hidden = round(self.network.tokens * self.options.ratio)
        # What the answer is only the teacher knows: the target says which tokens are asked for.
        return PretextBatch(crops.images, order[:, :hidden], visible=order[:, hidden:])

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        assert batch.teacher is not None
        told = batch.teacher.features["tokens"]
        told = F.layer_norm(told.gather(1, batch.target.unsqueeze(2).expand_as(prediction)), told.shape[2:])
        return masked_mean(F.smooth_l1_loss(prediction, told, reduction="none"))

    def teacher_momentum(self, progress: float) -> float:
        return 1 - (1 - self.options.momentum) * (math.cos(math.pi * progress) + 1) / 2


class SelfDistillation(PretextTask):
    """Answer of a masked crop what the teacher answers of the whole one, centred (Caron et al., ICCV 2021; Zhou et al., ICLR 2022)."""

    name: ClassVar[str] = "self-distillation"
    answer: ClassVar[Literal["values", "logits"]] = "logits"
    needs: ClassVar[frozenset[TaskNeeds]] = frozenset({"teacher_answer"})
    compares: ClassVar[Literal["nothing"]] = "nothing"

    class Options(BaseOptions):
        """Prototypes."""

        prototypes: int = Field(default=8, ge=2)
        """How many classes the teacher may tell apart."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.register_buffer("centre", torch.zeros(self.options.prototypes))

    centre: Tensor

    def head(self) -> PooledHead:
        return PooledHead(self.options.prototypes)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        hidden = block_mask(draw, crops.size, 4, 0.5, 0.5)
        return PretextBatch(torch.where(hidden, 0.0, crops.images), hidden)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        assert batch.teacher is not None and batch.teacher.answer is not None
        told = ((batch.teacher.answer - self.centre) / 0.5).softmax(dim=1)
        return -(told * prediction.log_softmax(dim=1)).sum(dim=1)

    def teacher_momentum(self, progress: float) -> float:
        return 0.9

    def commit(self, prediction: Tensor, batch: PretextBatch) -> None:
        assert batch.teacher is not None and batch.teacher.answer is not None
        self.centre.lerp_(batch.teacher.answer.mean(dim=0), 0.1)
