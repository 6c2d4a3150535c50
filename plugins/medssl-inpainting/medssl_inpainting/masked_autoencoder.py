"""The task `masked-autoencoder`: hidden patches from the visible tokens alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw, ModuleHead, NetworkInfo, PretextBatch, PretextTask
from medssl.errors import NetworkError
from medssl.learn.ops import masked_mean


class MaskedAutoencoder(PretextTask):
    """Rebuild hidden patches; the encoder sees the visible tokens alone (He et al., CVPR 2022).

    Three quarters are hidden and each patch is normalised by itself, as in the paper. Needs an encoder that can leave tokens out
    (ViT, UNETR); for others there is `inpainting`. The decoder is the task's own and is not kept: narrow and shallow here, 512
    wide and 8 deep in the paper.
    """

    name: ClassVar[str] = "masked-autoencoder"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    citation: ClassVar[str] = "He et al., Masked autoencoders are scalable vision learners, CVPR 2022"
    suite: ClassVar[dict[str, Any]] = {"tokens": True, "options": {"width": 16, "depth": 1}}

    class Options(BaseOptions):
        """How much is hidden, and the decoder."""

        ratio: float = Field(default=0.75, gt=0, lt=1)
        """Share of the tokens that is hidden."""
        normalise: bool = True
        """Whether each patch is asked for with mean 0 and spread 1."""
        width: int = Field(default=128, ge=8, le=2048, multiple_of=8)
        """Width of the decoder."""
        depth: int = Field(default=2, ge=1, le=16)
        """Blocks of the decoder."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        if not network.tokens:
            raise NetworkError(
                "masked-autoencoder leaves tokens out, and this encoder does not work on tokens. Take ViT or UNETR, or the task inpainting."
            )
        outputs = network.channels * prod(network.strides)
        self.decoder = Decoder(network.tokens, network.embedding_width, self.options.width, self.options.depth, outputs)

    def head(self) -> ModuleHead:
        """Every patch, from the visible tokens."""
        return ModuleHead(self.decoder, "tokens", sees_batch=True)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """The crop, which tokens of it are visible, and its patches."""
        count = self.network.tokens
        shown = min(max(1, round(count * (1 - self.options.ratio))), count - 1)
        visible = draw.permutation(count)[:, :shown]
        hidden = torch.ones((len(crops), count), device=visible.device).scatter(1, visible, 0.0)
        target = patches(crops.images, self.network.strides)
        if self.options.normalise:
            centred = target - target.mean(dim=2, keepdim=True)
            target = centred / centred.square().mean(dim=2, keepdim=True).sqrt().clamp_min(1e-3)
        return PretextBatch(crops.images, target, hidden.unsqueeze(2), visible=visible)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) mean squared error of hidden patches."""
        return masked_mean((prediction - batch.target).square(), batch.weight)

    def trivial(self, batch: PretextBatch) -> Tensor:
        """0, the mean of normalised patches."""
        return torch.zeros_like(batch.target)

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """What the encoder saw, hidden patches filled in (normalised ones with the true mean and spread), and the truth."""
        assert batch.inputs is not None and batch.weight is not None
        images, hidden = batch.inputs, batch.weight > 0
        own = patches(images, self.network.strides)
        if self.options.normalise:
            mean = own.mean(dim=2, keepdim=True)
            prediction = prediction * (own - mean).square().mean(dim=2, keepdim=True).sqrt().clamp_min(1e-3) + mean
        shown = {"input": own.mean(dim=(1, 2), keepdim=True), "prediction": prediction.to(own.dtype), "target": own}
        return {name: image_of(torch.where(hidden, values, own), images, self.network.strides) for name, values in shown.items()}


class Decoder(nn.Module):
    """Puts a mask token where none was visible, adds positions, and answers for every patch."""

    def __init__(self, tokens: int, embedding: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.embed, self.output = nn.Linear(embedding, width), nn.Linear(width, outputs)
        self.mask = nn.Parameter(torch.zeros(width))
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        layers = [nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True) for _ in range(depth)]
        self.blocks = nn.Sequential(*layers)

    def forward(self, tokens: Tensor, batch: PretextBatch) -> Tensor:
        """(B, N, outputs) of all patches, from the visible tokens (B, V, E)."""
        assert batch.visible is not None
        seen = self.embed(tokens)
        everywhere = self.mask.to(seen.dtype).expand(len(seen), len(self.place), -1)
        where = batch.visible.unsqueeze(2).expand(-1, -1, seen.shape[2])
        answer: Tensor = self.output(self.blocks(everywhere.scatter(1, where, seen) + self.place))
        return answer


def patches(images: Tensor, sides: Sequence[int]) -> Tensor:
    """(B, N, C * voxels of a patch), in the order of the encoder's tokens."""
    for axis, side in enumerate(sides):
        images = images.unfold(2 + axis, side, side)
    return images.flatten(2, 1 + len(sides)).transpose(1, 2).flatten(2)


def image_of(values: Tensor, like: Tensor, sides: Sequence[int]) -> Tensor:
    """The image of the size of `like` that has these patches."""
    dims = len(sides)
    grid = [side // patch for side, patch in zip(like.shape[2:], sides, strict=True)]
    apart = values.view(len(values), *grid, like.shape[1], *sides)
    beside = [place for axis in range(dims) for place in (1 + axis, 2 + dims + axis)]
    return apart.permute(0, 1 + dims, *beside).reshape(like.shape)
