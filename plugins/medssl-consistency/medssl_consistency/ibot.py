"""The pretext task `ibot`: what the teacher makes of hidden cells, and of the whole crop, from the rest of it."""

from __future__ import annotations

from math import ceil
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medssl.augment import Look, make_view
from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw, ModuleHead, NetworkInfo, PretextBatch, PretextTask, TaskNeeds
from medssl.errors import NetworkError
from medssl.learn.ops import masked_mean, pool, visible_mean
from medssl_consistency.distillation import DistillationOptions, Prototypes, distilled
from medssl_consistency.teaching import rising

STILL = Look(flip=0.0, rotate=0.0, scale=1.0, shift=0.0)


class CellsAndWhole(nn.Module):
    """Prototypes of the whole crop first, then of every cell at the encoder's end."""

    def __init__(self, network: NetworkInfo, hidden: int, bottleneck: int, count: int) -> None:
        super().__init__()
        self.whole, self.cells = (Prototypes(network.embedding_width, hidden, bottleneck, count) for _ in range(2))

    def forward(self, encoder_end: Tensor) -> Tensor:
        """(B, 1 + cells, K)."""
        return torch.cat([self.whole(pool(encoder_end)).unsqueeze(1), self.cells(encoder_end.flatten(2).mT)], dim=1)


class IBOT(PretextTask):
    """Answer of a crop with hidden cells what the teacher answers of the whole one: for each hidden cell, and for the crop.

    The masked and the global term of iBOT (Zhou et al., ICLR 2022) and of SMIT (Jiang et al., MICCAI 2022), which adds inpainting:
    put the task `inpainting` beside it. Cells are those of the encoder's end, hidden voxels show the mean of the others, so every
    encoder can be trained, not only one with mask tokens. Temperatures, centring and momentum are DINO's; the student's view
    looks different but keeps its place, where iBOT's global term also compares two cut-outs.
    """

    name: ClassVar[str] = "ibot"
    answer: ClassVar[Literal["values", "logits"]] = "logits"
    needs: ClassVar[frozenset[TaskNeeds]] = frozenset({"teacher_answer"})
    citation: ClassVar[str] = (
        "Zhou et al., iBOT: image BERT pre-training with online tokenizer, ICLR 2022; "
        "Jiang et al., Self-supervised 3D anatomy segmentation using self-distilled masked image transformer (SMIT), MICCAI 2022"
    )

    class Options(DistillationOptions):
        """What is hidden, prototypes and the projector."""

        ratio: float = Field(default=0.5, gt=0, lt=1)
        """Share of the cells that is hidden; at least one is and one is not."""
        prototypes: int = Field(default=1024, ge=2, le=1_000_000)
        """How many directions a cell is compared with."""
        hidden: int = Field(default=256, ge=2, le=8192)
        """Hidden width of the projector."""
        whole: float = Field(default=1.0, ge=0, le=100)
        """What the global term counts beside the hidden cells' 1."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        own = self.options
        self.prototypes = CellsAndWhole(network, own.hidden, own.bottleneck, own.prototypes)
        self.register_buffer("centre", torch.zeros(2, own.prototypes))

    centre: Tensor
    """(2, K) the teacher's mean answer about crops, and about cells."""

    def head(self) -> ModuleHead:
        """Prototypes of the crop and of its cells."""
        return ModuleHead(self.prototypes, "encoder_end")

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """Crops that look different and have hidden cells; the target says which."""
        grid = self._grid(crops.size)
        order = draw.uniform(*grid).flatten(1).argsort(dim=1).argsort(dim=1)
        count = order.shape[1]
        if count < 2:
            raise NetworkError(
                f"ibot: the encoder's end has one cell for a crop of {crops.size}: hidden is all or nothing. Take a larger crop."
            )
        cells = order < min(max(1, round(self.options.ratio * count)), count - 1)
        hidden = cells.view(-1, 1, *grid)
        for axis, (side, stride) in enumerate(zip(crops.size, self.network.strides, strict=True)):
            hidden = hidden.repeat_interleave(stride, dim=axis + 2).narrow(axis + 2, 0, side)
        images, _ = make_view(crops.images, STILL, draw.fork("look"), crops.spacing)
        return PretextBatch(torch.where(hidden, visible_mean(images, hidden), images), cells)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) of the hidden cells and of the crop."""
        taught = self._taught(batch)
        temperature = self.options.temperature(batch.progress)
        whole = distilled(prediction[:, 0], taught[:, 0], self.centre[0], temperature)
        cells = distilled(prediction[:, 1:], taught[:, 1:], self.centre[1], temperature)
        return masked_mean(cells, batch.target) + self.options.whole * whole

    def trivial(self, batch: PretextBatch) -> Tensor:
        """Every prototype alike."""
        return torch.zeros_like(self._taught(batch))

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Share of the hidden cells whose likeliest prototype is the teacher's."""
        taught = self._taught(batch) - torch.cat([self.centre[:1], self.centre[1:].expand(prediction.shape[1] - 1, -1)])
        right = (prediction.argmax(dim=2) == taught.argmax(dim=2)).float()[:, 1:]
        return {"agreement": masked_mean(right, batch.target)}

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """What was shown."""
        assert batch.inputs is not None
        return {"input": batch.inputs}

    def commit(self, prediction: Tensor, batch: PretextBatch) -> None:
        """The centres move to the mean of what the teacher answered."""
        taught = self._taught(batch)
        means = torch.stack([taught[:, 0].mean(dim=0), taught[:, 1:].flatten(0, 1).mean(dim=0)])
        self.centre.lerp_(means, 0.1)

    def teacher_momentum(self, progress: float) -> float:
        """Along half a cosine to 1."""
        return rising(self.options.momentum, progress)

    def _taught(self, batch: PretextBatch) -> Tensor:
        assert batch.teacher is not None and batch.teacher.answer is not None
        return batch.teacher.answer

    def _grid(self, size: tuple[int, ...]) -> list[int]:
        return [ceil(side / stride) for side, stride in zip(size, self.network.strides, strict=True)]
