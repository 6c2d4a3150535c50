"""The task `volume-contrast`: how much does a random box overlap each of a grid of base boxes?"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw, NetworkInfo, PooledHead, PretextBatch, PretextTask
from medssl.learn.ops import cut, standardise
from medssl_placement.cells import cells_of, patch_sides


class VolumeContrast(PretextTask):
    """The embedding of a random box is as like each base box as it overlaps it (Wu, Zhuang and Chen, CVPR 2024, VoCo).

    Base boxes tile the crop, random ones have their size. As in the paper the likeness is the positive part of a cosine, the cost
    is -log(1 - |likeness - overlap|), and different base boxes are pushed apart; it tiles a volume with 16 boxes in the plane of
    the slices, here the crop itself is tiled, so take large crops.
    """

    name: ClassVar[str] = "volume-contrast"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    citation: ClassVar[str] = (
        "Wu, Zhuang and Chen, VoCo: a simple-yet-effective volume contrastive learning framework for 3D medical image analysis, CVPR 2024"
    )

    class Options(BaseOptions):
        """Boxes, and how they are compared."""

        cells: int = Field(default=2, ge=2, le=4)
        """Base boxes along each axis."""
        boxes: int = Field(default=2, ge=1, le=16)
        """Random boxes a crop."""
        width: int = Field(default=64, ge=2, le=2048)
        """Of the projection that is compared."""
        apart: float = Field(default=1.0, ge=0, le=100)
        """What it counts that different base boxes are alike."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.grid = (self.options.cells,) * network.spatial_dims

    def head(self) -> PooledHead:
        """A projection of every base box, then of every random one."""
        return PooledHead(self.options.width, parts=len(cells_of(self.grid)) + self.options.boxes, join="each")

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """All boxes, each normalised by itself; the target is how much each random one overlaps each base box, as a share of a box."""
        patch = patch_sides(self.name, crops.size, self.grid, self.network.strides, 0)
        device = crops.images.device
        side = torch.tensor(patch, device=device)
        bases = torch.tensor(cells_of(self.grid), device=device) * side
        # Random boxes lie where base boxes are; a border that no base covers has no answer.
        free = (torch.tensor(self.grid, device=device) - 1) * side
        places = (draw.uniform(self.options.boxes, len(patch)) * (free + 1)).long()
        common = (side - (places.unsqueeze(2) - bases).abs()).clamp_min(0)
        overlap = (common / side).prod(dim=3)
        corners = torch.cat([bases.expand(len(crops), -1, -1), places], dim=1)
        boxes = torch.stack([cut(crops.images, corner, patch) for corner in corners.unbind(dim=1)], dim=1)
        return PretextBatch(standardise(boxes.flatten(0, 1)), overlap)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) of the overlaps, and of base boxes that are alike."""
        bases, likeness = self._likeness(prediction, batch)
        cost = -(1 - (likeness - batch.target).abs()).clamp_min(1e-4).log()
        between = (bases @ bases.mT).clamp_min(0)
        count = between.shape[1]
        others = between.flatten(1).sum(dim=1) - between.diagonal(dim1=1, dim2=2).sum(dim=1)
        return cost.flatten(1).mean(dim=1) + self.options.apart * others / (count * (count - 1))

    def trivial(self, batch: PretextBatch) -> Tensor | None:
        """Base boxes that have nothing in common, and random ones as like each as they overlap it on average; None without room for it."""
        samples, boxes, count = batch.target.shape
        if self.options.width <= count:
            return None
        bases = torch.eye(count, self.options.width, device=batch.target.device)
        box = bases.mean(dim=0)
        box[count] = (1 - 1 / count) ** 0.5
        return torch.cat([bases, box.expand(boxes, -1)]).expand(samples, -1, -1)

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Mean difference of likeness and overlap."""
        return {"error": (self._likeness(prediction, batch)[1] - batch.target).abs().flatten(1).mean(dim=1)}

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """The first base box and the first random one."""
        assert batch.inputs is not None
        boxes = batch.inputs.view(len(batch.target), -1, *batch.inputs.shape[1:])
        return {"base": boxes[:, 0], "box": boxes[:, -self.options.boxes]}

    def _likeness(self, prediction: Tensor, batch: PretextBatch) -> tuple[Tensor, Tensor]:
        bases, boxes = F.normalize(prediction, dim=2).split([batch.target.shape[2], batch.target.shape[1]], dim=1)  # type: ignore[no-untyped-call]
        return bases, (boxes @ bases.mT).clamp(0, 1)
