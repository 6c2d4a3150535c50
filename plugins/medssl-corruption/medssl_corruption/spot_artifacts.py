"""The task `spot-artifacts`: which of two images was repaired, and where?"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.augment import spread
from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw, ModuleHead, NetworkInfo, PretextBatch, PretextTask
from medssl.errors import DataError
from medssl.learn.ops import by_part, masked_mean, onto_grid, pool, reversed_gradient
from medssl_corruption.repairing import Coder, Repair, neighbours


class Spotter(nn.Module):
    """Of each image: was it repaired, and which of its cells were?"""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.whole = nn.Linear(width, 1)
        self.cells: nn.Module = nn.Conv2d(width, 1, 1) if dims == 2 else nn.Conv3d(width, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, 2, 1 + cells) logits, the whole image's first."""
        return by_part(torch.cat([self.whole(pool(features)), self.cells(features).flatten(1)], dim=1), 2)


class SpotArtifacts(PretextTask):
    """Which of two autoencoded crops has artifacts, and where? (Jenni and Favaro, CVPR 2018.)

    As in the paper an autoencoder encodes the crop, cells of the code are dropped, each replaced by the mean around it, and a repair
    network between the decoder's layers tries to hide that; the network that is pretrained is the discriminator, which tells the
    repaired crop from the autoencoded one and says which cells were dropped. Dropping 0.6 of the cells, 0.1 for the cells and a
    squared error for the repair network are those of the authors' code. There the autoencoder is trained before; here it learns
    beside for the first `settling` of the run and is then held still. The repair network learns by the same loss, whose gradient is
    turned round on the way into it, from the verdict on the cells too. Autoencoder and repair network are small and without batch
    norm, and are left behind with the head: what is kept is the discriminator.
    """

    name: ClassVar[str] = "spot-artifacts"
    answer: ClassVar[Literal["values", "logits"]] = "logits"
    citation: ClassVar[str] = "Jenni and Favaro, Self-supervised feature learning by learning to spot artifacts, CVPR 2018"
    suite: ClassVar[dict[str, Any]] = {"options": {"levels": 2, "width": 4}}

    class Options(BaseOptions):
        """The autoencoder, what is dropped, and the repair network."""

        drop: float = Field(default=0.6, gt=0, lt=1)
        """Share of the code's cells that is dropped."""
        levels: int = Field(default=3, ge=1, le=5)
        """How often the autoencoder halves the crop: a cell of the code is 2^levels voxels wide, and so are the artifacts."""
        width: int = Field(default=16, ge=2, le=128)
        """Channels of the autoencoder's first layer; they double at each level."""
        settling: float = Field(default=0.3, ge=0, le=1)
        """Share of the run over which the autoencoder learns; then it is held still."""
        adversarial: float = Field(default=1.0, ge=0, le=10)
        """What the discriminator's verdict counts for the repair network."""
        reconstruction: float = Field(default=10.0, ge=0, le=1000)
        """What the squared distance of the repaired voxels from the crop counts beside it."""
        cells: float = Field(default=0.1, ge=0, le=10)
        """What it counts which cells were dropped, beside the verdict on the whole crop."""
        reads: Literal["encoder_end", "feature_map"] = "encoder_end"
        """Where the discriminator reads; feature_map: the decoder of a segmentation network is trained too, with finer cells."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        own, dims = self.options, network.spatial_dims
        self.coder = Coder(dims, network.channels, own.width, own.levels)
        self.repair = Repair(dims, self.coder.widths)
        fine = own.reads == "feature_map"
        self.spotter = Spotter(dims, max(network.feature_width if fine else network.embedding_width, 1))
        self.strides = network.feature_strides if fine else network.strides

    def head(self) -> ModuleHead:
        """The verdicts on the autoencoded and on the repaired crop."""
        return ModuleHead(self.spotter, self.options.reads, parts=2)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """The autoencoded and the repaired crop; the target says which is which, and which cells were dropped."""
        images, own = crops.images, self.options
        with torch.set_grad_enabled(torch.is_grad_enabled() and draw.progress < own.settling):
            code, real = self.coder(images)
        grid = tuple(code.shape[2:])
        if math.prod(grid) < 2:
            raise DataError(f"spot-artifacts: a crop of {crops.size} has a code of one cell. Set levels to less, or take a larger crop.")
        dropped = (draw.uniform(1, *grid) < own.drop).to(images.dtype)
        damaged = torch.lerp(code, neighbours(code), dropped).detach()
        made = self.coder.repaired(damaged, images.shape[2:], self.repair, 1 - dropped)
        near = F.interpolate(dropped, size=images.shape[2:], mode="nearest")
        # One input for network and repair network: its gradient trains both, turned round on the way into the latter.
        shown = torch.stack([real.detach(), reversed_gradient(made, own.adversarial)], dim=1).flatten(0, 1)
        errors = {"autoencoder": masked_mean((real - images).square()), "repair": masked_mean((made - images).square(), near)}
        answerable = (spread(images).flatten(1) > 1e-6).any(dim=1)
        return PretextBatch(shown, self._target(dropped, crops.size), answerable=answerable, extra={**errors, "dropped": dropped})

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) cross entropies; what autoencoder and repair network lose adds a gradient and no value, so that chance stays log 2."""
        cost = F.binary_cross_entropy_with_logits(prediction, batch.target, reduction="none").mean(dim=1)
        verdict = cost[:, 0] + self.options.cells * cost[:, 1:].mean(dim=1)
        own = batch.extra["autoencoder"] + self.options.reconstruction * batch.extra["repair"]
        return verdict + own - own.detach()

    def trivial(self, batch: PretextBatch) -> Tensor:
        """Both crops alike, and every cell as often dropped as not in half of the crops."""
        answer = torch.full_like(batch.target, math.log(self.options.drop / (2 - self.options.drop)))
        answer[..., 0] = 0
        return answer

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Share of crops told right, where undecided is half; and the mean squared error of autoencoder and repair network."""
        right = (prediction[..., 0].sign() * (2 * batch.target[..., 0] - 1) + 1) / 2
        return {"accuracy": right.mean(dim=1), "autoencoder": batch.extra["autoencoder"], "repair": batch.extra["repair"]}

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """The autoencoded and the repaired crop, which cells were dropped, and which are taken for it."""
        assert batch.inputs is not None
        size = batch.inputs.shape[2:]
        real, made = batch.inputs.view(len(batch.target), 2, -1, *size).unbind(1)
        found = prediction[:, 1, 1:].sigmoid().view(len(prediction), 1, *self._grid(tuple(size)))
        cells = {"target": batch.extra["dropped"], "prediction": found}
        return {"autoencoded": real, "repaired": made, **{name: F.interpolate(one, size=size) for name, one in cells.items()}}

    def _target(self, dropped: Tensor, size: tuple[int, ...]) -> Tensor:
        """(B, 2, 1 + cells): 0 for the autoencoded crop and 1 for the repaired one, then the share of each cell that was dropped."""
        cells = onto_grid(dropped, self._grid(size)).flatten(1)
        made = torch.cat([torch.ones_like(cells[:, :1]), cells], dim=1)
        return torch.stack([torch.zeros_like(made), made], dim=1)

    def _grid(self, size: tuple[int, ...]) -> list[int]:
        return [-(-side // stride) for side, stride in zip(size, self.strides, strict=True)]
