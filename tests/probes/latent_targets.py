"""Tasks with targets from a teacher: I-JEPA, which is an example of the docs, and masked self-distillation with a centre, as in iBOT."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw, NetworkInfo, PooledHead, PretextBatch, PretextTask, TaskNeeds
from medssl.learn.ops import block_mask

EXAMPLE = Path(__file__).resolve().parents[2] / "docs/examples/ijepa.py"
_spec = spec_from_file_location("ijepa", EXAMPLE)
assert _spec is not None and _spec.loader is not None
ijepa = module_from_spec(_spec)
_spec.loader.exec_module(ijepa)
IJEPA: type[PretextTask] = ijepa.IJEPA


class SelfDistillation(PretextTask):
    """Answer of a masked crop what the teacher answers of the whole one, centred (Caron et al., ICCV 2021; Zhou et al., ICLR 2022)."""

    name: ClassVar[str] = "self-distillation"
    answer: ClassVar[Literal["values", "logits"]] = "logits"
    needs: ClassVar[frozenset[TaskNeeds]] = frozenset({"teacher_answer"})
    compares: ClassVar[Literal["nothing"]] = "nothing"

    class Options(BaseOptions):
        """Prototypes."""

        prototypes: int = Field(default=8, ge=2)
        """How many classes the teacher may tell apart."""

    options: Options

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.register_buffer("centre", torch.zeros(self.options.prototypes))

    centre: Tensor

    def head(self) -> PooledHead:
        return PooledHead(self.options.prototypes)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        hidden = block_mask(draw, crops.size, 4, 0.5, 0.5)
        return PretextBatch(torch.where(hidden, 0.0, crops.images), hidden)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        assert batch.teacher is not None and batch.teacher.answer is not None
        told = ((batch.teacher.answer - self.centre) / 0.5).softmax(dim=1)
        return -(told * prediction.log_softmax(dim=1)).sum(dim=1)

    def teacher_momentum(self, progress: float) -> float:
        return 0.9

    def commit(self, prediction: Tensor, batch: PretextBatch) -> None:
        assert batch.teacher is not None and batch.teacher.answer is not None
        self.centre.lerp_(batch.teacher.answer.mean(dim=0), 0.1)
