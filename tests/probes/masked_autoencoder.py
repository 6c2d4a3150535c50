"""A masked autoencoder: the encoder sees some tokens, a small decoder of the task's own rebuilds the hidden patches."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw, ModuleHead, NetworkInfo, PretextBatch, PretextTask
from medssl.errors import NetworkError
from medssl.learn.ops import masked_mean


def patches(images: Tensor, sides: Sequence[int]) -> Tensor:
    """(B, N, C * voxels of a patch), in the order of the encoder's tokens."""
    for axis, side in enumerate(sides):
        images = images.unfold(2 + axis, side, side)
    dims = len(sides)
    return images.flatten(2, 1 + dims).transpose(1, 2).flatten(2)


class Decoder(nn.Module):
    """Puts a mask token where none was visible, adds positions, and answers for every patch."""

    def __init__(self, tokens: int, embedding: int, width: int, outputs: int) -> None:
        super().__init__()
        self.embed, self.output = nn.Linear(embedding, width), nn.Linear(width, outputs)
        self.mask = nn.Parameter(torch.zeros(width))
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)

    def forward(self, tokens: Tensor, batch: PretextBatch) -> Tensor:
        seen = self.embed(tokens)
        everywhere = self.mask.to(seen.dtype).expand(len(seen), len(self.place), -1)
        where = batch.visible.unsqueeze(2).expand(-1, -1, seen.shape[2])
        return self.output(self.block(everywhere.scatter(1, where, seen) + self.place))


class MaskedAutoencoder(PretextTask):
    """Rebuild hidden patches from a quarter of the tokens (He et al., CVPR 2022)."""

    name: ClassVar[str] = "token-dropping"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    citation: ClassVar[str] = "He et al., Masked autoencoders are scalable vision learners, CVPR 2022"

    class Options(BaseOptions):
        """How much is hidden, and the decoder."""

        ratio: float = Field(default=0.75, gt=0, lt=1)
        """Share of the tokens that is hidden."""
        width: int = Field(default=16, ge=2, multiple_of=2)
        """Width of the decoder."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        if not network.tokens:
            raise NetworkError("token-dropping leaves tokens out, and this encoder does not work on tokens. Take ViT or UNETR.")
        self.decoder = Decoder(network.tokens, network.embedding_width, self.options.width, network.channels * prod(network.strides))

    def head(self) -> ModuleHead:
        return ModuleHead(self.decoder, "tokens", sees_batch=True)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        count = self.network.tokens
        visible = draw.permutation(count)[:, : max(1, round(count * (1 - self.options.ratio)))]
        hidden = torch.ones((len(crops), count), device=visible.device).scatter(1, visible, 0.0)
        return PretextBatch(crops.images, patches(crops.images, self.network.strides), hidden.unsqueeze(2), visible=visible)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return masked_mean((prediction - batch.target).square(), batch.weight)

    def trivial(self, batch: PretextBatch) -> Tensor:
        return torch.zeros_like(batch.target)
