"""The task `relative-position`: where does the second patch lie, seen from the first?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw, PooledHead, PretextBatch, PretextTask
from medssl.errors import NetworkError
from medssl.learn.ops import accuracy, cut, filled, standardise


class RelativePosition(PretextTask):
    """Which of the 8 (2D) or 26 (3D) neighbours of the first patch is the second? (Doersch, Gupta and Efros, ICCV 2015.)

    A gap and a jitter keep edges from giving the answer away, each patch is normalised by itself so that brightness and bias
    field do not, and pairs with an empty patch carry no answer.
    """

    name: ClassVar[str] = "relative-position"
    answer: ClassVar[Literal["values", "logits"]] = "logits"
    citation: ClassVar[str] = "Doersch, Gupta and Efros, Unsupervised visual representation learning by context prediction, ICCV 2015"

    class Options(BaseOptions):
        """Where patches lie and which pairs count."""

        gap: int = Field(default=2, ge=0, le=128)
        """Voxels between neighbouring patches before jitter."""
        jitter: int = Field(default=2, ge=0, le=128)
        """Largest random displacement of the second patch along each axis, in voxels, up to half a patch; patches never overlap."""
        patch: int | None = Field(default=None, ge=2, le=512)
        """Side of a patch in voxels; null: the largest that fits twice into the crop and that the network can halve."""
        empty: float = Field(default=0.1, ge=0, le=1)
        """A patch with less than this share of the crop's standard deviation counts as air, and its pair as unanswerable."""

    options: Options

    def __init__(self, options: BaseOptions, network: object) -> None:
        super().__init__(options, network)  # type: ignore[arg-type]
        steps = [step for step in product((-1, 0, 1), repeat=self.network.spatial_dims) if any(step)]
        self.register_buffer("directions", torch.tensor(steps), persistent=False)

    directions: Tensor
    """(classes, D) of -1, 0, 1: the step that each class stands for."""

    def head(self) -> PooledHead:
        """One class a direction, from the embeddings of both patches."""
        return PooledHead(outputs=3**self.network.spatial_dims - 1, parts=2)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """Two standardised patches a crop, the first one's neighbour second; the target is the direction's number."""
        patch = self.patch_size(crops.size)
        target = draw.integers(0, len(self.directions))
        first, second = self._corners(crops.size, patch, self.directions.to(target.device)[target], draw)
        pair = torch.stack([cut(crops.images, corner, patch) for corner in (first, second)], dim=1)
        answerable = filled(pair, crops.images, self.options.empty).all(dim=1)
        return PretextBatch(standardise(pair.flatten(0, 1)), target, answerable=answerable)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) cross entropy."""
        return F.cross_entropy(prediction, batch.target, reduction="none")

    def trivial(self, batch: PretextBatch) -> Tensor:
        """Every direction equally likely."""
        return torch.zeros(len(batch.target), len(self.directions), device=batch.target.device)

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Share of pairs that are placed rightly; of equal answers, what guessing gives."""
        return {"accuracy": accuracy(prediction, batch.target)}

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Both patches."""
        assert batch.inputs is not None
        return {"first": batch.inputs[0::2], "second": batch.inputs[1::2]}

    def patch_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The D sides of a patch for crops of `size`; `NetworkError` where the network cannot take so small a patch."""
        between = self.options.gap + 2 * self.options.jitter
        needed = [2 * stride for stride in self.network.strides]
        sides = []
        for side, stride in zip(size, self.network.strides, strict=True):
            largest = (side - between) // 2
            sides.append(self.options.patch if self.options.patch is not None else largest // stride * stride)
            if self.options.patch is not None and self.options.patch > largest:
                raise NetworkError(
                    f"relative-position: two patches of {self.options.patch} voxels with gap and jitter need a crop of "
                    f"{2 * self.options.patch + between}, and the crop is {tuple(size)}. Take a larger crop or a smaller patch."
                )
        if 2 * self.options.jitter > min(sides):
            raise NetworkError(
                f"relative-position: a jitter of {self.options.jitter} voxels moves patches of {tuple(sides)} by more than half a patch, "
                "so pairs would lie along axes that their answer calls 0. Take a smaller jitter or a larger patch."
            )
        if any(side < least for side, least in zip(sides, needed, strict=True)):
            raise NetworkError(
                f"relative-position: a crop of {tuple(size)} leaves patches of {tuple(sides)}, and this network, which "
                f"halves to a stride of {self.network.strides}, needs at least {tuple(needed)}. "
                f"Take a crop of at least {tuple(2 * n + between for n in needed)} "
                "or a network with fewer levels."
            )
        return tuple(sides)

    def _corners(self, size: Sequence[int], patch: Sequence[int], step: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """First voxels (B, D) of both patches: a step and jitter apart, the pair anywhere in the crop."""
        dims, jitter = len(size), self.options.jitter
        room, side = (torch.tensor(values, device=step.device) for values in (size, patch))
        wobble = draw.integers(-jitter, jitter + 1, dims)
        # Along the step the jitter only widens the gap, so patches never touch or overlap.
        offset = torch.where(step == 0, wobble, step * (side + self.options.gap + wobble + jitter))
        # Keep the wobble inside crops that are no wider than a patch along some axis.
        free = room - side
        offset = torch.where(step == 0, offset.clamp(-free, free), offset)
        slack = free - offset.abs()
        start = (draw.uniform(dims) * (slack + 1)).long().minimum(slack)
        first = start + (-offset).clamp_min(0)
        return first, first + offset
