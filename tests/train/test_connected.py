"""A term that never has a gradient is named after a few steps, and ends the run with an error."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import medssl
from medssl.contracts import ConsistencyLoss, Needs, Views
from medssl.errors import TrainingError
from medssl.train.connected import LOOK_AT

UNET = {"name": "UNet", "spatial_dims": 3, "options": {"channels": [4, 8], "strides": [2]}}


class Waiting(ConsistencyLoss):
    """Counts steps, and has a loss after `after` of them."""

    name: ClassVar[str] = "waiting"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings"})
    after: ClassVar[int]

    def __init__(self, options: object, network: object) -> None:
        super().__init__(options, network)  # type: ignore[arg-type]
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    steps: Tensor

    def forward(self, views: Views) -> Tensor:
        loss = (views.embeddings[0] - views.embeddings[1]).square().mean(1)
        return loss if self.steps >= self.after else loss.detach()

    def commit(self, views: Views) -> None:
        self.steps += 1


class Briefly(Waiting):
    """For some steps."""

    after = LOOK_AT + 1


class ForEver(Waiting):
    """Longer than any run."""

    after = 10**9


def test_a_term_may_wait_and_not_for_the_whole_run(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for loss in (Briefly, ForEver):
        run = {"tasks": [], "consistency": [loss], "size": [16, 16, 16], "out": tmp_path / loss.__name__, "steps": LOOK_AT + 3}
        if loss is Briefly:
            medssl.pretrain(UNET, store, **run, picture_every=0)
        else:
            with pytest.raises(TrainingError, match="the loss of 'waiting' had no gradient in any step"):
                medssl.pretrain(UNET, store, **run, picture_every=0)
        assert f"has had no gradient in {LOOK_AT} steps" in capsys.readouterr().err
