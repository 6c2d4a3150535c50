"""Options for a bare name in a configuration, where MONAI gives none; sized for two CPU cores.

What MONAI itself leaves open is filled in, so that a name alone can be built. Where an architecture is given, in whole or in part,
all that MONAI has a default for stays MONAI's: somebody who names channels means the network that MONAI builds of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CHANNELS = [16, 32, 64, 128, 256]


def with_defaults(name: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` completed for the MONAI network `name`; what was given stays and shapes the rest (channels the strides)."""
    filled = dict(options)

    def given(*keys: str) -> bool:
        return any(key in options for key in keys)

    if name in ("UNet", "Unet") and not given("channels", "strides"):
        filled.setdefault("num_res_units", 2)
    if name in ("UNet", "Unet", "AttentionUnet"):
        filled.setdefault("channels", list(_CHANNELS))
        filled.setdefault("strides", [2] * (len(filled["channels"]) - 1))
    elif name in ("DynUNet", "DynUnet", "Dynunet"):
        levels = next((len(filled[key]) for key in ("strides", "kernel_size", "filters") if key in filled), len(_CHANNELS))
        if not given("strides", "kernel_size", "upsample_kernel_size"):
            filled.setdefault("filters", [min(_CHANNELS[0] * 2**level, 320) for level in range(levels)])
        filled.setdefault("strides", [1] + [2] * (levels - 1))
        filled.setdefault("kernel_size", [3] * levels)
        filled.setdefault("upsample_kernel_size", list(filled["strides"][1:]))
    elif name == "ResNet":
        filled.setdefault("block", "basic")
        filled.setdefault("layers", [1, 1, 1, 1])
        filled.setdefault("block_inplanes", [64, 128, 256, 512])
    elif name in ("FlexibleUNet", "FlexUNet"):
        filled.setdefault("backbone", "efficientnet-b0")
    elif name == "ViT" and not given("patch_size"):
        filled.setdefault("patch_size", 16)
        filled.setdefault("classification", True)
    return filled
