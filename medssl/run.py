"""A run as handlers and callers see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import nn


@dataclass
class RunState:
    """Where a run stands; changes with every step."""

    steps: int
    """Steps of the whole run."""
    step: int = 0
    """Steps done, skipped ones included."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The named losses of the last step."""
    skipped: int = 0
    """Steps left out because a loss or a gradient was not finite."""


@dataclass
class Run:
    """One training with its folder. `medssl_handlers(run)` receives it before the first step."""

    folder: Path
    config: BaseModel
    """The resolved configuration."""
    objective: nn.Module
    """What is trained; `objective.network` is the plain network."""
    state: RunState
