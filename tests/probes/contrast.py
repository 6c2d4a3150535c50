"""Consistency losses with negatives: from a queue (MoCo), from a bank by sample (PIRL), from the batch over all ranks (SimCLR)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Compares, ConsistencyLoss, Needs, NetworkInfo, Views
from medssl.learn.ops import gather

TEMPERATURE = 0.2


def projector(network: NetworkInfo, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(network.embedding_width, width), nn.ReLU(), nn.Linear(width, width))


class MomentumContrast(ConsistencyLoss):
    """Find the teacher's embedding of the same crop among a queue of others (Chen et al., 2020, MoCo v2)."""

    name: ClassVar[str] = "momentum-contrast"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings", "teacher"})
    teacher_follows: ClassVar[tuple[str, ...]] = ("projector",)
    citation: ClassVar[str] = "Chen et al., Improved baselines with momentum contrastive learning, 2020"

    class Options(BaseOptions):
        """The queue."""

        queue: int = Field(default=10, ge=1)
        """Embeddings that are kept."""
        width: int = Field(default=8, ge=1)
        """Of an embedding."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.projector = projector(network, self.options.width)
        self.register_buffer("queue", F.normalize(torch.randn(self.options.queue, self.options.width), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    queue: Tensor
    place: Tensor

    def forward(self, views: Views) -> Tensor:
        query, key = F.normalize(self.projector(views.embeddings[1]), dim=1), self._key(views)
        found = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ self.queue.T], dim=1)
        return -(found / TEMPERATURE).log_softmax(dim=1)[:, 0]

    def commit(self, views: Views) -> None:
        keys = self._key(views)
        where = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[where] = keys
        self.place.copy_((self.place + len(keys)) % len(self.queue))

    def teacher_momentum(self, progress: float) -> float:
        return 0.9

    def _key(self, views: Views) -> Tensor:
        assert views.teacher is not None
        return F.normalize(views.teacher.modules["projector"](views.teacher.embeddings[0]), dim=1)


class PretextInvariance(ConsistencyLoss):
    """The clean crop's embedding is that of what a task shows of it, among a bank of other crops (Misra and van der Maaten, CVPR 2020)."""

    name: ClassVar[str] = "pretext-invariance"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings", "task_embeddings"})
    citation: ClassVar[str] = "Misra and van der Maaten, Self-supervised learning of pretext-invariant representations, CVPR 2020"

    class Options(BaseOptions):
        """The bank."""

        bank: int = Field(default=7, ge=2)
        """Embeddings that are kept, by sample."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.crop, self.shown = projector(network, 8), projector(network, 8)
        self.register_buffer("bank", F.normalize(torch.randn(self.options.bank, 8), dim=1))

    bank: Tensor

    def forward(self, views: Views) -> Tensor:
        (task,) = views.task_embeddings.values()
        parts = task[0] if task[0].dim() == 3 else task[0].unsqueeze(1)
        crop, shown = self._embedded(views), F.normalize(self.shown(parts).mean(dim=1), dim=1)
        others = (shown @ self.bank.T).scatter(1, self._row(views)[:, None], -torch.inf)
        found = torch.cat([(crop * shown).sum(dim=1, keepdim=True), others], dim=1)
        return -(found / TEMPERATURE).log_softmax(dim=1)[:, 0]

    def commit(self, views: Views) -> None:
        row = self._row(views)
        self.bank[row] = F.normalize(self.bank[row] + self._embedded(views), dim=1)

    def _embedded(self, views: Views) -> Tensor:
        return F.normalize(self.crop(views.embeddings[0]), dim=1)

    def _row(self, views: Views) -> Tensor:
        return views.crops.sample % len(self.bank)


class BatchContrast(ConsistencyLoss):
    """Find the other view of the same crop among those of all crops of all ranks (Chen et al., ICML 2020, SimCLR)."""

    name: ClassVar[str] = "batch-contrast"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings"})
    compares: ClassVar[Compares] = "batch"

    def forward(self, views: Views) -> Tensor:
        one, other = (F.normalize(embedding, dim=1) for embedding in views.embeddings)
        index = views.crops.index.to(one.device)
        right = (index[:, None] == gather(index)).float().argmax(dim=1)
        return F.cross_entropy(one @ gather(other).T / TEMPERATURE, right, reduction="none")


class Alignment(ConsistencyLoss):
    """Predict one view's held embedding from the other (Chen and He, CVPR 2021, without batch statistics)."""

    name: ClassVar[str] = "alignment"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings"})

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.predictor = projector(network, network.embedding_width)

    def forward(self, views: Views) -> Tensor:
        one, other = views.embeddings
        pairs = ((one, other), (other, one))
        return torch.stack([1 - F.cosine_similarity(self.predictor(a), b.detach(), dim=1) for a, b in pairs]).mean(dim=0)
