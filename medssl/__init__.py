"""medssl pretrains medical imaging networks on unlabelled scans and hands back a plain MONAI network that needs few labels.

Everything here is loaded when first used: importing medssl imports neither torch nor MONAI.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medssl.hookspecs import hookimpl

if TYPE_CHECKING:
    from medssl import errors, monai
    from medssl.networks import NetworkSpec, decoder_parameters, encoder, encoder_parameters
    from medssl.train import pretrain
    from medssl.transfer import fine_tune, load_into, load_pretrained, predict
    from medssl.transfer.evaluate import evaluate

__version__ = "0.1.0"

_WHERE = {
    "NetworkSpec": "medssl.networks",
    "decoder_parameters": "medssl.networks",
    "encoder": "medssl.networks",
    "encoder_parameters": "medssl.networks",
    "evaluate": "medssl.transfer",
    "fine_tune": "medssl.transfer",
    "load_into": "medssl.transfer",
    "load_pretrained": "medssl.transfer",
    "predict": "medssl.transfer",
    "pretrain": "medssl.train",
}
_ROOMS = ("errors", "monai")

__all__ = [
    "NetworkSpec",
    "__version__",
    "decoder_parameters",
    "encoder",
    "encoder_parameters",
    "errors",
    "evaluate",
    "fine_tune",
    "hookimpl",
    "load_into",
    "load_pretrained",
    "monai",
    "predict",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"medssl.{name}")
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'medssl' has no attribute '{name}'")


def __dir__() -> list[str]:
    return list(__all__)
