"""The task `restoration`: Models Genesis."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from medssl.config import BaseOptions
from medssl.contracts import Crops, DenseHead, Draw, PretextBatch, PretextTask
from medssl.learn.ops import masked_mean

Chance = Annotated[float, Field(ge=0, le=1)]
KNOTS = 64
"""Points of an intensity curve."""
BOXES = 5
"""Boxes that are painted over, or left, at most, as in the paper."""


class Restoration(PretextTask):
    """Give back a crop whose intensities were bent, whose voxels were shuffled nearby, and that was painted over (Zhou et al., 2019).

    The chances are those of Models Genesis: intensity curve 0.9 (half of them falling), local shuffling 0.5, painting 0.9, of which
    one in five inside boxes and four outside of them. A shuffled voxel shows any of its block, so values may come twice, where the
    paper permutes small windows: the same texture is lost, for the price of one look-up.
    """

    name: ClassVar[str] = "restoration"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    same_for_views: ClassVar[bool] = True
    citation: ClassVar[str] = "Zhou et al., Models Genesis: generic autodidactic models for 3D medical image analysis, MICCAI 2019"

    class Options(BaseOptions):
        """How often each is done."""

        curve: Chance = 0.9
        """Chance that intensities go through a random monotone curve."""
        falling: Chance = 0.5
        """Chance that such a curve falls, so that bright and dark change places."""
        shuffle: Chance = 0.5
        """Chance that voxels are shuffled within blocks."""
        block: int = Field(default=8, ge=2, le=64)
        """Largest side of such a block in voxels."""
        paint: Chance = 0.9
        """Chance that a part is painted over with noise."""
        inner: Chance = 0.2
        """Of what is painted: chance that it is inside a few boxes; else it is all outside of them."""

    options: Options

    def head(self) -> DenseHead:
        """The intensities of every channel at every voxel."""
        return DenseHead(self.network.channels)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """The damaged crop; the crop is the target."""
        own, images = self.options, crops.images
        axes = tuple(range(2, images.dim()))
        low, high = images.amin(dim=axes, keepdim=True), images.amax(dim=axes, keepdim=True)
        unit = (images - low) / (high - low).clamp_min(1e-6)
        chance = draw.uniform(3).view(-1, 3, *[1] * (images.dim() - 1)).unbind(1)
        damaged = torch.where(chance[0] < own.curve, bent(unit, own.falling, draw.fork("curve")), unit)
        damaged = torch.where(chance[1] < own.shuffle, shuffled(damaged, own.block, draw.fork("shuffle")), damaged)
        painted, noise = self._painted(crops, draw.fork("paint"))
        damaged = torch.where((chance[2] < own.paint) & painted, noise, damaged)
        return PretextBatch(damaged * (high - low) + low, images)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) mean squared error over the whole crop."""
        return masked_mean((prediction - batch.target).square())

    def trivial(self, batch: PretextBatch) -> Tensor:
        """The damaged crop as it is shown."""
        assert batch.inputs is not None
        return batch.inputs

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """Damaged, restored, and the truth."""
        assert batch.inputs is not None
        return {"input": batch.inputs, "prediction": prediction, "target": batch.target}

    def _painted(self, crops: Crops, draw: Draw) -> tuple[Tensor, Tensor]:
        """(B, 1, *size) what is painted over, and with what."""
        size = crops.size
        inner = draw.uniform() < self.options.inner
        count = draw.integers(1, BOXES + 1)
        # As in the paper: boxes of a sixth to a third of the crop are painted, or all but boxes of three to four sevenths.
        small, large = draw.uniform(BOXES, len(size), low=1 / 6, high=1 / 3), draw.uniform(BOXES, len(size), low=3 / 7, high=4 / 7)
        share, start = torch.where(inner.view(-1, 1, 1), small, large), draw.uniform(BOXES, len(size))
        boxes = (torch.arange(BOXES, device=count.device) < count[:, None]).view(-1, BOXES, *[1] * len(size))
        for axis, side in enumerate(size):
            first = start[..., axis] * (1 - share[..., axis]) * side
            steps = torch.arange(side, device=first.device)
            within = (steps >= first[..., None]) & (steps < (first + share[..., axis] * side)[..., None])
            boxes = boxes & within.view(*within.shape[:2], *[side if other == axis else 1 for other in range(len(size))])
        inside = boxes.any(dim=1, keepdim=True)
        painted = torch.where(inner.view(-1, *[1] * inside[0].dim()), inside, ~inside)
        return painted, draw.uniform(*crops.images.shape[1:])


def bent(unit: Tensor, falling: float, draw: Draw) -> Tensor:
    """Values in 0 .. 1 through a random monotone Bezier curve from corner to corner, one a sample."""
    corners = draw.uniform(2, 2).sort(dim=1).values
    t = torch.linspace(0, 1, 4 * KNOTS, device=unit.device)
    first, second, last = 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
    x, y = ((corners[:, 0, k, None] * first + corners[:, 1, k, None] * second + last).contiguous() for k in (0, 1))
    y = torch.where((draw.uniform() < falling)[:, None], 1 - y, y)
    # The curve at equally spaced x, then read by linear interpolation.
    knots = torch.linspace(0, 1, KNOTS, device=unit.device).expand(len(unit), -1).contiguous()
    right = torch.searchsorted(x, knots).clamp(1, x.shape[1] - 1)
    before, after = x.gather(1, right - 1), x.gather(1, right)
    share = ((knots - before) / (after - before).clamp_min(1e-6)).clamp(0, 1)
    table = torch.lerp(y.gather(1, right - 1), y.gather(1, right), share)
    place = unit.flatten(1) * (KNOTS - 1)
    left = place.long().clamp(0, KNOTS - 2)
    return torch.lerp(table.gather(1, left), table.gather(1, left + 1), place - left).view(unit.shape)


def shuffled(images: Tensor, block: int, draw: Draw) -> Tensor:
    """Each voxel shows one of the block it lies in; half of the blocks, of a side that each sample draws, stay as they are."""
    size = images.shape[2:]
    side = draw.integers(2, block + 1)
    place = torch.zeros((), dtype=torch.int64, device=images.device)
    cell = torch.zeros((), dtype=torch.int64, device=images.device)
    wobble = draw.uniform(len(size), *size)
    own = torch.zeros((), dtype=torch.int64, device=images.device)
    for axis, length in enumerate(size):
        shape = [len(images), *[length if other == axis else 1 for other in range(len(size))]]
        steps = torch.arange(length, device=images.device)
        start = steps // side[:, None] * side[:, None]
        room = (start + side[:, None]).clamp_max(length) - start
        source = start.view(shape) + (wobble[:, axis] * room.view(shape)).long()
        place, own = place * length + source, own * length + steps.view([1, *shape[1:]])
        cell = cell * 31 + (start // side[:, None]).view(shape)
    chosen = draw.uniform(997).gather(1, (cell % 997).flatten(1)).view(cell.shape) < 0.5
    index = torch.where(chosen, place, own).flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).view(images.shape)
