"""Training that can be trusted: run folders, checkpoints, the step engine and `pretrain`.

Everything is loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medssl.run import Best, Run, RunState

if TYPE_CHECKING:
    from medssl.train.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, newest_good, save_checkpoint
    from medssl.train.config import PretrainConfig, TrainOptions, pretrain_schema
    from medssl.train.pretraining import pretrain
    from medssl.train.stopping import Stopped
    from medssl.train.training import make_engine

_WHERE = {
    "Checkpoint": "checkpoint",
    "PretrainConfig": "config",
    "Stopped": "stopping",
    "TrainOptions": "config",
    "find_checkpoint": "checkpoint",
    "load_checkpoint": "checkpoint",
    "make_engine": "training",
    "newest_good": "checkpoint",
    "pretrain": "pretraining",
    "pretrain_schema": "config",
    "save_checkpoint": "checkpoint",
}

__all__ = [
    "Best",
    "Checkpoint",
    "PretrainConfig",
    "Run",
    "RunState",
    "Stopped",
    "TrainOptions",
    "find_checkpoint",
    "load_checkpoint",
    "make_engine",
    "newest_good",
    "pretrain",
    "pretrain_schema",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"medssl.train.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'medssl.train' has no attribute '{name}'")
