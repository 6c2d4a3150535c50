"""The tasks `slice-order` and `order-verification`: in which order, and whether in order, were the slabs of a crop?"""

from __future__ import annotations

from itertools import permutations
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw, NetworkInfo, PooledHead, PretextBatch, PretextTask
from medssl.learn.ops import accuracy, filled, reorder
from medssl_ordering.slabs import Axis, axis_of, cut_slabs, normalised


class SliceOrder(PretextTask):
    """In which order were the slabs of the crop? (Lee et al., ICCV 2017, who sort frames; slices: Zhang, Wang and Zheng, 2017.)

    Slabs with gaps between them, each normalised by itself and moved across the axis. Forth and back are one answer by default, as
    in Lee et al.: without a landmark nobody can tell them apart.
    """

    name: ClassVar[str] = "slice-order"
    answer: ClassVar[Literal["values", "logits"]] = "logits"
    citation: ClassVar[str] = (
        "Lee et al., Unsupervised representation learning by sorting sequences, ICCV 2017; Zhang, Wang and Zheng, Self supervised deep "
        "representation learning for fine-grained body part recognition, ISBI 2017"
    )
    suite: ClassVar[dict[str, Any]] = {"sizes": {2: (32, 40), 3: (16, 16, 32)}}

    class Options(BaseOptions):
        """Slabs, and which orders are one."""

        slabs: int = Field(default=3, ge=2, le=5)
        """How many are sorted; with 2 and merged directions there is nothing to tell."""
        axis: Axis = "last"
        """Along which they lie; last: that of the slices in 3D."""
        gap: int = Field(default=2, ge=0, le=128)
        """Least voxels between neighbours."""
        direction: bool = False
        """Whether an order and its reverse are two answers; for volumes whose ends differ."""
        empty: float = Field(default=0.1, ge=0, le=1)
        """A slab with less than this share of the crop's standard deviation counts as air, and its crop as unanswerable."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.axis = axis_of(self.options.axis, network.spatial_dims)
        orders = list(permutations(range(self.options.slabs)))
        merged = [min(order, order[::-1]) if not self.options.direction else order for order in orders]
        classes = sorted(set(merged))
        self.classes = len(classes)
        self.register_buffer("orders", torch.tensor(orders), persistent=False)
        self.register_buffer("answers", torch.tensor([classes.index(order) for order in merged]), persistent=False)

    orders: Tensor
    """(orders, slabs): which slab stands where."""
    answers: Tensor
    """(orders,) the class of each."""

    def head(self) -> PooledHead:
        """One class an order."""
        return PooledHead(self.classes, parts=self.options.slabs)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """Slabs in another order; the target is its number."""
        own = self.options
        slabs = cut_slabs(self.name, crops, self.axis, own.slabs, own.gap, self.network.strides, draw.fork("slabs"))
        number = draw.integers(0, len(self.orders))
        order = self.orders.to(number.device)[number]
        shuffled = reorder(slabs, order)
        answerable = filled(slabs, crops.images, own.empty).all(dim=1)
        return PretextBatch(normalised(shuffled), self.answers.to(number.device)[number], answerable=answerable)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) cross entropy."""
        return F.cross_entropy(prediction, batch.target, reduction="none")

    def trivial(self, batch: PretextBatch) -> Tensor:
        """Every order equally likely."""
        return torch.zeros(len(batch.target), self.classes, device=batch.target.device)

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Share of right answers; ties count by chance."""
        return {"accuracy": accuracy(prediction, batch.target)}

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """The slabs that came first and last."""
        assert batch.inputs is not None
        return {"first": batch.inputs[0 :: self.options.slabs], "last": batch.inputs[self.options.slabs - 1 :: self.options.slabs]}


class OrderVerification(PretextTask):
    """Is this triplet of slabs in order? (Misra, Zitnick and Hebert, ECCV 2016, Shuffle and Learn.)

    Of five slabs a to e the triplet b c d is in order, b a d and b e d are not; half of the questions are each, and all triplets also
    come reversed, as in the paper.
    """

    name: ClassVar[str] = "order-verification"
    answer: ClassVar[Literal["values", "logits"]] = "logits"
    citation: ClassVar[str] = (
        "Misra, Zitnick and Hebert, Shuffle and learn: unsupervised learning using temporal order verification, ECCV 2016"
    )
    suite: ClassVar[dict[str, Any]] = {"sizes": {2: (24, 48), 3: (16, 16, 48)}}

    class Options(BaseOptions):
        """Slabs."""

        axis: Axis = "last"
        """Along which they lie; last: that of the slices in 3D."""
        gap: int = Field(default=1, ge=0, le=128)
        """Least voxels between neighbours."""
        empty: float = Field(default=0.1, ge=0, le=1)
        """A slab with less than this share of the crop's standard deviation counts as air, and its crop as unanswerable."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.axis = axis_of(self.options.axis, network.spatial_dims)
        triplets = [(1, 0, 3), (1, 4, 3), (1, 2, 3), (1, 2, 3)]
        both = [*triplets, *(triplet[::-1] for triplet in triplets)]
        self.register_buffer("triplets", torch.tensor(both), persistent=False)

    triplets: Tensor
    """(8, 3) slabs, of which those with the middle one in the middle are in order."""

    def head(self) -> PooledHead:
        """In order or not."""
        return PooledHead(2, parts=3)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """Three of five slabs; the target is 1 where they are in order."""
        own = self.options
        slabs = cut_slabs(self.name, crops, self.axis, 5, own.gap, self.network.strides, draw.fork("slabs"))
        number = draw.integers(0, len(self.triplets))
        chosen = self.triplets.to(number.device)[number]
        shown = reorder(slabs, chosen)
        answerable = filled(slabs, crops.images, own.empty).all(dim=1)
        return PretextBatch(normalised(shown), (chosen[:, 1] == 2).long(), answerable=answerable)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) cross entropy."""
        return F.cross_entropy(prediction, batch.target, reduction="none")

    def trivial(self, batch: PretextBatch) -> Tensor:
        """Both equally likely."""
        return torch.zeros(len(batch.target), 2, device=batch.target.device)

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Share of right answers; ties count by chance."""
        return {"accuracy": accuracy(prediction, batch.target)}

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """The three slabs."""
        assert batch.inputs is not None
        return {name: batch.inputs[place::3] for place, name in enumerate(("first", "second", "third"))}
