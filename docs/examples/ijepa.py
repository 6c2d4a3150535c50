"""I-JEPA as a plugin in one file: predict what a teacher makes of hidden blocks, from the rest of the crop.

    medssl plugins check i-jepa            with `--plugin docs/examples/ijepa.py` in front of the command
    medssl --plugin docs/examples/ijepa.py pretrain run.yaml --out runs/i-jepa

where `run.yaml` names a ViT or UNETR and `tasks: [i-jepa]`. It uses three doors that a task has: tokens that the encoder does not see
(`visible`), a predictor of its own (`ModuleHead`), and targets from the teacher (`needs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw, ModuleHead, NetworkInfo, PretextBatch, PretextTask, TaskNeeds
from medssl.errors import NetworkError
from medssl.learn.ops import masked_mean


class Predictor(nn.Module):
    """A narrow transformer: the tokens of a block from the visible ones, each knowing where it lies."""

    def __init__(self, tokens: int, outer: int, width: int, depth: int, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.enter, self.leave = nn.Linear(outer, width), nn.Linear(width, outer)
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.asked = nn.Parameter(0.02 * torch.randn(width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, tokens: Tensor, batch: PretextBatch) -> Tensor:
        """(B, blocks * cells, E): each block is asked for by itself."""
        assert batch.visible is not None
        seen = self.enter(tokens) + self.place[batch.visible]
        asked = (self.asked + self.place[batch.target]).unflatten(1, (self.blocks, -1)).flatten(0, 1)
        shown = torch.cat([seen.repeat_interleave(self.blocks, dim=0), asked], dim=1)
        answer: Tensor = self.leave(self.layers(shown)[:, seen.shape[1] :])
        return answer.unflatten(0, (-1, self.blocks)).flatten(1, 2)


class IJEPA(PretextTask):
    """Predict what the teacher makes of hidden blocks from the visible tokens (Assran et al., CVPR 2023).

    Four blocks, whose tokens are predicted one block at a time by a narrow transformer, and compared with the layer-normed tokens that
    a moving average of the encoder gives of the whole crop, whose momentum rises from 0.996 to 1: as in the paper. There the blocks of
    each batch have another size and shape; here all have one size, for one number of visible tokens in a run, and places are learnt.
    """

    name: ClassVar[str] = "i-jepa"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    needs: ClassVar[frozenset[TaskNeeds]] = frozenset({"teacher"})
    citation: ClassVar[str] = (
        "Assran et al., Self-supervised learning from images with a joint-embedding predictive architecture, CVPR 2023"
    )
    suite: ClassVar[dict[str, Any]] = {"tokens": True, "options": {"width": 16, "depth": 1}}

    class Options(BaseOptions):
        """Blocks and predictor."""

        blocks: int = Field(default=4, ge=1, le=16)
        """How many are predicted; they may overlap."""
        share: float = Field(default=0.15, gt=0, lt=1)
        """Share of the tokens in each block."""
        width: int = Field(default=192, ge=4, le=4096, multiple_of=4)
        """Width of the predictor."""
        depth: int = Field(default=6, ge=1, le=24)
        """Layers of the predictor."""
        momentum: float = Field(default=0.996, ge=0, le=1)
        """The teacher's momentum at the start; it rises to 1 in a straight line."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        if not network.tokens:
            raise NetworkError("i-jepa hides tokens, and this network's encoder does not work on tokens. Take ViT or UNETR.")
        own, grid = self.options, network.token_grid
        self.block = tuple(max(1, round(side * own.share ** (1 / len(grid)))) for side in grid)
        self.seen = network.tokens - own.blocks * prod(self.block)
        if self.seen < 1:
            raise NetworkError(
                f"i-jepa: {own.blocks} blocks of {self.block} tokens leave none of {grid} to be seen. Set blocks or share to less, or take "
                "a larger crop or smaller patches."
            )
        self.predictor = Predictor(network.tokens, network.embedding_width, own.width, own.depth, own.blocks)

    def head(self) -> ModuleHead:
        """The predictor, on the tokens that the encoder saw."""
        return ModuleHead(self.predictor, "tokens", sees_batch=True)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """Whole crops of which the encoder sees some tokens outside all blocks; the target says which tokens are asked for."""
        asked = self._blocks(draw)
        taken = torch.zeros(len(crops), self.network.tokens, device=asked.device).scatter(1, asked, 2.0)
        visible = (taken + draw.uniform(self.network.tokens)).argsort(dim=1)[:, : self.seen]
        return PretextBatch(crops.images, asked, visible=visible)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) smooth L1 to the teacher's tokens."""
        return masked_mean(F.smooth_l1_loss(prediction, self._taught(batch), reduction="none"))

    def trivial(self, batch: PretextBatch) -> Tensor:
        """The mean of a normed token."""
        return torch.zeros_like(self._taught(batch))

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """The crop, what the encoder saw of it, and which tokens were asked for."""
        assert batch.inputs is not None and batch.visible is not None
        masks = {"shown": batch.visible, "asked": batch.target}
        return {"crop": batch.inputs, **{name: self._masked(batch.inputs, numbers) for name, numbers in masks.items()}}

    def teacher_momentum(self, progress: float) -> float:
        """In a straight line to 1."""
        return self.options.momentum + (1 - self.options.momentum) * progress

    def _blocks(self, draw: Draw) -> Tensor:
        """(B, blocks * cells) numbers of the tokens in each block, which lies anywhere."""
        grid, device = self.network.token_grid, draw.device
        steps = torch.tensor(_steps(grid), device=device)
        room = torch.tensor([side - own + 1 for side, own in zip(grid, self.block, strict=True)], device=device)
        corner = (draw.uniform(self.options.blocks, len(grid)) * room).long()
        cells = torch.tensor(list(product(*map(range, self.block))), device=device)
        return ((corner.unsqueeze(2) + cells) * steps).sum(dim=3).flatten(1)

    def _taught(self, batch: PretextBatch) -> Tensor:
        assert batch.teacher is not None
        told = batch.teacher.features["tokens"]
        told = F.layer_norm(told, told.shape[2:])
        return told.gather(1, batch.target.unsqueeze(2).expand(-1, -1, told.shape[2]))

    def _masked(self, images: Tensor, numbers: Tensor) -> Tensor:
        mask = torch.zeros(len(images), self.network.tokens, device=images.device).scatter(1, numbers, 1.0)
        grid = mask.view(-1, 1, *self.network.token_grid)
        return images * F.interpolate(grid, size=images.shape[2:])


def _steps(grid: Sequence[int]) -> list[int]:
    """How far apart in number two tokens are that are neighbours along each axis."""
    return [prod(grid[axis + 1 :]) for axis in range(len(grid))]
