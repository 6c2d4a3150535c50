"""Recipes of fine-tuning: which parts of the network are trained when, and how fast. All of it is a function of the step.

`gradual` is ULMFiT's (Howard and Ruder, ACL 2018): parts are unfrozen from the head on, deeper ones learn slower, and the rate goes
through one cycle (Smith and Topin, 2018). `sawtooth` trains decoder and head alone before all, each with its own warm-up (Wald et
al., "Revisiting MAE pre-training for 3D medical image segmentation", CVPR 2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ignite.engine import Events
from torch import nn

from medssl.learn import Objective
from medssl.train.config import TrainOptions
from medssl.train.optim import learning_rate_at

Preset = Literal["full", "gradual", "sawtooth", "linear"]
DEFAULTS: dict[str, dict[str, Any]] = {
    "full": {},
    "gradual": {"schedule": "one-cycle", "warmup": 0.25, "decay_by_depth": 2.6},
    "sawtooth": {},
    "linear": {"learning_rate": 1e-2},
}
"""What a preset sets where the configuration says nothing else. 2.6 is ULMFiT's, a quarter of the steps to rise fastai's."""
UNFREEZING = 0.5
"""Share of the steps of `gradual` after which everything is trained."""
DECODER_FIRST = 0.2
"""Share of the steps of `sawtooth` in which decoder and head are trained alone."""


@dataclass(frozen=True)
class Recipe:
    """A preset for a network whose parameters lie in `parts`, the head first and the stem last."""

    preset: Preset
    parts: tuple[tuple[str, ...], ...]
    options: TrainOptions
    decay_by_depth: float = 1.0

    @property
    def is_staged(self) -> bool:
        """Whether something is frozen at some step."""
        return self.trained(0) < len(self.parts)

    def trained(self, step: int) -> int:
        """How many parts are trained in a step, counted from 0; the others are frozen and cost no backward pass."""
        every = len(self.parts)
        if self.preset == "linear":
            return 1
        if self.preset == "sawtooth":
            return min(2, every) if step < self._first else every
        if self.preset == "gradual":
            return min(every, 1 + int(step * every / max(UNFREEZING * self.options.steps, 1)))
        return every

    def rate(self, step: int) -> float:
        """The learning rate of the head in a step."""
        options = self.options
        begin, steps = (0, options.steps) if self.preset != "sawtooth" else self._stage(step)
        return learning_rate_at(step - begin, steps, options.learning_rate, options.warmup, options.schedule)

    def scales(self) -> dict[str, float]:
        """Parameter of the network -> what its learning rate is multiplied by."""
        return {name: self.decay_by_depth**-depth for depth, part in enumerate(self.parts) for name in part}

    @property
    def _first(self) -> int:
        return max(1, round(DECODER_FIRST * self.options.steps)) if self.options.steps > 1 else 0

    def _stage(self, step: int) -> tuple[int, int]:
        """First step and number of steps of the stage that a step lies in."""
        return (0, self._first) if step < self._first else (self._first, self.options.steps - self._first)


class Stages:
    """An ignite handler that freezes and unfreezes the parts of a recipe, by the step alone: a resumed run is in the right stage.

    With `train_norms` the batch norms of frozen parts go on learning, weights and statistics, as in fastai; without, both stay as they
    are. Attach it before what reads the network. What no term reaches stays frozen.
    """

    def __init__(self, objective: Objective, recipe: Recipe, train_norms: bool) -> None:
        self._recipe = recipe
        network: nn.Module = objective.network
        parameters = {name: one for name, one in network.named_parameters() if one.requires_grad}
        norms = {name: one for name, one in network.named_modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)}
        of_norms = {f"{name}.{key}" for name, norm in norms.items() for key, _ in norm.named_parameters(recurse=False) if train_norms}
        self._parts = [[parameters[name] for name in part if name in parameters and name not in of_norms] for part in recipe.parts]
        self._norms = [] if train_norms else _by_part(norms, recipe.parts)

    def attach(self, engine: Any) -> None:
        """To the engine of a training."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._started)

    def _started(self, engine: Any) -> None:
        count = self._recipe.trained(engine.state.iteration - 1)
        for number, part in enumerate(self._parts):
            for parameter in part:
                parameter.requires_grad_(number < count)
        for number, norms in enumerate(self._norms):
            for norm in norms:
                norm.train(number < count)


def _by_part(norms: Mapping[str, nn.Module], parts: Sequence[Sequence[str]]) -> list[list[nn.Module]]:
    where = {name.rpartition(".")[0]: number for number, part in enumerate(parts) for name in part}
    return [[norm for name, norm in norms.items() if where.get(name) == number] for number in range(len(parts))]
