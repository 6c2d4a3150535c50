"""Where the encoders of MONAI's networks are: one line a family, given to the plugin host through the same hook as anyone's.

It cannot be read from shapes alone: the smallest grid also holds the decoder's first layers. This module imports neither torch
nor MONAI, because it is read with the entry points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from medssl.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from medssl.contracts import EncoderLayout


def _nested(network: Any) -> tuple[str, ...]:
    """UNet keeps each level inside the one above it."""
    inner = [name for name, _ in network.named_modules() if name.rpartition(".")[2] == "submodule"]
    end = max(inner, key=lambda name: name.count("."))
    return (*(name.removesuffix("1.submodule") + "0" for name in inner), end)


def _innermost(network: Any) -> tuple[str, ...]:
    return (_nested(network)[-1],)


def _items(of: str, last: str | None = None, first: tuple[str, ...] = ()) -> Callable[[Any], tuple[str, ...]]:
    def find(network: Any) -> tuple[str, ...]:
        numbered = (f"{of}.{number}" for number in range(len(network.get_submodule(of))))
        return (*first, *numbered, *([last] if last is not None else []))

    return find


ENCODERS: dict[str, tuple[str, ...] | Callable[[Any], tuple[str, ...]]] = {
    "AttentionUnet": _innermost,
    "BasicUNet": ("conv_0", "down_1", "down_2", "down_3", "down_4"),
    "BasicUNetPlusPlus": ("conv_0_0", "conv_1_0", "conv_2_0", "conv_3_0", "conv_4_0"),
    "DenseNet": ("features",),
    "DynUNet": _items("downsamples", last="bottleneck", first=("input_block",)),
    "FlexibleUNet": ("encoder",),
    "MedNeXt": _items("enc_stages", last="bottleneck"),
    "ResNet": ("layer1", "layer2", "layer3", "layer4"),
    "SENet": ("layer1", "layer2", "layer3", "layer4"),
    "SegResNet": _items("down_layers"),
    "SegResNetDS": ("encoder",),
    "SwinUNETR": ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10"),
    "UNETR": _items("vit.blocks"),
    "UNet": _nested,
    "VNet": ("in_tr", "down_tr32", "down_tr64", "down_tr128", "down_tr256"),
    "ViT": _items("blocks"),
}
"""Class name in `monai.networks.nets` -> the submodules of its levels, fine to coarse; the last one's output is the encoder's end.
Subclasses are found by their parents."""
TOKENS = {"UNETR": "vit.patch_embedding", "ViT": "patch_embedding"}
"""Where these embed their patches, which is where tokens can be left out."""


@hookimpl
def medssl_encoder_end(network: nn.Module) -> EncoderLayout | None:
    """The core's own table, offered through the hook like any plugin's; None for networks that are not MONAI's."""
    for cls in type(network).__mro__:
        found = ENCODERS.get(cls.__name__) if cls.__module__.startswith("monai.") else None
        if found is not None:
            from medssl.contracts import EncoderLayout

            levels = found if isinstance(found, tuple) else found(network)
            return EncoderLayout(levels[-1], levels if len(levels) > 1 else (), TOKENS.get(cls.__name__))
    return None
