"""The options of a training loop and the configuration of a pretraining."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medssl.config import BaseOptions
from medssl.train.optim import OptimizerName, Schedule

Precision = Literal["auto", "fp32", "bf16"]


class TrainOptions(BaseOptions):
    """The `train:` key: how long, how fast, how safe."""

    steps: int = Field(1000, ge=1)
    """Optimizer steps of the whole run."""
    learning_rate: float = Field(1e-3, gt=0, le=10)
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
    accumulate: int = Field(1, ge=1, le=1024)
    """Batches whose gradients are added up before one step."""
    precision: Precision = "auto"
    """auto: bf16 where the device has units for it, else fp32."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    """auto: the first GPU, else the CPU."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between two checkpoints; one more is written at the end and on a signal."""
    keep: int = Field(2, ge=1)
    """Checkpoints that are kept, the newest ones."""
    picture_every: int = Field(500, ge=0)
    """Steps between two sheets of pictures; 0: none."""
    log_every: int = Field(1, ge=1)
    """Steps between two rows of metrics.jsonl."""
    max_skipped: int = Field(10, ge=0)
    """Steps that may be skipped for a loss or gradient that is not finite before the run stops."""
