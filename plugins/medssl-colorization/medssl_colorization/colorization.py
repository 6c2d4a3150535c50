"""The task `colorization`: the colours of an image from its luminance."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Crops, DenseHead, Draw, NetworkInfo, PretextBatch, PretextTask
from medssl.errors import ConfigError
from medssl.learn.ops import masked_mean
from medssl_colorization.lab import bins_across, bins_of, lab_of, middles_of, rgb_of


class Colorization(PretextTask):
    """Which colour has each voxel, by its brightness alone? (Zhang, Isola and Efros, ECCV 2016.)

    The network is shown L of CIE Lab; colours are classes, squares of a and b 10 wide as in the paper (which takes the 313 that a screen
    can show and spreads a target over five). Rare colours count more: by 1 / ((1 - 0.5) share + 0.5 / colours), where shares are those
    of the run so far. The transferred network takes one channel. Black, as around a fundus, is not asked about.
    """

    name: ClassVar[str] = "colorization"
    answer: ClassVar[Literal["values", "logits"]] = "logits"
    same_for_views: ClassVar[bool] = True
    citation: ClassVar[str] = "Zhang, Isola and Efros, Colorful image colorization, ECCV 2016"
    suite: ClassVar[dict[str, Any]] = {"channels": 3, "random": False, "options": {"bin": 40, "dark": 0.0}}

    class Options(BaseOptions):
        """Colours, and what they count."""

        bin: float = Field(default=10.0, ge=2, le=110)
        """Width of a square of colours in units of a and b."""
        uniform: float = Field(default=0.5, gt=0, le=1)
        """How far rare colours are lifted: 1 counts every voxel alike, near 0 every colour alike."""
        dark: float = Field(default=5.0, ge=0, le=100)
        """Voxels of less luminance (0 .. 100) are background."""
        brightest: float = Field(default=255.0, gt=0)
        """The value that is white in the files."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        if network.channels != 3:
            raise ConfigError(f"colorization needs images of red, green and blue, and these have {network.channels} channels.")
        self.colours = bins_across(self.options.bin) ** 2
        self.register_buffer("share", torch.full((self.colours,), 1 / self.colours))

    share: Tensor
    """(colours,) how common each was, lately."""

    def input_channels(self, channels: int) -> int:
        """Luminance alone."""
        return 1

    def clean(self, crops: Crops) -> Tensor:
        """Luminance, about -1 to 1."""
        return self._lab(crops)[:, :1] / 50 - 1

    def head(self) -> DenseHead:
        """A class a colour."""
        return DenseHead(self.colours)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """Luminance; the target is the number of each voxel's colour."""
        lab = self._lab(crops)
        target = bins_of(lab[:, 1:], self.options.bin)
        seen = lab[:, :1] >= self.options.dark
        return PretextBatch(lab[:, :1] / 50 - 1, target.unsqueeze(1), seen.to(lab.dtype), answerable=seen.flatten(1).any(dim=1))

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) cross entropy, rare colours counted more."""
        assert batch.weight is not None
        lift = 1 / ((1 - self.options.uniform) * self.share + self.options.uniform / self.colours)
        lift = lift / (lift * self.share).sum()
        cost = F.cross_entropy(prediction, batch.target[:, 0], reduction="none").unsqueeze(1)
        return masked_mean(cost * lift[batch.target], batch.weight)

    def trivial(self, batch: PretextBatch) -> Tensor:
        """The colours of the run so far, everywhere."""
        shape = (len(batch.target), self.colours, *batch.target.shape[2:])
        return self.share.clamp_min(1e-6).log().view(1, -1, *[1] * (len(shape) - 2)).expand(shape)

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Share of voxels whose colour is right."""
        right = (prediction.argmax(dim=1, keepdim=True) == batch.target).float()
        return {"accuracy": masked_mean(right, batch.weight)}

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Luminance, and the likeliest and the right colours on it."""
        assert batch.inputs is not None
        luminance = 50 * (batch.inputs + 1)
        chosen = {"prediction": prediction.argmax(dim=1), "target": batch.target[:, 0]}
        coloured = {name: torch.cat([luminance, middles_of(bins, self.options.bin)], dim=1) for name, bins in chosen.items()}
        return {"input": luminance / 100, **{name: rgb_of(lab) for name, lab in coloured.items()}}

    def commit(self, prediction: Tensor, batch: PretextBatch) -> None:
        """The shares move to those of the step."""
        assert batch.weight is not None
        counted = torch.zeros_like(self.share).scatter_add(0, batch.target.flatten(), batch.weight.flatten())
        total = counted.sum()
        self.share.lerp_(torch.where(total > 0, counted / total.clamp_min(1), self.share), 0.05)

    def _lab(self, crops: Crops) -> Tensor:
        scale, shift = (value.view(*value.shape, *[1] * crops.spatial_dims) for value in crops.rescale.unbind(dim=2))
        return lab_of((crops.images * scale + shift) / self.options.brightest)
