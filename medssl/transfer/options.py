"""The configuration of a fine-tuning."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from medssl.config import BaseOptions
from medssl.networks import NetworkSpec
from medssl.plugins import Plugins
from medssl.train.device import Precision
from medssl.train.optim import OptimizerName, Schedule
from medssl.volumes import LabelledOptions, Preparation


class AugmentOptions(BaseOptions):
    """The `augment:` key: light changes of the training crops, on prepared intensities."""

    flip: tuple[int, ...] = ()
    """Axes (0: left-right, 1: back-front, 2: down-up) along which crops may be flipped. None by default: a flip along axis 0
    would swap left and right organs while their labels stay."""
    scale: float = Field(0.2, ge=0, lt=1)
    """Contrast is multiplied by 1 - scale .. 1 + scale."""
    shift: float = Field(0.2, ge=0)
    """Brightness is shifted by up to this, in units of prepared intensity."""
    noise: float = Field(0.1, ge=0)
    """Largest standard deviation of added noise, in units of prepared intensity."""


class FinetuneTrainOptions(BaseOptions):
    """The `train:` key of a fine-tuning."""

    preset: Literal["full"] = "full"
    """full: every layer is trained from the first step."""
    steps: int = Field(1000, ge=1)
    """Optimizer steps of the whole run."""
    learning_rate: float = Field(3e-3, gt=0, le=10)
    """Peak learning rate, reached after the warm-up."""
    optimizer: OptimizerName = "adamw"
    """AdamW, or SGD with Nesterov momentum."""
    weight_decay: float = Field(1e-2, ge=0, le=1)
    """Weight decay; norms and biases are left out of it."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD; AdamW has its own."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises to its peak."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warm-up."""
    clip: float | None = Field(1.0, gt=0)
    """Longest gradient that is taken as it is; null: no clipping."""
    precision: Precision = "auto"
    """auto: bf16 on GPUs that have units for it, fp32 on every CPU; bf16 on a CPU with such units by choice."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    """auto: the first GPU, else the CPU."""
    validate_every: int = Field(100, ge=1)
    """Steps between two evaluations on the validation cases; one more follows the last step."""
    validate_precision: Precision = "fp32"
    """Precision of these evaluations; fp32 gives the label maps of `medssl predict`."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between two checkpoints; one more is written at the end and on a signal."""
    keep: int = Field(1, ge=1)
    """Checkpoints that are kept, the newest ones; the best one is kept beside them."""
    max_skipped: int = Field(10, ge=0)
    """Steps that may be skipped for a loss or gradient that is not finite before the run stops."""


class FinetuneConfig(BaseOptions):
    """What `medssl finetune` reads."""

    network: NetworkSpec | None = None
    """The network: a name with its options, or an import path (`_target_`); null: that of the pretrained checkpoint."""
    data: LabelledOptions
    """The labelled volumes."""
    preparation: Preparation | None = None
    """How intensities are prepared; null: as in the pretraining, or from scratch CT by window and others by z-score."""
    train: FinetuneTrainOptions = FinetuneTrainOptions()
    """How long and how fast."""
    augment: AugmentOptions = AugmentOptions()
    """Light changes of the training crops."""
    overlap: float = Field(0.5, ge=0, lt=1)
    """Share by which the windows of the sliding-window prediction overlap."""
    pretrained: str | None = None
    """A checkpoint or run folder to start from; null: from scratch."""
    min_coverage: float = Field(0.5, ge=0, le=1)
    """Least share of the network, its head aside, that must come from the pretrained checkpoint."""
    seed: int = 0
    """With step and sample it fixes all randomness."""

    @model_validator(mode="after")
    def _has_network(self) -> FinetuneConfig:
        if self.network is None and self.pretrained is None:
            raise ValueError("name a network, or a pretrained checkpoint that has one")
        return self

    @model_validator(mode="after")
    def _flips_fit(self) -> FinetuneConfig:
        dims = len(self.data.size)
        if any(not 0 <= axis < dims for axis in self.augment.flip):
            raise ValueError(f"augment.flip {list(self.augment.flip)} must name axes from 0 to {dims - 1} of crops with {dims} sides")
        return self


def finetune_schema(plugins: Plugins) -> dict[str, Any]:
    """The JSON schema of a fine-tuning configuration. No plugin adds to it yet; `plugins` is taken as `pretrain_schema` takes it."""
    return FinetuneConfig.model_json_schema(by_alias=True)
