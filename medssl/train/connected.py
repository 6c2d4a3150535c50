"""An eye on terms whose loss has no gradient: they may wait for a queue to fill, and must not do so for a whole run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ignite.engine import Events

from medssl.errors import TrainingError
from medssl.learn import Objective

LOOK_AT = 20
"""Steps after which a line names the terms that have had no gradient so far."""


class GradientWatch:
    """An ignite handler: names terms without a gradient after a few steps, and ends a run with an error where they never had one."""

    def __init__(self, objective: Objective, say: Callable[[str], None]) -> None:
        self._objective, self._say = objective, say
        self._steps = 0

    def attach(self, engine: Any) -> None:
        """To the engine of a training."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)

    def _completed(self, engine: Any) -> None:
        self._steps += 1
        last = engine.state.iteration == engine.run_state.steps
        waiting = sorted(self._objective.weights.keys() - self._objective.reached) if last or self._steps == LOOK_AT else []
        if waiting and last:
            raise TrainingError(
                f"the loss of {', '.join(map(repr, waiting))} had no gradient in any step, so it taught nothing: it is cut from the "
                "graph, or waited for longer than the run."
            )
        if waiting:
            self._say(f"the loss of {', '.join(map(repr, waiting))} has had no gradient in {LOOK_AT} steps: it teaches nothing so far.")
