"""A run as handlers and callers see it, be it a pretraining or a fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medssl.notebook import html_table

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import nn


@dataclass
class Best:
    """The best evaluation of a run so far."""

    dice: float = -1.0
    step: int = 0
    """0 where nothing was evaluated."""


@dataclass
class RunState:
    """Where a run stands; changes with every step."""

    steps: int
    """Steps of the whole run."""
    step: int = 0
    """Steps done, skipped ones included."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The named losses and measures of the last step."""
    skipped: int = 0
    """Steps left out because a loss or a gradient was not finite."""
    skipping: int = 0
    """Those of them that came last, in a row; 0 where the last step was taken."""
    changed: list[dict[str, Any]] = field(default_factory=list)
    """What was changed when the run was resumed: `step` it went on from, `key`, what it was `before` and is `now`."""
    best: Best = field(default_factory=Best)
    """The best evaluation on validation cases."""


@dataclass(repr=False)
class Run:
    """One training with its folder. `medssl_handlers(run)` receives it before the first step."""

    folder: Path
    config: BaseModel
    """The resolved configuration."""
    objective: nn.Module
    """What is trained; `objective.network` is the plain network."""
    state: RunState
    report: Any = None
    """What was loaded from a pretrained checkpoint (`medssl.transfer.LoadReport`); None from scratch or after a resume."""

    def __repr__(self) -> str:
        best = f", best Dice {self.best.dice:.3f} at step {self.best.step}" if self.best.step else ""
        return f"Run({str(self.folder)!r}, step {self.state.step} of {self.state.steps}{best})"

    def _repr_html_(self) -> str:
        rows = [(name, f"{value:.4g}") for name, value in self.state.metrics.items()]
        return html_table(f"{self.folder}: step {self.state.step} of {self.state.steps}", ("last step", "value"), rows)

    @property
    def network(self) -> nn.Module:
        """The plain MONAI network: after a run with its best weights where there are validation cases, else with its last."""
        network: Any = self.objective.network
        return network  # type: ignore[no-any-return]

    @property
    def best(self) -> Best:
        """The best evaluation on validation cases; step 0 where there are none."""
        return self.state.best
