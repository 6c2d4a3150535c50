"""Dice on the validation cases while the fine-tuning runs, by windows and on each label's own grid."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.utils import CommonKeys
from torch import nn

from medssl.run import Best
from medssl.transfer.evaluate import dice_by_class, known
from medssl.transfer.images import ImageForm, load_images_of
from medssl.transfer.segment import Windows
from medssl.volumes import Case, LabelValues, Prepared, case_labels, restore_labels

logging.getLogger("medssl.transfer").addHandler(logging.NullHandler())


class CaseBatches:
    """One prepared validation case after the other, as MONAI's engines take them; nothing is kept in memory."""

    def __init__(self, cases: Sequence[Case], form: ImageForm) -> None:
        self.cases, self.form = cases, form

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for case in self.cases:
            prepared = load_images_of(case, self.form)
            yield {
                CommonKeys.IMAGE: torch.from_numpy(np.ascontiguousarray(prepared.array))[None],
                CommonKeys.LABEL: torch.empty(0),
                "prepared": prepared,
                "case": case,
            }


class RecordDice:
    """A handler of the evaluator: `engine.state.metrics` gets `dice`, the mean, and `dice/1`, `dice/2`, ... of the classes.

    The label map is brought back to the image's own grid first, so the numbers are those of `medssl predict` and `evaluate`.
    A class that no validation label has is left out.
    """

    def __init__(self, classes: Sequence[int], values: LabelValues) -> None:
        self.classes, self._values = tuple(classes), values
        self._rows: list[list[float | None]] = []

    def attach(self, engine: SupervisedEvaluator) -> None:
        """To an evaluator over `CaseBatches`."""
        engine.add_event_handler(Events.STARTED, self._rows.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _completed(self, engine: SupervisedEvaluator) -> None:
        prepared: Prepared = engine.state.batch["prepared"]
        case: Case = engine.state.batch["case"]
        labels = restore_labels(engine.state.output[CommonKeys.PRED][0].argmax(0).cpu().numpy(), prepared)
        true = case_labels(case, self._values)
        self._rows.append(dice_by_class(*known(labels, true), self.classes))

    def _finish(self, engine: SupervisedEvaluator) -> None:
        means = {}
        for place, value in enumerate(self.classes):
            defined = [row[place] for row in self._rows if row[place] is not None]
            if defined:
                means[f"dice/{value}"] = float(np.mean(np.array(defined, float)))
        if means:
            engine.state.metrics = {"dice": float(np.mean(list(means.values()))), **means}


def make_evaluator(
    network: nn.Module, batches: CaseBatches, windows: Windows, classes: Sequence[int], values: LabelValues, device: torch.device
) -> Any:
    """A `monai.engines.SupervisedEvaluator` over the validation cases whose `state.metrics` are Dice; any handler attaches."""
    evaluator = SupervisedEvaluator(device, batches, network, epoch_length=len(batches), inferer=windows, decollate=False)
    evaluator.logger = logging.getLogger("medssl.transfer")
    RecordDice(classes, values).attach(evaluator)
    return evaluator


class Validate:
    """A handler of the training: every so many steps and after the last one runs the evaluator and adds its Dice to the step's row.

    `on_best(step)` is called after an evaluation that beats all before it.
    """

    def __init__(self, evaluator: Any, every: int, steps: int, best: Best, on_best: Callable[[int], None]) -> None:
        self._evaluator, self._every, self._steps = evaluator, every, steps
        self._best, self._on_best = best, on_best

    def attach(self, engine: Any) -> None:
        """Attach before what records the step."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)

    def _completed(self, engine: Any) -> None:
        step = engine.state.iteration
        if step % self._every and step != self._steps:
            return
        self._evaluator.run()
        engine.state.output[0].update(self._evaluator.state.metrics)
        dice = self._evaluator.state.metrics.get("dice", -1.0)
        if dice > self._best.dice:
            self._best.dice, self._best.step = dice, step
            self._on_best(step)
