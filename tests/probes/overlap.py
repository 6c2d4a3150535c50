"""A task that sets crops of one volume against each other."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from medssl.contracts import Compares, Crops, Draw, PooledHead, PretextBatch, PretextTask
from medssl.learn.ops import masked_mean


class Overlap(PretextTask):
    """The embeddings of two crops of one volume are as alike as the crops overlap (in the manner of Wu et al., CVPR 2024)."""

    name: ClassVar[str] = "overlap"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    compares: ClassVar[Compares] = "group"
    citation: ClassVar[str] = "Wu, Zhuang and Chen, VoCo: a simple-yet-effective volume contrastive learning framework, CVPR 2024"

    def head(self) -> PooledHead:
        return PooledHead(outputs=6)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        last = torch.tensor([*crops.size, 0], device=crops.affine.device) - 1.0
        last[-1] = 1.0
        ends = torch.stack([crops.affine[..., -1], crops.affine @ last], dim=1)
        voxel = crops.affine[..., :-1].abs().amax(dim=2)
        thick = torch.where(voxel > 0, voxel, torch.ones_like(voxel))
        box = torch.stack([ends.amin(dim=1) - thick / 2, ends.amax(dim=1) + thick / 2], dim=1)
        return PretextBatch(None, box, answerable=_pairs(crops.group).any(dim=1), extra={"group": crops.group})

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        low, high = batch.target.unbind(dim=1)
        common = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp_min(0).prod(dim=2)
        share = common / (high - low).prod(dim=1, keepdim=True)
        alike = F.cosine_similarity(prediction[:, None], prediction[None], dim=2)
        return masked_mean((alike - share).square(), _pairs(batch.extra["group"]))


def _pairs(group: Tensor) -> Tensor:
    """(B, B) bool: two different crops of one volume."""
    return (group[:, None] == group) & ~torch.eye(len(group), dtype=torch.bool, device=group.device)
