"""What a run trains and on what, be it a pretraining or a fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from medssl.contracts import Crops
from medssl.learn import Objective
from medssl.plugins import Plugins
from medssl.run import Run
from medssl.train.checkpoint import Checkpoint
from medssl.train.config import TrainOptions
from medssl.train.loop import StepEngine

Batches = AbstractContextManager[Iterable[tuple[int, int, Crops]]]
Save = Callable[[int], None]


@dataclass(frozen=True)
class Training:
    """What a run trains and on what: made ready and checked by what the run is for."""

    kind: str
    """What its checkpoints call it: "pretrain" or "finetune"."""
    title: str
    """What people call it."""
    config: BaseModel
    """Resolved."""
    options: TrainOptions
    seed: int
    objective: Objective
    """With its first weights."""
    loader: Callable[[int], Batches]
    """Crops as (step, micro, `Crops`) from a step on."""
    batch: int
    """Crops in a micro batch."""
    data: str
    """Fingerprint of what it is trained on: a resumed run must find it again."""
    document: Mapping[str, Any]
    """What a checkpoint says of images and terms beside network, lineage and versions."""
    plugins: Plugins
    origin: Checkpoint | None = None
    """Whose weights it began with."""
    report: Any = None
    """What was loaded of them."""
    attach: Callable[[StepEngine, Run, Save], None] | None = None
    """Attaches what only this kind of run has; `Save` writes its best weights."""
    rate: Callable[[int], float] | None = None
    """Learning rate by step, counted from 0; None: that of the options."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """Parameter of the network -> what its learning rate is multiplied by; others have 1."""
    staged: bool = False
    """Whether something of the network is frozen in some steps."""
    notes: Sequence[str] = ()
    """Lines that are said before the first step."""
    cases: Mapping[int, str] = field(default_factory=dict)
    """What people call a sample (`Crops.sample`), where they have a name for it."""

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The runs that its weights come from, oldest first."""
        if self.origin is None:
            return []
        state = self.origin.state
        return [
            *(state.get("lineage") or []),
            {"kind": state.get("kind"), "step": self.origin.step, "network": state.get("files", {}).get("network.safetensors")},
        ]
