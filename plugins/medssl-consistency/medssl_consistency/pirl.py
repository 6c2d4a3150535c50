"""The loss `pirl`: a crop and what a pretext task makes of it have the embedding that a memory bank holds of the crop."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import ConsistencyLoss, Crops, Needs, NetworkInfo, Views
from medssl.learn.ops import EXCLUDED
from medssl_consistency.projectors import mlp


class PIRL(ConsistencyLoss):
    """Noise contrastive estimation of a crop's entry in a memory bank, from the crop and from what a task shows of it.

    As in the paper (Misra and van der Maaten, CVPR 2020) the transformed view and the crop itself each find the crop's entry among
    others, half and half, at temperature 0.07, and entries move by half. The bank's place of a crop is a hash of its volume and
    coarse corner, negatives are all other places (the paper draws 32,000) but those of the same patient. Of tasks
    with parts (`jigsaw`, `relative-position`) the mean of the projected parts counts, where the paper puts them side by side.
    """

    name: ClassVar[str] = "pirl"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings", "task_embeddings"})
    citation: ClassVar[str] = "Misra and van der Maaten, Self-supervised learning of pretext-invariant representations, CVPR 2020"

    class Options(BaseOptions):
        """The bank, and what the two parts count."""

        bank: int = Field(default=4096, ge=2, le=1_000_000)
        """Places of the memory bank."""
        corner: float = Field(default=64.0, gt=0, le=10_000)
        """Crops of a volume whose first corners lie in the same cube of so many mm share a place."""
        keep: float = Field(default=0.5, ge=0, lt=1)
        """Share of an entry that a new embedding of its crop leaves."""
        crop: float = Field(default=0.5, ge=0, le=1)
        """What the crop itself counts; the rest counts what the tasks show of it."""
        temperature: float = Field(default=0.07, ge=0.001, le=100)
        """Cosines are divided by it."""
        width: int = Field(default=128, ge=2, le=8192)
        """Of an entry."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        width = self.options.width
        self.of_crop, self.of_part = (mlp(network.embedding_width, width, norm=False) for _ in range(2))
        self.of_parts = mlp(width, width, norm=False)
        self.register_buffer("bank", F.normalize(torch.randn(self.options.bank, width), dim=1))
        self.register_buffer("owner", torch.full((self.options.bank,), -1, dtype=torch.int64))

    bank: Tensor
    """(places, width); noise of no patient until a crop comes by, as in the paper."""
    owner: Tensor
    """(places,) whose crop was there last."""

    def forward(self, views: Views) -> Tensor:
        """(B,) mean over the tasks."""
        crop, row = self._crop(views), self._row(views.crops)
        # What the bank holds of the crop; where it was never seen, what it is now.
        known = self.owner[row] == views.crops.patient
        entry = torch.where(known[:, None], self.bank[row], crop.detach())
        alike = (self.owner == views.crops.patient[:, None]).scatter(1, row[:, None], True)
        shown = [self._shown(embeddings) for found in views.task_embeddings.values() for embeddings in found]
        parts = torch.stack([self._estimate(embedding, entry, alike) for embedding in shown]).mean(dim=0)
        return self.options.crop * self._estimate(crop, entry, alike) + (1 - self.options.crop) * parts

    def commit(self, views: Views) -> None:
        """Entries of the crops of the step move towards what they are now."""
        row, crop = self._row(views.crops), self._crop(views)
        keep = torch.where(self.owner[row] == views.crops.patient, self.options.keep, 0.0)[:, None]
        self.bank[row] = F.normalize(keep * self.bank[row] + (1 - keep) * crop, dim=1)
        self.owner[row] = views.crops.patient

    def _estimate(self, embedding: Tensor, entry: Tensor, excluded: Tensor) -> Tensor:
        return noise_contrastive(
            (embedding * entry).sum(dim=1) / self.options.temperature, embedding @ self.bank.mT / self.options.temperature, excluded
        )

    def _crop(self, views: Views) -> Tensor:
        return F.normalize(self.of_crop(views.embeddings[0]), dim=1)

    def _shown(self, embeddings: Tensor) -> Tensor:
        parts = embeddings if embeddings.dim() == 3 else embeddings.unsqueeze(1)
        return F.normalize(self.of_parts(self.of_part(parts).mean(dim=1)), dim=1)

    def _row(self, crops: Crops) -> Tensor:
        """(B,) the crops' places in the bank."""
        row = crops.sample
        for cell in (crops.affine[..., -1] / self.options.corner).floor().long().unbind(dim=1):
            row = (row * 1_000_003 + cell) % 2_147_483_647
        return row % len(self.bank)


def noise_contrastive(right: Tensor, others: Tensor, excluded: Tensor) -> Tensor:
    """(B,) -log h(right) - sum log(1 - h(other)), where h is a logit's share beside all `others` (B, N) that are not `excluded`.

    With L the log-sum-exp of the others, log h(s) = -softplus(L - s) and log(1 - h(s)) = -softplus(s - L).
    """
    all_others = others.masked_fill(excluded, EXCLUDED).logsumexp(dim=1)
    wrong = F.softplus(others - all_others[:, None]).masked_fill(excluded, 0.0)
    return F.softplus(all_others - right) + wrong.sum(dim=1)
