"""The task `frame-order`: in which order were the frames of a cine or dynamic series?"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medssl.augment import spread
from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw, NetworkInfo, PooledHead, PretextBatch, PretextTask
from medssl.errors import ConfigError
from medssl.learn.ops import accuracy, reorder, spread_permutations, standardise


class FrameOrder(PretextTask):
    """Which permutation of the frames, which are the channels, is shown? (Lee et al., ICCV 2017; the orders as for jigsaw puzzles.)

    Each frame is normalised by itself: contrast that washes in and signal that drifts would tell the order without a look at the
    anatomy. Forth and back count as two answers, since time has a direction.
    """

    name: ClassVar[str] = "frame-order"
    answer: ClassVar[Literal["values", "logits"]] = "logits"
    citation: ClassVar[str] = "Lee et al., Unsupervised representation learning by sorting sequences, ICCV 2017"
    suite: ClassVar[dict[str, Any]] = {"channels": 4}

    class Options(BaseOptions):
        """Which orders."""

        permutations: int = Field(default=24, ge=2, le=2000)
        """How many orders there are, those that differ most; all of them where there are fewer."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        if network.channels < 2:
            raise ConfigError("frame-order sorts the frames that are the channels of an image, and the images have one.")
        self.register_buffer("orders", spread_permutations(network.channels, self.options.permutations), persistent=False)

    orders: Tensor
    """(orders, frames): which frame stands where."""

    def head(self) -> PooledHead:
        """One class an order."""
        return PooledHead(len(self.orders))

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """The frames in another order; the target is its number."""
        target = draw.integers(0, len(self.orders))
        order = self.orders.to(target.device)[target]
        frames = standardise(crops.images)
        shuffled = reorder(frames, order)
        # Frames in which nothing can be seen, as in a crop of air, stand in no order.
        answerable = (spread(crops.images).flatten(1) > 1e-6).all(dim=1)
        return PretextBatch(shuffled, target, answerable=answerable)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) cross entropy."""
        return F.cross_entropy(prediction, batch.target, reduction="none")

    def trivial(self, batch: PretextBatch) -> Tensor:
        """Every order equally likely."""
        return torch.zeros(len(batch.target), len(self.orders), device=batch.target.device)

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Share of right answers; ties count by chance."""
        return {"accuracy": accuracy(prediction, batch.target)}

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """The frames as they were shown."""
        assert batch.inputs is not None
        return {"input": batch.inputs}
