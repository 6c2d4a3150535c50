"""medssl pretrains medical imaging networks on unlabelled scans and hands back a plain MONAI network that needs few labels.

`medssl.pretrain`, `medssl.fine_tune` and `medssl.load_pretrained` are loaded when first used: importing medssl imports neither
torch nor MONAI.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medssl.hookspecs import hookimpl

if TYPE_CHECKING:
    from medssl.networks import NetworkSpec
    from medssl.train import pretrain
    from medssl.transfer import fine_tune, load_pretrained

__version__ = "0.1.0"

_WHERE = {
    "pretrain": "medssl.train",
    "fine_tune": "medssl.transfer",
    "load_pretrained": "medssl.transfer",
    "NetworkSpec": "medssl.networks",
}

__all__ = ["NetworkSpec", "__version__", "fine_tune", "hookimpl", "load_pretrained", "pretrain"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'medssl' has no attribute '{name}'")
