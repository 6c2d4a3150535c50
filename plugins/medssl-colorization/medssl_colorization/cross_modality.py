"""The task `cross-modality`: one channel of the crop from the others."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from medssl.config import BaseOptions
from medssl.contracts import Crops, DenseHead, Draw, NetworkInfo, PretextBatch, PretextTask
from medssl.errors import ConfigError, DataError
from medssl.learn.ops import masked_mean


class CrossModality(PretextTask):
    """Predict a channel (a sequence, a phase, an intensity window) from the others: T1 -> T2, lung window -> bone window.

    After Taleb et al. (IPMI 2021) and Howard's essay (2020), in which one modality is the label of another. The channel that is asked
    for shows 0; without a `target` each sample draws its own, and the network learns every direction. Background, where the asked
    channel is next to its darkest, does not count. Windows of one CT are functions of each other where they overlap: take ones that
    clip different parts.
    """

    name: ClassVar[str] = "cross-modality"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    citation: ClassVar[str] = "Taleb et al., Multimodal self-supervised learning for medical image analysis, IPMI 2021"
    suite: ClassVar[dict[str, Any]] = {"channels": 3}

    class Options(BaseOptions):
        """From what to what."""

        target: str | None = None
        """The channel that is asked for, by its name; null: each sample draws one."""
        distance: Literal["l1", "l2"] = "l1"
        """What a wrong voxel costs."""
        background: float = Field(default=0.02, ge=0, lt=1)
        """Voxels of the asked channel within this share of its range above its least value are background."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        if network.channels < 2:
            raise ConfigError("cross-modality predicts one channel from the others, and the images have one. Make a store of several.")

    def head(self) -> DenseHead:
        """All channels; the hidden one counts."""
        return DenseHead(self.network.channels)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """The crop without a channel; the weight says which, and where there is no background."""
        channels = crops.images.shape[1]
        if self.options.target is None:
            asked = draw.integers(0, channels)
        elif self.options.target in crops.channels:
            asked = torch.full((len(crops),), crops.channels.index(self.options.target), device=crops.images.device)
        else:
            raise DataError(f"cross-modality: no channel is called '{self.options.target}'; there are {', '.join(crops.channels)}.")
        hidden = (torch.arange(channels, device=asked.device) == asked[:, None]).view(len(crops), channels, *[1] * crops.spatial_dims)
        axes = tuple(range(2, crops.images.dim()))
        low, high = crops.images.amin(dim=axes, keepdim=True), crops.images.amax(dim=axes, keepdim=True)
        body = crops.images > low + self.options.background * (high - low)
        weight = (hidden & body).to(crops.images.dtype)
        inputs = torch.where(hidden, 0.0, crops.images)
        return PretextBatch(inputs, crops.images, weight, weight.flatten(1).any(dim=1), extra={"hidden": hidden})

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) mean cost over the hidden channel, without background."""
        difference = prediction - batch.target
        return masked_mean(difference.abs() if self.options.distance == "l1" else difference.square(), batch.weight)

    def trivial(self, batch: PretextBatch) -> Tensor:
        """The mean of the hidden channel."""
        assert batch.weight is not None
        axes = tuple(range(2, batch.target.dim()))
        total = batch.weight.sum(dim=axes, keepdim=True)
        return ((batch.target * batch.weight).sum(dim=axes, keepdim=True) / total.clamp_min(1)).expand_as(batch.target)

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """What was shown, the hidden channel filled in, and the truth."""
        assert batch.inputs is not None
        filled = torch.where(batch.extra["hidden"], prediction.to(batch.inputs.dtype), batch.inputs)
        return {"input": batch.inputs, "prediction": filled, "target": batch.target}
