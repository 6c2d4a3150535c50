"""From pretrained weights to label maps: load, fine-tune with few labels, predict, evaluate.

All but the evaluation is loaded when first used: scoring label maps needs neither torch nor MONAI.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medssl.transfer.evaluate import Evaluation, evaluate

if TYPE_CHECKING:
    from medssl.transfer.comparing import Compared, CompareOptions, compare
    from medssl.transfer.finetune import fine_tune
    from medssl.transfer.load import LoadReport, load_into, load_pretrained
    from medssl.transfer.options import FinetuneConfig, FinetuneTrainOptions, finetune_schema
    from medssl.transfer.prediction import predict

_WHERE = {
    "compare": "comparing",
    "Compared": "comparing",
    "CompareOptions": "comparing",
    "fine_tune": "finetune",
    "FinetuneConfig": "options",
    "FinetuneTrainOptions": "options",
    "finetune_schema": "options",
    "LoadReport": "load",
    "load_into": "load",
    "load_pretrained": "load",
    "predict": "prediction",
}

__all__ = [
    "CompareOptions",
    "Compared",
    "Evaluation",
    "FinetuneConfig",
    "FinetuneTrainOptions",
    "LoadReport",
    "compare",
    "evaluate",
    "fine_tune",
    "finetune_schema",
    "load_into",
    "load_pretrained",
    "predict",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"medssl.transfer.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'medssl.transfer' has no attribute '{name}'")
