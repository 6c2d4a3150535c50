"""The task `restoration`: Models Genesis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medssl.augment import fill_uniform, look_up
from medssl.config import BaseOptions
from medssl.contracts import Crops, DenseHead, Draw, PretextBatch, PretextTask
from medssl.errors import DataError
from medssl.learn.ops import masked_mean

Chance = Annotated[float, Field(ge=0, le=1)]
KNOTS = 256
"""Points of an intensity curve that are calculated."""
LEVELS = 4096
"""Intensities that a curve tells apart, as many as CT has."""
BOXES = 5
"""Boxes that are painted over, or left, at most, as in the paper."""
INNER, OUTER = (1 / 6, 1 / 3), (3 / 7, 4 / 7)
"""Smallest and largest share of each side of the crop that a box has where boxes are painted, and where all else is."""
ORDERS = 16
"""Permutations of a block that a sample draws; its blocks take them in turn."""
AT_A_TIME = 2**15
"""Voxels that are shuffled at a time."""
SEEDS = 2**62
Box = tuple[slice, ...]


class Restoration(PretextTask):
    """Give back a crop whose intensities were bent, whose voxels were shuffled nearby, and that was painted over (Zhou et al., 2019).

    The chances are those of Models Genesis: intensity curve 0.9 (half of them falling), local shuffling 0.5, painting 0.9, of which
    one in five inside boxes and four outside of them. Voxels change places within the blocks of a grid that each sample draws, where the
    paper permutes 10,000 windows that overlap: the same texture is lost, and every value stays.
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
        own, images, at_hand = self.options, crops.images, draw.on_cpu()
        chances, tables = at_hand.uniform(3).tolist(), bent(own.falling, draw.fork("curve"))
        shuffles = at_hand.fork("shuffle").integers(0, SEEDS).tolist()
        painted = paintings(crops.size, images.shape[1], own.inner, at_hand.fork("paint"))
        plans = [*zip(chances, tables, shuffles, painted, strict=True)]
        if images.device.type != "cpu":
            # Reading the range of a channel would wait for the device: it becomes 0 .. 1, and itself again in the end.
            axes = tuple(range(2, images.dim()))
            low, high = images.amin(dim=axes, keepdim=True), images.amax(dim=axes, keepdim=True)
            unit = (images - low) / (high - low).clamp_min(torch.finfo(images.dtype).tiny)
            return PretextBatch(self._damaged(unit, plans, (0.0, 1.0)) * (high - low) + low, images)
        return PretextBatch(self._damaged(images, plans), images)

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

    def _damaged(self, images: Tensor, plans: Sequence[Plan], span: tuple[float, float] | None = None) -> Tensor:
        """(B, C, *size) `images`, each by its plan; `span` is the range of all of them, where it is known."""
        own = self.options
        damaged = torch.empty_like(images)
        for image, out, (chance, table, seed, over) in zip(images.detach(), damaged, plans, strict=True):
            painting = over if chance[2] < own.paint else None
            if chance[1] < own.shuffle:
                image = shuffled(image, own.block, seed, painting.boxes if painting and not painting.inner else None)
            for values, made, seeds in zip(image, out, over.seeds, strict=True):
                damage(values, made, table if chance[0] < own.curve else None, painting, seeds, span)
        return damaged


@dataclass(frozen=True)
class Painting:
    """What one sample is painted over with."""

    inner: bool
    """Whether the boxes are painted, or all that lies outside of them."""
    boxes: list[Box]
    seeds: list[list[int]]
    """By channel, one for the noise of each box; the first is that of the outside."""


Plan = tuple[list[float], Tensor, int, Painting]
"""Of one sample: what decides whether it is bent, shuffled and painted; its curve; the seed of its shuffle; its painting."""


def paintings(size: Sequence[int], channels: int, inner: float, draw: Draw) -> list[Painting]:
    """One a sample. As in the paper: boxes of a sixth to a third of the crop are painted, or all but boxes of three to four sevenths."""
    chosen, counts = (draw.uniform() < inner).tolist(), draw.integers(1, BOXES + 1).tolist()
    places, shares = draw.uniform(BOXES, len(size)).tolist(), draw.uniform(BOXES, len(size)).tolist()
    seeds = draw.integers(0, SEEDS, channels, BOXES).tolist()
    return [
        Painting(one, [_box(size, *pair, *(INNER if one else OUTER)) for pair in list(zip(place, share, strict=True))[:count]], own)
        for one, count, place, share, own in zip(chosen, counts, places, shares, seeds, strict=True)
    ]


def _box(size: Sequence[int], place: Sequence[float], share: Sequence[float], low: float, high: float) -> Box:
    sides = [max(1, round(side * (low + (high - low) * part))) for side, part in zip(size, share, strict=True)]
    first = [int(where * (side - own + 1)) for where, side, own in zip(place, size, sides, strict=True)]
    return tuple(slice(start, start + own) for start, own in zip(first, sides, strict=True))


