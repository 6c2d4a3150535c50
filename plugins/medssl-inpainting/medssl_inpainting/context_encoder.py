"""The task `context-encoder`: what was in the hole?"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Crops, DenseHead, Draw, NetworkInfo, PretextBatch, PretextTask
from medssl.learn.ops import masked_mean, reversed_gradient, visible_mean


class ContextEncoder(PretextTask):
    """Fill in one large hole, or several (Pathak et al., CVPR 2016).

    A band inside the hole's border counts tenfold, so that what is filled in fits what is around it, and a discriminator may judge
    the whole, both as in the paper. The hole lies anywhere, where the paper's lies in the middle. The discriminator learns by the same
    loss: its gradient is turned round on the way into the network, so there is one optimizer.
    """

    name: ClassVar[str] = "context-encoder"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    same_for_views: ClassVar[bool] = True
    citation: ClassVar[str] = "Pathak et al., Context encoders: feature learning by inpainting, CVPR 2016"

    class Options(BaseOptions):
        """Holes, and what a wrong voxel costs."""

        holes: int = Field(default=1, ge=1, le=64)
        """How many there are; they may overlap."""
        side: float = Field(default=0.5, gt=0, lt=1)
        """Side of a hole as a share of the crop's."""
        overlap: int = Field(default=3, ge=0, le=64)
        """Width in voxels of the band inside a hole's border that counts more."""
        overlap_weight: float = Field(default=10.0, ge=1, le=100)
        """What a voxel of that band counts beside another's 1."""
        adversarial: float = Field(default=0.0, ge=0, le=1)
        """What the discriminator's verdict counts for the network (the paper: 0.001); 0: there is none."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.judge = _judge(network.spatial_dims, network.channels) if self.options.adversarial else None

    def head(self) -> DenseHead:
        """The intensities of every channel at every voxel."""
        return DenseHead(self.network.channels)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """Crops with holes that show the mean of the rest."""
        depth = self._depth(crops, draw)
        hidden = depth > 0
        mean = visible_mean(crops.images, hidden)
        band = hidden & (depth <= self.options.overlap)
        weight = torch.where(band, self.options.overlap_weight, hidden.to(crops.images.dtype))
        return PretextBatch(torch.where(hidden, mean, crops.images), crops.images, weight, extra={"hidden": hidden, "mean": mean})

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) mean squared error of hidden voxels, and what the discriminator says of the whole."""
        value = masked_mean((prediction - batch.target).square(), batch.weight)
        if self.judge is None:
            return value
        filled = torch.where(batch.extra["hidden"], reversed_gradient(prediction, self.options.adversarial), batch.target)
        real, made = self.judge(batch.target).flatten(1), self.judge(filled).flatten(1)
        return value + F.softplus(-real).mean(dim=1) + F.softplus(made).mean(dim=1)

    def trivial(self, batch: PretextBatch) -> Tensor:
        """The mean of what is seen."""
        return batch.extra["mean"].expand_as(batch.target)

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Mean squared error of hidden voxels, each alike."""
        return {"error": masked_mean((prediction - batch.target).square(), batch.extra["hidden"])}

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """The crop with its holes, filled, and the truth."""
        assert batch.inputs is not None
        filled = torch.where(batch.extra["hidden"], prediction.to(batch.target.dtype), batch.target)
        return {"input": batch.inputs, "prediction": filled, "target": batch.target}

    def _depth(self, crops: Crops, draw: Draw) -> Tensor:
        """(B, 1, *size) how many voxels deep inside a hole each voxel lies, at most one more than the band is wide; 0 outside."""
        size = crops.size
        sides = [min(max(1, round(self.options.side * side)), side - 1) for side in size]
        start = draw.uniform(self.options.holes, len(size))
        depth: Tensor | None = None
        for axis, (side, hole) in enumerate(zip(size, sides, strict=True)):
            first = (start[..., axis] * (side - hole + 1)).long()
            inside = torch.arange(side, device=start.device) - first[..., None]
            near = torch.minimum(inside + 1, hole - inside).clamp(0, self.options.overlap + 1).to(torch.uint8)
            shaped = near.view(*near.shape[:2], *[side if other == axis else 1 for other in range(len(size))])
            depth = shaped if depth is None else torch.minimum(depth, shaped)
        assert depth is not None
        return depth.amax(dim=1, keepdim=True)


def _judge(dims: int, channels: int) -> nn.Sequential:
    """A verdict on every patch, without a norm over the batch."""
    conv: Any = nn.Conv2d if dims == 2 else nn.Conv3d
    widths = [channels, 16, 32, 64]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [conv(inputs, outputs, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, conv(widths[-1], 1, 1))
