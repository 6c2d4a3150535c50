"""A pretext task in 40 lines: remove noise that was added to the crop (Vincent et al., ICML 2008)."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from medssl import hookimpl
from medssl.augment import add_noise
from medssl.config import BaseOptions
from medssl.contracts import Crops, DenseHead, Draw, PretextBatch, PretextTask
from medssl.learn.ops import masked_mean


class Denoising(PretextTask):
    """Give back the crop that was there before noise was added (Vincent et al., ICML 2008)."""

    name: ClassVar[str] = "my-denoising"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    same_for_views: ClassVar[bool] = True

    class Options(BaseOptions):
        """How much noise."""

        amount: float = Field(default=1.0, gt=0, le=10)
        """Largest standard deviation of the noise, as a share of the crop's own."""

    options: Options

    def head(self) -> DenseHead:
        """One value a voxel and channel."""
        return DenseHead(channels=self.network.channels)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """The crop with noise, another amount for each sample; the crop is the target."""
        amount = draw.uniform() * self.options.amount
        return PretextBatch(add_noise(crops.images, draw.normal(*crops.images.shape[1:]), amount), crops.images)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) mean squared error."""
        return masked_mean((prediction - batch.target).square())

    def trivial(self, batch: PretextBatch) -> Tensor | None:
        """Repeating what was shown."""
        return batch.inputs


@hookimpl
def medssl_pretext_tasks() -> list[type[PretextTask]]:
    """What this package brings."""
    return [Denoising]
