"""The task `jigsaw`: in which order were the cells of the crop?"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw, NetworkInfo, PooledHead, PretextBatch, PretextTask
from medssl.errors import ConfigError
from medssl.learn.ops import accuracy, filled, reorder, spread_permutations, standardise
from medssl_placement.cells import cells_of, cut_cells, patch_sides


class Jigsaw(PretextTask):
    """Shuffled cells of a crop: which permutation was it, or where does each cell belong? (Noroozi and Favaro, ECCV 2016.)

    As in the paper the permutations are those that differ most (greedily by Hamming distance), each cell is normalised by itself
    and a patch is cut anywhere inside it, so that neither brightness nor an edge that continues gives the answer; it has 9 cells
    and 1,000 permutations in 2D. Crops with a cell of air carry no answer.
    """

    name: ClassVar[str] = "jigsaw"
    answer: ClassVar[Literal["values", "logits"]] = "logits"
    citation: ClassVar[str] = "Noroozi and Favaro, Unsupervised learning of visual representations by solving jigsaw puzzles, ECCV 2016"

    class Options(BaseOptions):
        """The grid, and what is asked."""

        cells: int = Field(default=2, ge=2, le=4)
        """Cells along each axis."""
        ask: Literal["permutation", "places"] = "permutation"
        """permutation: which of the `permutations` it was; places: where each cell belongs, for any permutation."""
        permutations: int = Field(default=100, ge=2, le=2000)
        """permutation: how many there are; all of them where the grid has fewer."""
        jitter: int = Field(default=2, ge=0, le=128)
        """Voxels by which a cell is longer than the patch that is cut anywhere inside it, at least."""
        empty: float = Field(default=0.1, ge=0, le=1)
        """A patch with less than this share of the crop's standard deviation counts as air, and its crop as unanswerable."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.grid = (self.options.cells,) * network.spatial_dims
        if len(cells_of(self.grid)) > 27:
            raise ConfigError("jigsaw: more than 27 cells are too many. Set cells to 3 or less in 3D.")
        self.register_buffer("orders", spread_permutations(len(cells_of(self.grid)), self.options.permutations), persistent=False)

    orders: Tensor
    """(permutations, cells): which cell stands where."""

    def head(self) -> PooledHead:
        """One class a permutation from all cells, or one class a place from each."""
        cells = self.orders.shape[1]
        if self.options.ask == "places":
            return PooledHead(outputs=cells, parts=cells, join="each")
        return PooledHead(outputs=len(self.orders), parts=cells)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """The patches in another order; the target is the number of the order, or where each patch belongs."""
        patch = patch_sides(self.name, crops.size, self.grid, self.network.strides, self.options.jitter)
        patches = cut_cells(crops.images, self.grid, patch, draw.fork("cells"))
        answerable = filled(patches, crops.images, self.options.empty).all(dim=1)
        if self.options.ask == "places":
            target = order = draw.permutation(len(cells_of(self.grid)))
        else:
            target = draw.integers(0, len(self.orders))
            order = self.orders.to(target.device)[target]
        shuffled = reorder(patches, order)
        return PretextBatch(standardise(shuffled.flatten(0, 1)), target, answerable=answerable)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) cross entropy."""
        if self.options.ask == "places":
            return F.cross_entropy(prediction.mT, batch.target, reduction="none").mean(dim=1)
        return F.cross_entropy(prediction, batch.target, reduction="none")

    def trivial(self, batch: PretextBatch) -> Tensor:
        """Everything equally likely."""
        outputs = self.head().outputs
        return torch.zeros(*batch.target.shape, outputs, device=batch.target.device)

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Share of right answers; ties count by chance."""
        return {"accuracy": accuracy(prediction, batch.target)}

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """The patches that came first and last."""
        assert batch.inputs is not None
        patches = batch.inputs.view(len(batch.target), -1, *batch.inputs.shape[1:])
        return {"first": patches[:, 0], "last": patches[:, -1]}
