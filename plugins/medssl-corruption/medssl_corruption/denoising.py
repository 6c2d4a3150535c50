"""The task `denoising`: the crop that was there before noise was added."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from medssl.augment import add_noise, blur
from medssl.config import BaseOptions
from medssl.contracts import Crops, DenseHead, Draw, PretextBatch, PretextTask
from medssl.learn.ops import masked_mean


class Denoising(PretextTask):
    """Give back the crop that was there before noise was added (Vincent et al., ICML 2008).

    Gaussian noise of another strength for each sample, up to the crop's own spread: little noise is taken off by a blur, much of
    it only by one who knows what was there.
    """

    name: ClassVar[str] = "denoising"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    same_for_views: ClassVar[bool] = True
    citation: ClassVar[str] = "Vincent et al., Extracting and composing robust features with denoising autoencoders, ICML 2008"

    class Options(BaseOptions):
        """How much noise."""

        amount: float = Field(default=1.0, gt=0, le=10)
        """Largest standard deviation of the noise, as a share of the crop's own."""

    options: Options

    def head(self) -> DenseHead:
        """One value a voxel and channel."""
        return DenseHead(channels=self.network.channels)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """The crop with noise; the crop is the target."""
        amount = draw.uniform() * self.options.amount
        return PretextBatch(add_noise(crops.images, draw.normal(*crops.images.shape[1:]), amount), crops.images)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) mean squared error."""
        return masked_mean((prediction - batch.target).square())

    def trivial(self, batch: PretextBatch) -> Tensor:
        """The noisy crop, blurred."""
        assert batch.inputs is not None
        return blur(batch.inputs, batch.inputs.new_ones(len(batch.inputs)))

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """With noise, without, and the truth."""
        assert batch.inputs is not None
        return {"input": batch.inputs, "prediction": prediction, "target": batch.target}
