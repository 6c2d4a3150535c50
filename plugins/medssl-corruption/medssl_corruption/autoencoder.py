"""The task `autoencoder`: the baseline to beat."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw, ModuleHead, NetworkInfo, PretextBatch, PretextTask
from medssl.learn.ops import masked_mean


class Autoencoder(PretextTask):
    """Give back the crop from the encoder's end alone (Hinton and Salakhutdinov, Science 2006): the baseline to beat.

    It has a decoder of its own without skip connections; a network with skips would only learn to copy.
    """

    name: ClassVar[str] = "autoencoder"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    same_for_views: ClassVar[bool] = True
    citation: ClassVar[str] = "Hinton and Salakhutdinov, Reducing the dimensionality of data with neural networks, Science 2006"
    suite: ClassVar[dict[str, Any]] = {"random": False, "options": {"width": 8}}

    class Options(BaseOptions):
        """The decoder."""

        width: int = Field(default=32, ge=2, le=1024)
        """Channels of the decoder's layers."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        conv, width = nn.Conv2d if network.spatial_dims == 2 else nn.Conv3d, self.options.width
        layers: list[nn.Module] = []
        inputs, left = max(network.embedding_width, 1), list(network.strides)
        while max(left, default=1) > 1:
            step = tuple(2 if stride % 2 == 0 else stride for stride in left)
            layers.append(_upward(conv, inputs, width, step))
            inputs, left = width, [stride // by for stride, by in zip(left, step, strict=True)]
        self.decoder = nn.Sequential(*layers, conv(inputs, network.channels, 1))

    def head(self) -> ModuleHead:
        """The crop, from the encoder's end."""
        return ModuleHead(self.decoder, "encoder_end", dense=True)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """The crop as it is."""
        return PretextBatch(crops.images, crops.images)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) mean squared error."""
        return masked_mean((prediction - batch.target).square())

    def trivial(self, batch: PretextBatch) -> Tensor:
        """The mean of each channel everywhere."""
        return batch.target.mean(dim=tuple(range(2, batch.target.dim())), keepdim=True).expand_as(batch.target)

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """The crop and what came back."""
        return {"input": batch.target, "prediction": prediction}


def _upward(conv: Any, inputs: int, outputs: int, scale: tuple[int, ...]) -> nn.Sequential:
    """`scale` times the size along each axis, a 3-wide convolution, normalised in groups, and ReLU."""
    groups = next(count for count in (8, 4, 2, 1) if outputs % count == 0)
    block = nn.Sequential(conv(inputs, outputs, 3, padding=1), nn.GroupNorm(groups, outputs), nn.ReLU())
    return nn.Sequential(nn.Upsample(scale_factor=scale, mode="bilinear" if len(scale) == 2 else "trilinear"), block)
