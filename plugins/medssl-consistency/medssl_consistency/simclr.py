"""The loss `simclr`: find the other views of a crop among those of all crops of the batch."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Compares, ConsistencyLoss, Needs, NetworkInfo, Views
from medssl.learn.ops import EXCLUDED, gather, info_nce
from medssl_consistency.projectors import ContrastOptions, mlp, need_two


class SimCLR(ConsistencyLoss):
    """NT-Xent: the views of a crop are found among those of all crops of all ranks (Chen et al., ICML 2020).

    The negatives of an anchor are the views of the crops of *other patients*; those of its own are left out, since anatomy is no
    difference. The paper trains with batches of 256 to 8192 at temperature 0.1 to 0.5 and a projector of two layers, 128 wide;
    so here, with 0.2 for the small batches that volumes allow.
    """

    name: ClassVar[str] = "simclr"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings"})
    compares: ClassVar[Compares] = "batch"
    citation: ClassVar[str] = "Chen et al., A simple framework for contrastive learning of visual representations, ICML 2020"

    class Options(ContrastOptions):
        """Temperature and projector."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.projector = mlp(network.embedding_width, self.options.hidden, self.options.width, norm=False)

    def forward(self, views: Views) -> Tensor:
        """(B,) mean over ordered pairs of views."""
        need_two(views, self.name, "sets crops against each other")
        projected = torch.stack([self.projector(embedding) for embedding in views.embeddings], dim=1)
        return nt_xent(projected, views.crops.patient, self.options.temperature)


def nt_xent(projected: Tensor, patient: Tensor, temperature: float) -> Tensor:
    """(B,) the loss of (B, V, W) projections of V views; crops of one `patient` (B,) are no negatives of each other."""
    count, views, width = projected.shape
    normed = F.normalize(projected, dim=2)
    everyone, scaled = gather(normed), normed / temperature
    others = (scaled.reshape(-1, width) @ everyone.reshape(-1, width).mT).view(count, views, len(everyone), views)
    alike = patient[:, None] == gather(patient)
    negatives = others.masked_fill_(alike[:, None, :, None], EXCLUDED).flatten(2)
    own = scaled @ normed.mT
    pairs = [(one, other) for one in range(views) for other in range(views) if one != other]
    terms = [info_nce(own[:, one, other], negatives[:, one]) for one, other in pairs]
    return torch.stack(terms).mean(dim=0)
