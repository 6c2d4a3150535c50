"""A step of an objective, whole and divided, as the contract suites take it; and small tasks that losses are tried beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from medssl.contracts import Crops, DenseHead, Draw, PooledHead, PretextBatch, PretextTask
from medssl.learn import Objective
from medssl.testing.fixtures import select


class Dense(PretextTask):
    """Repeat the crop."""

    name: ClassVar[str] = "dense"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    same_for_views: ClassVar[bool] = True

    def head(self) -> DenseHead:
        """Two channels."""
        return DenseHead(2)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """The crop as it is."""
        return PretextBatch(crops.images, crops.images)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """Squared error."""
        return (prediction - batch.target[:, :1]).square().flatten(1).mean(dim=1)


class Pooled(Dense):
    """Which of five classes was drawn? Nobody can know."""

    name: ClassVar[str] = "pooled"
    answer: ClassVar[Literal["values", "logits"]] = "logits"

    def head(self) -> PooledHead:  # type: ignore[override]
        """Five classes."""
        return PooledHead(5)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """The crop as it is."""
        return PretextBatch(crops.images, draw.integers(0, 5))

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """Cross entropy."""
        return torch.nn.functional.cross_entropy(prediction, batch.target, reduction="none")


class Parts(Pooled):
    """The same of two halves of the crop."""

    name: ClassVar[str] = "parts"
    same_for_views: ClassVar[bool] = False

    def head(self) -> PooledHead:  # type: ignore[override]
        """Five classes from two parts."""
        return PooledHead(5, parts=2)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """Both halves along the first axis."""
        return PretextBatch(torch.stack(crops.images.chunk(2, dim=2), dim=1).flatten(0, 1), draw.integers(0, 5))


def step(objective: Objective, parts: Sequence[Crops]) -> dict[str, float]:
    """Forward and backward over the micro batches `parts` and what follows a step that was taken; every loss and measure."""
    asked = [objective.ask(part, 0) for part in parts]
    totals = objective.totals(asked)
    values: dict[str, float] = {}
    for one in asked:
        terms: dict[str, Tensor] = objective(one, totals)
        torch.autograd.backward(terms["loss"])
        values = {name: values.get(name, 0.0) + float(value.detach()) for name, value in terms.items()}
    objective.commit()
    return values


def check_it_trains(objective: Objective, crops: Crops, key: str) -> None:
    """In a step the term `key` has a finite loss and reaches the network by itself."""
    loss = objective.run(crops, step=0)[key]
    assert torch.isfinite(loss), f"the loss of a training step is {float(loss.detach())}."
    assert loss.requires_grad, "the loss is cut from the graph: no gradient reaches the network."
    gradients = torch.autograd.grad(loss, list(objective.network.parameters()), allow_unused=True)
    assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0, "no gradient reaches the network's parameters."
    objective.commit()


def check_micro_batches(whole: Objective, halved: Objective, crops: Crops, kept: str) -> None:
    """Two objectives that are alike end alike where one takes the batch in two halves; `kept` is where its terms' state lies."""
    half = len(crops) // 2
    one = step(whole, [crops])
    other = step(halved, [select(crops, range(half)), select(crops, range(half, len(crops)))])
    wrong = [name for name, value in one.items() if abs(value - other[name]) > 1e-4 * max(1.0, abs(value))]
    assert not wrong, f"{wrong} depend on how the batch is divided into micro batches."
    for (name, mine), theirs in zip(whole.named_parameters(), halved.parameters(), strict=True):
        alike = (mine.grad is None) == (theirs.grad is None) and (
            mine.grad is None or theirs.grad is None or torch.allclose(mine.grad, theirs.grad, atol=1e-4, rtol=1e-3)
        )
        assert alike, f"the gradient of '{name}' depends on how the batch is divided into micro batches."
    left, right = whole.state_dict(), halved.state_dict()
    differing = [name for name in left if name.startswith(kept) and not torch.allclose(left[name], right[name], atol=1e-4, rtol=1e-3)]
    assert not differing, f"commit makes another {differing[:3]} when the batch is divided into micro batches."
