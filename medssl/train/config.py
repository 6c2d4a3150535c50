"""The options of a training loop, the configuration of a pretraining, and how a configuration is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from medssl.augment import ViewOptions
from medssl.config import BaseOptions, Seed, check, load_config, with_overrides
from medssl.learn.terms import TermOptions, term_schemas
from medssl.learn.weighing import Combine
from medssl.networks import NetworkSpec
from medssl.plugins import Plugins
from medssl.train.device import Precision
from medssl.train.optim import OptimizerName, Schedule
from medssl.volumes import DataOptions

Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]


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
    """auto: bf16 on GPUs that have units for it, fp32 on every CPU; bf16 on a CPU with such units by choice."""
    device: Device = "auto"
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


def by_name(terms: Any) -> Any:
    """Terms of which some are given by their name alone, as mappings."""
    return [{"name": term} if isinstance(term, str) else term for term in terms] if isinstance(terms, list | tuple) else terms


Terms = Annotated[tuple[TermOptions, ...], BeforeValidator(by_name)]


class PretrainConfig(BaseOptions):
    """What `medssl pretrain` reads."""

    network: NetworkSpec | None = None
    """The network: a name with its options, or an import path (`_target_`); null: that of the run named by `from`."""
    data: DataOptions
    """The store and how crops are taken from it."""
    tasks: Terms = ()
    """Pretext tasks: `name`, `weight`, and the task's own options."""
    consistency: Terms = ()
    """Consistency losses: `name`, `weight`, and the loss's own options."""
    combine: Combine = "sum"
    """sum: of all losses times their weights. balanced: each first divided by the measured size of its gradient. turns: one term a step."""
    views: ViewOptions = ViewOptions()
    """How the views differ that consistency losses compare."""
    train: TrainOptions = TrainOptions()
    """How long, how fast, how safe."""
    seed: Seed = 0
    """With step and sample it fixes all randomness."""
    from_: str | None = Field(None, alias="from")
    """A run folder, a checkpoint or a file of weights whose network this round goes on from; a file does not say what network that is."""

    @model_validator(mode="after")
    def _has_network(self) -> PretrainConfig:
        if self.network is None and self.from_ is None:
            raise ValueError("name a network under `network:`, or an earlier run that has one under `from:`")
        return self


Config = TypeVar("Config", bound=BaseModel)


def read_config(model: type[Config], config: Any, overrides: Sequence[str], given: Mapping[str, Any], what: str) -> Config:
    """A configuration (a file, a mapping, a `model`, or nothing) with overrides, then the arguments `given`, laid over it."""
    where = str(config) if isinstance(config, str | Path) else f"{what} configuration"
    if isinstance(config, BaseModel):
        # A network made by Python code cannot be dumped and read again: it goes over as it is.
        base: dict[str, Any] = {**config.model_dump(exclude_unset=True, by_alias=True), "network": getattr(config, "network", None)}
    else:
        base = dict(config or {}) if isinstance(config, Mapping) or config is None else load_config(config)
    base = with_overrides(base, overrides)
    for key, value in given.items():
        base[key] = {**(base.get(key) or {}), **value} if isinstance(value, Mapping) and key in ("data", "train", "choice") else value
    return check(model, base, where)


def with_terms(schema: dict[str, Any], plugins: Plugins) -> dict[str, Any]:
    """A configuration's JSON schema with the options of every installed task and loss."""
    for key, terms in term_schemas(plugins).items():
        schema["properties"][key] = {**terms, "description": schema["properties"][key]["description"]}
    return schema


def pretrain_schema(plugins: Plugins) -> dict[str, Any]:
    """The JSON schema of a pretraining configuration, with the options of every installed task and loss."""
    return with_terms(PretrainConfig.model_json_schema(by_alias=True), plugins)
