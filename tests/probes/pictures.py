"""Tasks on the image itself: other input channels, positions, several levels, an annealed part."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.augment import add_noise
from medssl.config import BaseOptions
from medssl.contracts import Crops, DenseHead, Draw, ModuleHead, NetworkInfo, PooledHead, PretextBatch, PretextTask
from medssl.errors import NetworkError
from medssl.learn.ops import block_mask, masked_mean


class Colour(PretextTask):
    """Every channel from their mean: colour from luminance (Zhang, Isola and Efros, ECCV 2016)."""

    name: ClassVar[str] = "colour"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    same_for_views: ClassVar[bool] = True

    def input_channels(self, channels: int) -> int:
        return 1

    def clean(self, crops: Crops) -> Tensor:
        return crops.images.mean(dim=1, keepdim=True)

    def head(self) -> DenseHead:
        return DenseHead(self.network.channels)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(self.clean(crops), crops.images)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return masked_mean((prediction - batch.target).square())


class Windows(Colour):
    """Denoise the crop, which is shown in two windows, one channel each."""

    name: ClassVar[str] = "windows"

    def input_channels(self, channels: int) -> int:
        return 2 * channels

    def clean(self, crops: Crops) -> Tensor:
        return torch.cat([crops.images.clamp_max(0), crops.images.clamp_min(0)], dim=1)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        noisy = add_noise(crops.images, draw.normal(*crops.images.shape[1:]), draw.uniform())
        return PretextBatch(self.clean(crops.with_images(noisy)), crops.images)


class BodyPosition(PretextTask):
    """Where in its volume each voxel lies, as a share of the volume's sides; it rides on whatever is shown (Lei et al., 2021)."""

    name: ClassVar[str] = "body-position"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    same_for_views: ClassVar[bool] = True

    def head(self) -> DenseHead:
        return DenseHead(3)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        steps = torch.meshgrid(*[torch.arange(side, device=crops.images.device) for side in crops.size], indexing="ij")
        voxels = torch.stack([*steps, torch.ones_like(steps[0])]).flatten(1).float()
        share = (crops.affine @ voxels) / crops.extent.clamp_min(1).unsqueeze(2)
        return PretextBatch(None, share.unflatten(2, crops.size))

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return masked_mean((prediction - batch.target).square())


class Halves(PretextTask):
    """Two halves of the crop in random order: which came first? (Noroozi and Favaro, ECCV 2016, with two tiles.)"""

    name: ClassVar[str] = "halves"
    answer: ClassVar[Literal["values", "logits"]] = "logits"

    def head(self) -> PooledHead:
        return PooledHead(outputs=2, parts=2)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        swapped = draw.integers(0, 2)
        parts = torch.stack(crops.images.chunk(2, dim=2), dim=1)
        parts = torch.where(swapped.view(-1, *[1] * (parts.dim() - 1)) == 1, parts.flip(1), parts)
        return PretextBatch(parts.flatten(0, 1), swapped)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return F.cross_entropy(prediction, batch.target, reduction="none")


class Merge(nn.Module):
    """The crop from a fine and a coarse level."""

    def __init__(self, network: NetworkInfo) -> None:
        super().__init__()
        conv = nn.Conv2d if network.spatial_dims == 2 else nn.Conv3d
        fine, coarse = network.levels[:2]
        self.lateral, self.output = conv(coarse.width, fine.width, 1), conv(fine.width, network.channels, 3, padding=1)
        self.scale = fine.strides

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        merged = fine + F.interpolate(self.lateral(coarse), fine.shape[2:])
        return F.interpolate(self.output(merged), scale_factor=self.scale)


class Hierarchy(PretextTask):
    """Hidden blocks from two of the encoder's levels (Tian et al., ICLR 2023, SparK, with dense convolutions)."""

    name: ClassVar[str] = "hierarchy"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    same_for_views: ClassVar[bool] = True

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        if len(network.levels) < 2:
            raise NetworkError("hierarchy reads two levels of the encoder. Take a network whose levels are known, such as UNet.")
        self.merge = Merge(network)

    def head(self) -> ModuleHead:
        return ModuleHead(self.merge, ("level 0", "level 1"), dense=True)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        hidden = block_mask(draw, crops.size, 4, 0.6, 0.6)
        return PretextBatch(torch.where(hidden, 0.0, crops.images), crops.images, hidden.float())

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return masked_mean((prediction - batch.target).square(), batch.weight)


class Ramp(PretextTask):
    """Denoise; from half of the run on also under a learned contrast of the task's own."""

    name: ClassVar[str] = "ramp"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    same_for_views: ClassVar[bool] = True

    class Options(BaseOptions):
        """When."""

        start: float = Field(default=0.5, ge=0, le=1)
        """Share of the run before the second part counts."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.contrast = nn.Parameter(torch.ones(network.channels))

    def head(self) -> DenseHead:
        return DenseHead(self.network.channels)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(add_noise(crops.images, draw.normal(*crops.images.shape[1:]), draw.uniform()), crops.images)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        value = masked_mean((prediction - batch.target).square())
        if batch.progress < self.options.start:
            return value
        contrast = self.contrast.view(-1, *[1] * (prediction.dim() - 2))
        return value + masked_mean((prediction * contrast - batch.target).abs())
