"""An eye on how many samples a task can answer: few are worth a word, none ends the run instead of a loss of 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ignite.engine import Events

from medssl.errors import TrainingError

LOOK_AT = 20
"""Steps after which the share is judged, and judged again."""
FEW = 0.5
SHARE = "/answerable"


class AnswerableWatch:
    """An ignite handler: says once where less than half of a task's samples can be answered, and stops where none can."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._shares: dict[str, list[float]] = {}
        self._told: set[str] = set()

    def attach(self, engine: Any) -> None:
        """To the engine of a training."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)

    def _completed(self, engine: Any) -> None:
        for name, share in engine.state.output[0].items():
            if not name.endswith(SHARE):
                continue
            seen = self._shares.setdefault(name, [])
            seen.append(share)
            if len(seen) == LOOK_AT:
                self._judge(name.removesuffix(SHARE), sum(seen) / LOOK_AT)
                seen.clear()

    def _judge(self, task: str, share: float) -> None:
        if share == 0:
            raise TrainingError(
                f"'{task}' could answer none of the samples of {LOOK_AT} steps: it learns nothing from them. Crops may show air alone: "
                "raise data.foreground, take larger crops, or another threshold in the task's options (`medssl plugins show`)."
            )
        if share < FEW and task not in self._told:
            self._told.add(task)
            self._say(
                f"'{task}' can answer {share:.0%} of its samples only; the others are computed and teach nothing. "
                "Raise data.foreground, or take larger crops."
            )
