"""Where the encoders of MONAI's networks end: one line a family, given to the plugin host through the same hook as anyone's.

It cannot be read from shapes alone: the smallest grid also holds the decoder's first layers. This module imports neither torch
nor MONAI, because it is read with the entry points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from medssl.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn


def _innermost_submodule(network: Any) -> str:
    names = [name for name, _ in network.named_modules() if name.rpartition(".")[2] == "submodule"]
    return str(max(names, key=lambda name: name.count(".")))


def _last(of: str) -> Callable[[Any], str]:
    def find(network: Any) -> str:
        return f"{of}.{len(network.get_submodule(of)) - 1}"

    return find


ENCODER_ENDS: dict[str, str | Callable[[Any], str]] = {
    "AttentionUnet": _innermost_submodule,
    "BasicUNet": "down_4",
    "BasicUNetPlusPlus": "conv_4_0",
    "DenseNet": "features",
    "DynUNet": "bottleneck",
    "FlexibleUNet": "encoder",
    "MedNeXt": "bottleneck",
    "ResNet": "layer4",
    "SENet": "layer4",
    "SegResNet": _last("down_layers"),
    "SegResNetDS": "encoder",
    "SwinUNETR": "encoder10",
    "UNETR": _last("vit.blocks"),
    "UNet": _innermost_submodule,
    "VNet": "down_tr256",
    "ViT": _last("blocks"),
}
"""Class name in `monai.networks.nets` -> the submodule whose output is the encoder's end. Subclasses are found by their parents."""


def known_end(network: nn.Module) -> str | None:
    """The encoder's end of a MONAI network or of a subclass of one; None for other networks."""
    for cls in type(network).__mro__:
        end = ENCODER_ENDS.get(cls.__name__) if cls.__module__.startswith("monai.") else None
        if end is not None:
            return end if isinstance(end, str) else end(network)
    return None


@hookimpl
def medssl_encoder_end(network: nn.Module) -> str | None:
    """The core's own table, offered through the hook like any plugin's."""
    return known_end(network)
