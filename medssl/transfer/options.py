"""The configuration of a fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from medssl.augment import ViewOptions
from medssl.config import BaseOptions, Seed
from medssl.learn.weighing import Combine
from medssl.networks import NetworkSpec
from medssl.plugins import Plugins
from medssl.train.config import Terms, TrainOptions, with_terms
from medssl.train.device import Precision
from medssl.transfer.load import Stem
from medssl.transfer.recipes import DEFAULTS, Preset
from medssl.transfer.segmentation import AugmentOptions
from medssl.volumes import LabelledOptions, Preparation


class FinetuneTrainOptions(TrainOptions):
    """The `train:` key of a fine-tuning: that of a pretraining with other defaults, and validation."""

    preset: Preset = "full"
    """full: every layer is trained from the first step. gradual: from the head to the stem, one part of the network after the other
    over half the steps, deeper parts slower, in one cycle of the rate. sawtooth: decoder and head alone for a fifth of the steps, then
    all, each with a warm-up. linear: the head alone. It sets what is not given: `schedule`, `warmup`, `decay_by_depth` and
    `learning_rate`."""
    decay_by_depth: float = Field(1.0, ge=1, le=100)
    """How many times slower each part learns than the one before it, from the head to the stem."""
    frozen_norms: Literal["freeze", "train"] = "freeze"
    """Batch norms of frozen parts: freeze keeps weights and statistics, train goes on with both (and has a backward pass through all)."""
    learning_rate: float = Field(3e-3, gt=0, le=10)
    """Peak learning rate, reached after the warm-up."""
    validate_every: int = Field(100, ge=1)
    """Steps between two evaluations on the validation cases; one more follows the last step."""
    validate_precision: Precision = "fp32"
    """Precision of these evaluations; fp32 gives the label maps of `medssl predict`."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between two checkpoints; one more is written at the end and on a signal."""
    keep: int = Field(1, ge=1)
    """Checkpoints that are kept, the newest ones; the best one is kept beside them."""
    picture_every: int = Field(0, ge=0)
    """Steps between two sheets of pictures; 0: none."""

    @model_validator(mode="before")
    @classmethod
    def _as_the_preset_says(cls, values: Any) -> Any:
        return {**DEFAULTS.get(str(values.get("preset")), {}), **values} if isinstance(values, Mapping) else values


class UnlabelledOptions(BaseOptions):
    """The `unlabelled:` key: volumes that consistency losses and pretext tasks see beside the labelled ones."""

    store: str
    """Folder of the store (`medssl store ... --out FOLDER`), prepared as the labelled images are."""
    batch: int = Field(default=2, ge=1, le=4096)
    """Unlabelled crops beside the labelled ones in one forward pass of one process."""
    unfinished: bool = False
    """Train on what is there of a store that was not finished, instead of refusing it."""


class FinetuneConfig(BaseOptions):
    """What `medssl finetune` reads."""

    network: NetworkSpec | None = None
    """The network: a name with its options, or an import path (`_target_`); null: that of the pretrained checkpoint."""
    data: LabelledOptions
    """The labelled volumes."""
    preparation: Preparation | None = None
    """How intensities are prepared; null: as in the pretraining, or from scratch CT by window and others by z-score. After a pretraining
    on what transforms of your own had made: what makes the same of these files."""
    train: FinetuneTrainOptions = FinetuneTrainOptions()
    """How long and how fast."""
    augment: AugmentOptions = AugmentOptions()
    """Light changes of the training crops."""
    batch_dice: bool = True
    """Dice over all crops of a batch; false: the mean over the crops, each by itself, which `train.accumulate` does not change."""
    tasks: Terms = ()
    """Pretext tasks trained beside the segmentation."""
    consistency: Terms = ()
    """Consistency losses, on the segmentation's answers and those of the tasks."""
    combine: Combine = "sum"
    """How segmentation, tasks and losses share the steps: as in a pretraining."""
    views: ViewOptions = ViewOptions()
    """How the views differ that consistency losses compare."""
    unlabelled: UnlabelledOptions | None = None
    """Unlabelled volumes beside the labelled ones, for tasks and consistency losses; null: none."""
    overlap: float = Field(0.5, ge=0, lt=1)
    """Share by which the windows of the sliding-window prediction overlap."""
    pretrained: str | None = None
    """A checkpoint or run folder to start from; null: from scratch."""
    unseen_modality: bool = False
    """Train on a modality that the pretrained network never saw, instead of refusing it."""
    allow_missing: tuple[str, ...] = ()
    """Patterns of tensor names that need not come from the pretrained checkpoint, such as `decoder*`; all others must, the head aside."""
    min_coverage: float | None = Field(None, ge=0, le=1)
    """Instead: least share of the network, its head aside, that must come from the pretrained checkpoint."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Parts of the checkpoint's tensor names -> the network's, such as `{fc1: linear1}`."""
    stem: Stem = "same"
    """What becomes of the pretrained layers that read the images where these have another number of channels: same: refused; repeat: each
    channel's weights in turn; average: their mean for every channel; new: first weights."""
    seed: Seed = 0
    """With step and sample it fixes all randomness."""

    @model_validator(mode="after")
    def _has_network(self) -> FinetuneConfig:
        if self.network is None and self.pretrained is None:
            raise ValueError("name a network, or a pretrained checkpoint that has one")
        return self

    @model_validator(mode="after")
    def _unlabelled_are_used(self) -> FinetuneConfig:
        if self.unlabelled is not None and not self.tasks and not self.consistency:
            raise ValueError("unlabelled volumes teach nothing by themselves: name a loss under consistency (agreement) or a task")
        return self

    @model_validator(mode="after")
    def _moved_alone(self) -> FinetuneConfig:
        if self.augment.moves and (self.tasks or self.consistency):
            raise ValueError(
                "augment.look moves the voxels that tasks and consistency losses are asked about: leave rotation, scale, shift, shear, "
                "flips and elastic out of it, and say under `views:` how two views of a crop differ"
            )
        return self

    @model_validator(mode="after")
    def _flips_fit(self) -> FinetuneConfig:
        dims = len(self.data.size)
        if any(not 0 <= axis < dims for axis in self.augment.flip):
            raise ValueError(f"augment.flip {list(self.augment.flip)} must name axes from 0 to {dims - 1} of crops with {dims} sides")
        return self


def finetune_schema(plugins: Plugins) -> dict[str, Any]:
    """The JSON schema of a fine-tuning configuration, with the options of every installed task and loss."""
    return with_terms(FinetuneConfig.model_json_schema(by_alias=True), plugins)
