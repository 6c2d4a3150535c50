"""The losses `moco` and `moco-v3`: find the teacher's embedding of the same crop, among a queue or among the batch."""

from __future__ import annotations

from itertools import permutations
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Compares, ConsistencyLoss, Needs, NetworkInfo, Views
from medssl.learn.ops import gather, info_nce
from medssl_consistency.projectors import ContrastOptions, mlp, need_two
from medssl_consistency.teaching import rising, taught


class MoCo(ConsistencyLoss):
    """Find the teacher's embedding of another view of the same crop among a queue of earlier ones (Chen et al., 2020, MoCo v2).

    The queue holds whose embedding each is, and those of a crop's own patient are left out. Every ordered pair of views counts,
    since the teacher sees all of them; the paper takes one. It holds 65,536 embeddings of batches of 256; here 4,096 for the
    small batches that volumes allow, so that none is older than in the paper.
    """

    name: ClassVar[str] = "moco"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings", "teacher"})
    teacher_follows: ClassVar[tuple[str, ...]] = ("projector",)
    citation: ClassVar[str] = (
        "He et al., Momentum contrast for unsupervised visual representation learning, CVPR 2020; "
        "Chen et al., Improved baselines with momentum contrastive learning, arXiv 2003.04297"
    )

    class Options(ContrastOptions):
        """Queue and teacher."""

        queue: int = Field(default=4096, ge=1, le=1_000_000)
        """Embeddings that are kept."""
        momentum: float = Field(default=0.999, ge=0, le=1)
        """Of the teacher."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.projector = mlp(network.embedding_width, self.options.hidden, self.options.width, norm=False)
        self.register_buffer("queue", F.normalize(torch.randn(self.options.queue, self.options.width), dim=1))
        self.register_buffer("owner", torch.full((self.options.queue,), -1, dtype=torch.int64))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    queue: Tensor
    """(Q, W) earlier embeddings; noise of no patient until they are there, as in the paper."""
    owner: Tensor
    """(Q,) whose they are."""
    place: Tensor
    """Where the next one goes."""

    def forward(self, views: Views) -> Tensor:
        """(B,) mean over ordered pairs of views."""
        queries, keys = [F.normalize(self.projector(embedding), dim=1) for embedding in views.embeddings], _keys(views)
        alike = views.crops.patient[:, None] == self.owner
        terms = []
        for one, other in permutations(range(len(queries)), 2):
            right = (queries[one] * keys[other]).sum(dim=1)
            terms.append(info_nce(right / self.options.temperature, queries[one] @ self.queue.mT / self.options.temperature, alike))
        return torch.stack(terms).mean(dim=0)

    def commit(self, views: Views) -> None:
        """The teacher's embeddings of the last view come in, the oldest go."""
        keys = _keys(views)[-1][-len(self.queue) :]
        where = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[where], self.owner[where] = keys, views.crops.patient[-len(keys) :]
        self.place.copy_((self.place + len(keys)) % len(self.queue))

    def teacher_momentum(self, progress: float) -> float:
        """Constant, as in the paper."""
        return self.options.momentum


class MoCoV3(ConsistencyLoss):
    """Find the teacher's embedding of another view of the same crop among those of the batch (Chen, Xie and He, ICCV 2021).

    A predictor stands before the student, projector and predictor are normalised over the batch of all ranks, the teacher's
    momentum rises to 1, and the loss is scaled by twice the temperature, all as in the paper, which takes 4,096 crops a batch and
    a temperature of 1 for ResNets, 0.2 for ViTs. Crops of one patient are no negatives of each other.
    """

    name: ClassVar[str] = "moco-v3"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings", "teacher"})
    compares: ClassVar[Compares] = "batch"
    teacher_follows: ClassVar[tuple[str, ...]] = ("projector",)
    citation: ClassVar[str] = "Chen, Xie and He, An empirical study of training self-supervised vision transformers, ICCV 2021"

    class Options(ContrastOptions):
        """The teacher."""

        momentum: float = Field(default=0.99, ge=0, le=1)
        """Of the teacher at the start; it rises to 1 along half a cosine."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        hidden, width = self.options.hidden, self.options.width
        self.projector = mlp(network.embedding_width, hidden, width, last_norm=True)
        self.predictor = mlp(width, hidden, width)

    def forward(self, views: Views) -> Tensor:
        """(B,) mean over ordered pairs of views."""
        need_two(views, self.name, "sets crops against each other")
        temperature = self.options.temperature
        queries = [F.normalize(self.predictor(self.projector(embedding)), dim=1) for embedding in views.embeddings]
        keys = _keys(views)
        alike = views.crops.patient[:, None] == gather(views.crops.patient)
        terms = []
        for one, other in permutations(range(len(queries)), 2):
            right = (queries[one] * keys[other]).sum(dim=1)
            terms.append(info_nce(right / temperature, queries[one] @ gather(keys[other]).mT / temperature, alike))
        return 2 * temperature * torch.stack(terms).mean(dim=0)

    def teacher_momentum(self, progress: float) -> float:
        """Along half a cosine to 1."""
        return rising(self.options.momentum, progress)


def _keys(views: Views) -> list[Tensor]:
    """V x (B, W): what the teacher makes of the views, of length 1."""
    return [F.normalize(key, dim=1) for key in taught(views, "projector")]
