"""A task that can answer few of its samples is named, one that can answer none ends the run, and small batches are warned of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

import medssl
from medssl.contracts import Crops, DenseHead, Draw, PretextBatch, PretextTask
from medssl.errors import TrainingError
from medssl.learn import build_objective, small_batch
from medssl.train.answerable import LOOK_AT, AnswerableWatch

UNET = {"name": "UNet", "spatial_dims": 3, "options": {"channels": [4, 8], "strides": [2]}}


def judged(shares: list[float]) -> list[str]:
    said: list[str] = []
    watch = AnswerableWatch(said.append)
    for share in shares:
        watch._completed(SimpleNamespace(state=SimpleNamespace(output=[{"a/answerable": share, "a": 1.0, "loss": 1.0}])))
    return said


def test_few_are_worth_one_line_and_enough_none() -> None:
    (line,) = judged([0.2, 0.4] * LOOK_AT)
    assert line.startswith("'a' can answer 30% of its samples only")
    assert judged([0.5] * 3 * LOOK_AT) == judged([0.1] * (LOOK_AT - 1)) == []


class Unanswerable(PretextTask):
    """Repeat the crop, where no crop can be repeated."""

    name: ClassVar[str] = "unanswerable"
    answer: ClassVar[Literal["values", "logits"]] = "values"

    def head(self) -> DenseHead:
        return DenseHead(1)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(crops.images, crops.images, answerable=torch.zeros(len(crops), dtype=torch.bool))

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return (prediction - batch.target).square().flatten(1).mean(1)

    def trivial(self, batch: PretextBatch) -> Tensor:
        return batch.target


def test_none_at_all_ends_the_run_with_what_to_do(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TrainingError, match=r"'unanswerable' could answer none of the samples of 20 steps.*data\.foreground"):
        medssl.pretrain(UNET, store, tasks=[Unanswerable], size=[16, 16, 16], out=tmp_path / "run", steps=30, picture_every=0)
    assert "to beat" not in capsys.readouterr().err


@pytest.mark.parametrize(("consistency", "batch", "warned"), [(["simsiam"], 2, True), (["simsiam"], 4, False), (["agreement"], 2, False)])
def test_a_norm_over_few_crops_is_warned_of(consistency: list[Any], batch: int, warned: bool) -> None:
    objective = build_objective(UNET, ["inpainting"], consistency)
    said = small_batch(objective, batch)
    assert (said is not None) is warned
    assert said is None or "'simsiam' normalises over the batch and hardly learns from 2 crops: set data.batch to 4" in said


def test_a_run_says_so(store: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"set data\.batch to 4 or more"):
        medssl.pretrain(UNET, store, [], ["simsiam"], size=[16, 16, 16], batch=2, out=tmp_path / "run", steps=1, picture_every=0)
