"""The loss `voxel-contrast`: find a voxel of one view again in another, among other voxels of the same and of other volumes."""

from __future__ import annotations

from itertools import permutations
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Compares, ConsistencyLoss, Needs, NetworkInfo, Views
from medssl.learn.ops import gather, info_nce, masked_mean
from medssl_consistency.points import Points, corresponding
from medssl_consistency.projectors import mlp


class VoxelContrast(ConsistencyLoss):
    """Contrast of voxels: the same one in two views against others (Yan et al., TMI 2022, Self-supervised Anatomical eMbedding).

    Others are the points of the same volume that are farther than `near` mm, and those of all other patients' crops on all ranks;
    other volumes of the same patient are left out, since where they correspond is not known. As in the paper the temperature is
    0.5; it mines hard negatives on two levels of the network, here all points of the feature map count.
    """

    name: ClassVar[str] = "voxel-contrast"
    needs: ClassVar[frozenset[Needs]] = frozenset({"feature_maps"})
    compares: ClassVar[Compares] = "batch"
    citation: ClassVar[str] = (
        "Yan et al., SAM: Self-supervised learning of pixel-wise anatomical embeddings in radiological images, TMI 2022"
    )

    class Options(BaseOptions):
        """Points, what is near, and the projector."""

        points: int = Field(default=216, ge=4, le=100_000)
        """Points of a crop, about; memory grows with the square of those of the batch."""
        near: float = Field(default=10.0, ge=0, le=1000)
        """mm: nearer points of the same volume are no negatives."""
        temperature: float = Field(default=0.5, ge=0.001, le=100)
        """Cosines are divided by it."""
        width: int = Field(default=64, ge=2, le=8192)
        """Of an embedded voxel."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.projector = mlp(max(network.feature_width, 1), self.options.width, self.options.width, norm=False)

    def forward(self, views: Views) -> Tensor:
        """(B,) mean over points and ordered pairs of views."""
        found = corresponding(views, self.options.points)
        embedded = [F.normalize(self.projector(features), dim=2) for features in found.features]
        excluded = self._excluded(views, found)
        terms = []
        for one, other in permutations(range(len(embedded)), 2):
            right = (embedded[one] * embedded[other]).sum(dim=2) / self.options.temperature
            everyone = gather(embedded[other]).flatten(0, 1)
            terms.append(info_nce(right, embedded[one] @ everyone.mT / self.options.temperature, excluded))
        return masked_mean(torch.stack(terms).mean(dim=0), found.shown)

    def _excluded(self, views: Views, found: Points) -> Tensor:
        """(B, P, N * P) bool: which points of all crops are no negatives of a point."""
        patient, sample = views.crops.patient, views.crops.sample
        mine = (patient[:, None] == gather(patient))[:, None, :, None]
        volume = (sample[:, None] == gather(sample))[:, None, :, None]
        place, everywhere = found.place, gather(found.place)
        away = torch.cdist(place.flatten(0, 1), everywhere.flatten(0, 1), compute_mode="donot_use_mm_for_euclid_dist")
        far = away.view(*place.shape[:2], *everywhere.shape[:2]) > self.options.near
        return (mine & ~(volume & far) | ~gather(found.shown)[None, None]).flatten(2)
