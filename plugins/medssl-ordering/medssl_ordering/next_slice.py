"""The task `next-slice`: what do the next slices, or the next frames, show?"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from medssl.config import BaseOptions
from medssl.contracts import Crops, DenseHead, Draw, NetworkInfo, PretextBatch, PretextTask
from medssl.errors import ConfigError
from medssl.learn.ops import masked_mean
from medssl_ordering.slabs import Axis, axis_of


class NextSlice(PretextTask):
    """Predict the slices within `ahead` mm of the last one that is shown, or the frames within so many of it (Srivastava et al., 2015).

    Everything from a random slice on is hidden. The default is small, since what lies far ahead cannot be known and is answered by a
    mean image; what lies nearer than a structure is large is continued without knowing what it is.
    """

    name: ClassVar[str] = "next-slice"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    citation: ClassVar[str] = (
        "Srivastava, Mansimov and Salakhutdinov, Unsupervised learning of video representations using LSTMs, ICML 2015"
    )

    class Options(BaseOptions):
        """What comes next, and how far."""

        of: Literal["slices", "frames"] = "slices"
        """slices: along an axis of the crop; frames: the channels."""
        axis: Axis = "last"
        """slices: along which axis."""
        ahead: float = Field(default=6.0, gt=0, le=1000)
        """How far ahead is asked: mm along the axis, or frames."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.axis = axis_of(self.options.axis, network.spatial_dims)
        if self.options.of == "frames" and network.channels < 2:
            raise ConfigError("next-slice: frames are the channels of an image, and the images have one. Set of: slices.")

    def head(self) -> DenseHead:
        """The crop."""
        return DenseHead(self.network.channels)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """The crop up to a random slice or frame; what comes soon after is asked for."""
        images = crops.images
        frames = self.options.of == "frames"
        count, where = (images.shape[1], 1) if frames else (images.shape[2 + self.axis], 2 + self.axis)
        step = torch.ones_like(crops.spacing[:, 0]) if frames else crops.spacing[:, self.axis]
        # At least a third is shown, and at least one is hidden.
        least = max(1, count // 3)
        last = (least + draw.uniform() * (count - least)).long().clamp_max(count - 1)
        beyond = (torch.arange(count, device=images.device) - last[:, None] + 1).clamp_min(0)
        asked = (beyond > 0) & ((beyond * step[:, None] <= self.options.ahead) | (beyond == 1))
        shape = [len(images), *[count if axis == where else 1 for axis in range(1, images.dim())]]
        hidden, weight = (beyond > 0).view(shape), asked.view(shape).expand(images.shape).to(images.dtype)
        seen = (~hidden).to(images.dtype).expand_as(images)
        over = tuple(range(1, images.dim())) if frames else tuple(range(2, images.dim()))
        mean = (images * seen).sum(dim=over, keepdim=True) / seen.sum(dim=over, keepdim=True).clamp_min(1)
        inputs = torch.where(hidden, mean, images)
        # The last one that is shown, to compare with: nothing changes from one to the next.
        index = (
            (last - 1).view(-1, *[1] * (images.dim() - 1)).expand(*[1 if axis == where else side for axis, side in enumerate(images.shape)])
        )
        return PretextBatch(inputs, images, weight, extra={"hidden": hidden, "last": images.gather(where, index)})

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) mean squared error of what is asked for."""
        return masked_mean((prediction - batch.target).square(), batch.weight)

    def trivial(self, batch: PretextBatch) -> Tensor:
        """The last one that is shown, again and again."""
        return batch.extra["last"].expand_as(batch.target)

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """What was shown, what was made of the rest, and the truth."""
        assert batch.inputs is not None
        return {"input": batch.inputs, "prediction": torch.where(batch.extra["hidden"], prediction, batch.target), "target": batch.target}
