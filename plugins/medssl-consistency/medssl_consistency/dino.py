"""The loss `dino`: self-distillation with a centred and sharpened teacher."""

from __future__ import annotations

from itertools import permutations
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from medssl.config import BaseOptions
from medssl.contracts import ConsistencyLoss, Needs, NetworkInfo, Views
from medssl_consistency.distillation import DistillationOptions, Prototypes, distilled
from medssl_consistency.teaching import rising, taught


class DINO(ConsistencyLoss):
    """The student's distribution over prototypes is the teacher's of another view (Caron et al., ICCV 2021).

    The teacher is centred (momentum 0.9) and sharpened (temperature 0.04, rising to 0.07 over the first 30 % of the run), the
    student's temperature is 0.1, the teacher's momentum rises from 0.996 to 1: the paper's numbers, but for 4,096 prototypes where
    it has 65,536, and views of one size where it adds small ones. Set `views.clean: false` for two changed views.
    """

    name: ClassVar[str] = "dino"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings", "teacher"})
    teacher_follows: ClassVar[tuple[str, ...]] = ("prototypes",)
    citation: ClassVar[str] = "Caron et al., Emerging properties in self-supervised vision transformers, ICCV 2021"

    class Options(DistillationOptions):
        """Prototypes and the projector."""

        prototypes: int = Field(default=4096, ge=2, le=1_000_000)
        """How many directions an embedding is compared with."""
        hidden: int = Field(default=512, ge=2, le=8192)
        """Hidden width of the projector."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        own = self.options
        self.prototypes = Prototypes(network.embedding_width, own.hidden, own.bottleneck, own.prototypes)
        self.register_buffer("centre", torch.zeros(own.prototypes))

    centre: Tensor
    """(K,) the teacher's mean answer, which is taken off: without it one prototype wins."""

    def forward(self, views: Views) -> Tensor:
        """(B,) mean over ordered pairs of views."""
        teacher, student = taught(views, "prototypes"), [self.prototypes(embedding) for embedding in views.embeddings]
        temperature = self.options.temperature(views.progress)
        pairs = permutations(range(len(student)), 2)
        return torch.stack([distilled(student[one], teacher[other], self.centre, temperature) for one, other in pairs]).mean(dim=0)

    def commit(self, views: Views) -> None:
        """The centre moves to the mean of what the teacher answered."""
        self.centre.lerp_(torch.cat(taught(views, "prototypes")).mean(dim=0), 0.1)

    def teacher_momentum(self, progress: float) -> float:
        """Along half a cosine to 1."""
        return rising(self.options.momentum, progress)
