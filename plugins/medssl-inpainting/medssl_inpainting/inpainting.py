"""The task `inpainting`: hide blocks of the crop and ask for what was there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from medssl.config import BaseOptions
from medssl.contracts import Crops, DenseHead, Draw, PretextBatch, PretextTask
from medssl.learn.ops import block_mask, masked_mean, visible_mean

Share = Annotated[float, Field(gt=0, lt=1)]


class Inpainting(PretextTask):
    """Fill in hidden blocks of the crop (Pathak et al., CVPR 2016; masking by blocks as in He et al., CVPR 2022).

    Counts the hidden voxels alone by default: seeing voxels need no learning to be repeated.
    """

    name: ClassVar[str] = "inpainting"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    same_for_views: ClassVar[bool] = True
    citation: ClassVar[str] = (
        "Pathak et al., Context encoders: feature learning by inpainting, CVPR 2016; "
        "He et al., Masked autoencoders are scalable vision learners, CVPR 2022"
    )

    class Options(BaseOptions):
        """How much is hidden, how, and what a wrong voxel costs."""

        ratio: Share | tuple[Share, Share] = 0.6
        """Share of the blocks that is hidden, or a range [low, high] from which each sample draws its own."""
        block: int = Field(default=8, ge=1, le=256)
        """Side of a block in voxels. Structures smaller than a block are hidden whole and must be inferred, not interpolated."""
        fill: Literal["mean", "zero", "noise"] = "mean"
        """What stands in for hidden voxels: the mean of the visible ones, 0, or noise with their mean and spread."""
        distance: Literal["l2", "l1", "huber"] = "l2"
        """What a wrong voxel costs; huber is quadratic up to 1 and linear beyond."""
        visible_weight: float = Field(default=0.0, ge=0, le=1)
        """What a visible voxel counts beside a hidden one's 1; above 0 the whole crop is reconstructed."""

        @field_validator("ratio")
        @classmethod
        def _is_ordered(cls, ratio: float | tuple[float, float]) -> float | tuple[float, float]:
            low, high = ratio if isinstance(ratio, tuple) else (ratio, ratio)
            if low > high:
                raise ValueError("a range of shares is [low, high], the lower one first")
            return ratio

    options: Options

    def head(self) -> DenseHead:
        """The intensities of every channel at every voxel."""
        return DenseHead(self.network.channels)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """Crops with hidden blocks; the target is the crop, the weight is where it is hidden."""
        ratio = self.options.ratio
        low, high = ratio if isinstance(ratio, tuple) else (ratio, ratio)
        mask = block_mask(draw, crops.size, self.options.block, low, high)
        inputs = torch.where(mask, self._fill(crops.images, mask, draw.fork("fill")), crops.images)
        weight = mask.to(crops.images.dtype)
        if self.options.visible_weight:
            weight = weight.clamp_min(self.options.visible_weight)
        return PretextBatch(inputs, crops.images, weight, extra={"hidden": mask})

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) mean cost over hidden voxels and channels."""
        costs: dict[str, Callable[..., Tensor]] = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
        return masked_mean(costs[self.options.distance](prediction, batch.target, reduction="none"), batch.weight)

    def trivial(self, batch: PretextBatch) -> Tensor:
        """The mean of the visible voxels of each channel everywhere."""
        return visible_mean(batch.target, batch.extra["hidden"]).expand_as(batch.target)

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """What was shown, the answer pasted into the hidden blocks, and the truth."""
        assert batch.inputs is not None
        return {
            "input": batch.inputs,
            "prediction": torch.where(batch.extra["hidden"], prediction.to(batch.inputs.dtype), batch.inputs),
            "target": batch.target,
        }

    def _fill(self, images: Tensor, mask: Tensor, draw: Draw) -> Tensor:
        if self.options.fill == "zero":
            return torch.zeros_like(images)
        mean = visible_mean(images, mask)
        if self.options.fill == "mean":
            return mean.expand_as(images)
        spread = visible_mean((images - mean).square(), mask).sqrt()
        return mean + spread * draw.normal(*images.shape[1:]).to(images.dtype)