def bent(falling: float, draw: Draw) -> Tensor:
    """(B, LEVELS) in 0 .. 1: the heights of a random monotone Bezier curve from corner to corner, at evenly spaced places."""
    corners = draw.uniform(2, 2).sort(dim=1).values
    t = torch.linspace(0, 1, 4 * KNOTS, device=corners.device)
    first, second, last = 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
    x, y = ((corners[:, 0, k, None] * first + corners[:, 1, k, None] * second + last).contiguous() for k in (0, 1))
    y = torch.where((draw.uniform() < falling)[:, None], 1 - y, y)
    # The curve at equally spaced x by linear interpolation, and between those again.
    knots = torch.linspace(0, 1, KNOTS, device=x.device).expand(len(x), -1).contiguous()
    right = torch.searchsorted(x, knots).clamp(1, x.shape[1] - 1)
    before, after = x.gather(1, right - 1), x.gather(1, right)
    share = ((knots - before) / (after - before).clamp_min(1e-6)).clamp(0, 1)
    heights = torch.lerp(y.gather(1, right - 1), y.gather(1, right), share)
    return F.interpolate(heights.unsqueeze(1), LEVELS, mode="linear", align_corners=True).squeeze(1)


def damage(
    values: Tensor, out: Tensor, table: Tensor | None, painting: Painting | None, seeds: Sequence[int], span: tuple[float, float] | None
) -> None:
    """One channel (*size) into `out`: its values through the curve `table`, and painted over with noise of its range.

    `span` is that range where it is known.
    """
    low, high = span or tuple(float(one) for one in torch.aminmax(values))
    if not isfinite(high - low):
        raise DataError("a crop holds values that are not finite, and these have no range to bend or to paint in. Clean the images before.")

    def bend(box: Box) -> None:
        if table is None:
            out[box] = values[box]
        else:
            look_up(values[box], table * (high - low) + low, low, high, out[box])

    boxes = [] if painting is None else painting.boxes
    if painting is not None and not painting.inner:
        fill_uniform(out, seeds[0], low, high)
        for box in boxes:
            bend(box)
        return
    bend(tuple(slice(None) for _ in values.shape))
    for box, seed in zip(boxes, seeds, strict=False):
        fill_uniform(out[box], seed, low, high)


def shuffled(image: Tensor, block: int, seed: int, shown: Sequence[Box] | None = None) -> Tensor:
    """`image` (C, *size) with the voxels of half of its blocks in another order, the same in every channel.

    Blocks lie on a grid whose side (2 .. `block`) and start depend on `seed` too; what is left at the borders stays. Where `shown` are
    given, only blocks that reach into these boxes count.
    """
    size, numbers = image.shape[1:], torch.Generator("cpu").manual_seed(seed)
    side = _number(numbers, 2, block + 1)
    sides = [min(side, length) for length in size]
    first = [_number(numbers, 0, min(own - 1, length - own) + 1) for own, length in zip(sides, size, strict=True)]
    counts = [(length - start) // own for own, length, start in zip(sides, size, first, strict=True)]
    chosen = torch.rand(counts, generator=numbers, device="cpu") < 0.5
    if shown is not None:
        chosen &= _reached(counts, sides, first, shown)
    corners = _places(size, first, counts, sides).masked_select(chosen)
    within = _places(size, [0] * len(size), sides, [1] * len(size)).view(-1)
    orders = torch.stack([within[torch.randperm(len(within), generator=numbers, device="cpu")] for _ in range(ORDERS)]).int()
    changed = image.clone(memory_format=torch.contiguous_format)
    flat, made = image.reshape(len(image), -1), changed.view(len(image), -1)
    # A few blocks at a time, in the same memory, which stays in the processor's cache.
    rows = max(1, AT_A_TIME // len(within))
    sources, places = orders.new_empty(rows, len(within)), within.new_empty(rows, len(within))
    for start in range(0, len(corners), rows):
        some = corners[start : start + rows].unsqueeze(1)
        kinds = torch.arange(start, start + len(some), device="cpu") % ORDERS
        source = torch.index_select(orders, 0, kinds, out=sources[: len(some)]).add_(some).view(-1).to(image.device)
        place = torch.add(some, within, out=places[: len(some)]).view(-1).to(image.device)
        for values, new in zip(flat, made, strict=True):
            new.scatter_(0, place, values.index_select(0, source))
    return changed


def _places(size: Sequence[int], first: Sequence[int], counts: Sequence[int], steps: Sequence[int]) -> Tensor:
    """(*counts) places in an image of `size`, flattened, of a grid that starts at `first`."""
    places = torch.zeros((), dtype=torch.int64, device="cpu")
    for side, start, count, step in zip(size, first, counts, steps, strict=True):
        places = places.unsqueeze(-1) * side + (start + step * torch.arange(count, device="cpu"))
    return places


def _reached(counts: Sequence[int], sides: Sequence[int], first: Sequence[int], boxes: Sequence[Box]) -> Tensor:
    """(*counts) bool: which blocks of a grid reach into one of the boxes."""
    reached = torch.zeros(*counts, dtype=torch.bool, device="cpu")
    for box in boxes:
        pairs = [(part.start - start, part.stop - start, own) for part, start, own in zip(box, first, sides, strict=True)]
        reached[tuple(slice(max(low // own, 0), max(-(-high // own), 0)) for low, high, own in pairs)] = True
    return reached


def _number(numbers: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=numbers, device="cpu"))
