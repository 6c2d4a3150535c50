"""A pretrained network's own metrics beside the answers that need no learning, on images that it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from reading_out import Frozen, crops_found_again, voxels_found_again
from torch import Tensor

from medssl.contracts import Crops, PretextBatch
from medssl.learn import Objective
from medssl.learn.looking import looking
from medssl.learn.objective import Asked
from medssl.learn.questions import own_grid
from medssl.learn.views import clean_view
from medssl.volumes import CropLoader, DataOptions, Store

HIGHER = frozenset({"accuracy", "dice", "agreement"})
"""Measures of which more is better; of all others, and of losses, less is."""
MEAN_OF = 10
"""How many batches of training images a mean target is taken from."""


@dataclass(frozen=True)
class Metric:
    """What was reached, and what needs no learning."""

    term: str
    name: str
    value: float
    trivial: float
    trivial_is: str
    error: float
    """Standard error of the difference, over batches."""

    @property
    def beats(self) -> bool:
        """By more than three standard errors, and errors by more than a twentieth."""
        if self.name in HIGHER or self.name.startswith("found"):
            return self.value - self.trivial > 3 * self.error
        return self.trivial - self.value > max(3 * self.error, 0.05 * self.trivial)

    def document(self) -> dict[str, Any]:
        """As a row has it."""
        rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in vars(self).items()}
        return {**rounded, "beats": self.beats}


def crops_of_store(folder: Any, crop: Sequence[int], batch: int, count: int, seed: int) -> list[Crops]:
    """Batches of crops, one of a volume."""
    store = Store(folder)
    with CropLoader(store, DataOptions(store=str(folder), size=tuple(crop), batch=batch, threads=1), seed) as loader:
        return [crops for _, _, crops in islice(loader, count)]


def task_metrics(objective: Objective, held: Sequence[Crops], train: Sequence[Crops]) -> list[Metric]:
    """Of every task its first measure, or its loss where it has none, beside the best answer that needs no learning."""
    return [_task_metric(objective, key, held, train) for key in objective.tasks]


def _task_metric(objective: Objective, key: str, held: Sequence[Crops], train: Sequence[Crops]) -> Metric:
    task = objective.by_key("tasks")[key]
    mean = _mean_target(objective, key, train)
    found: dict[str, list[float]] = {}
    name = "loss"
    with looking(objective):
        for step, crops in enumerate(held):
            answer, batch, counted = _answer(objective, key, crops, step)
            if not bool(counted.any()):
                continue
            answers = {"": answer, "the task's": task.trivial(batch), "the mean target": None if mean is None else mean.expand_as(answer)}
            if "dice" in task.measure(answer, batch):
                # Whoever calls everything a region has some of it.
                answers["everything"] = torch.ones_like(answer)
            for what, given in answers.items():
                if given is None:
                    continue
                measures = task.measure(given, batch)
                name = next(iter(measures), "loss")
                value = measures[name] if measures else task.loss(given, batch)
                found.setdefault(what, []).append(float(value[counted].mean()))
    ours = np.array(found.pop(""))
    better = max if name in HIGHER else min
    best = better(found, key=lambda what: float(np.mean(found[what])))
    trivial = np.array(found[best])
    error = float((ours - trivial).std(ddof=1) / np.sqrt(len(ours)))
    return Metric(key, name, float(ours.mean()), float(trivial.mean()), best, error)


def _mean_target(objective: Objective, key: str, train: Sequence[Crops]) -> Tensor | None:
    """The mean of what is asked for on training images: what is known without looking; None for tasks whose answers are classes."""
    task = objective.by_key("tasks")[key]
    if task.answer != "values":
        return None
    with looking(objective):
        pairs = [_answer(objective, key, crops, step)[:2] for step, crops in enumerate(train)]
    if any(answer.shape != batch.target.shape for answer, batch in pairs):
        return None
    return torch.cat([batch.target for _, batch in pairs]).mean(dim=0, keepdim=True)


def _answer(objective: Objective, key: str, crops: Crops, step: int) -> tuple[Tensor, PretextBatch, Tensor]:
    """The answer, the question, and (B,) which samples can be answered."""
    view = objective.ask_about(clean_view(crops), [key], step)
    asked = Asked(crops, step, 0.0, [view], frozenset([key]), frozenset())
    objective.teach(asked)
    reading = objective.read(view, frozenset())
    answer = own_grid(view, objective.built_heads[key], key, reading.answers[key])
    return answer, view.questions[key].batch, asked.answerable(key)[0] > 0


def loss_metric(objective: Objective, trained: Frozen, first: Frozen, without: Objective | None, held: Sequence[Crops]) -> Metric:
    """Of the loss: on embeddings, whether crops are found again among all; on maps, whether voxels are; on answers, the loss itself.

    Beside the first, random weights, or for losses on answers beside the tasks `without` it.
    """
    key = next(iter(objective.losses))
    needs = objective.by_key("losses")[key].needs
    if "answers" in needs:
        assert without is not None
        pairs = [[_value(one, key, crops, step) for one in (objective, without)] for step, crops in enumerate(held)]
        return _compared(key, "disagreement", pairs, "the task alone")
    dense = "feature_maps" in needs
    find = voxels_found_again if dense else crops_found_again
    pairs = [[find(one, crops, objective.views, 0, step) for one in (trained, first)] for step, crops in enumerate(held)]
    return _compared(key, "found voxels" if dense else "found crops", pairs, "random weights")


def _value(objective: Objective, key: str, crops: Crops, step: int) -> float:
    with looking(objective):
        found = float(objective(objective.ask(crops, step, 1.0))[key])
    objective.forget()
    return found


def _compared(key: str, name: str, pairs: Sequence[Sequence[float]], trivial_is: str) -> Metric:
    values = np.array(pairs)
    error = float((values[:, 0] - values[:, 1]).std(ddof=1) / np.sqrt(len(values)))
    return Metric(key, name, float(values[:, 0].mean()), float(values[:, 1].mean()), trivial_is, error)
