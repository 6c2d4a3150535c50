"""Parts of a network by depth: every parameter once, the head first, the stem last."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from medssl.networks import NetworkSpec, as_spec, head_tensors, parts_by_depth, stem_tensors

SWIN = {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 4}
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "UNet": ({"channels": [4, 8, 16, 16], "strides": [2, 2, 2]}, 6),
    "BasicUNet": ({"features": [4, 4, 8, 8, 16, 4]}, 7),
    "SegResNet": ({"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}, 5),
    "DynUNet": ({"filters": [4, 8, 16, 16]}, 6),
    "ResNet": ({"block_inplanes": [4, 8, 8, 16]}, 5),
    "SwinUNETR": (SWIN, 0),
    "ViT": ({"img_size": [32, 32], "hidden_size": 24, "mlp_dim": 48, "num_layers": 2, "num_heads": 2}, 0),
}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_parameter_is_in_one_part(family: str) -> None:
    options, count = FAMILIES[family]
    spec = as_spec(NetworkSpec(family, spatial_dims=3 if family == "SwinUNETR" else 2, options=options))
    parts = parts_by_depth(spec)
    names = [name for part in parts for name in part]
    assert sorted(names) == sorted(name for name, _ in spec.skeleton().named_parameters())
    assert set(parts[0]) == set(head_tensors(spec)) & set(names)
    assert set(stem_tensors(spec)) & set(parts[-1])
    assert len(parts) == count or not count, [part[0] for part in parts]


def test_levels_follow_each_other_from_the_end_to_the_stem() -> None:
    spec = as_spec(NetworkSpec("SegResNet", spatial_dims=2, options=FAMILIES["SegResNet"][0]))
    tops = [sorted({".".join(name.split(".")[:2]) for name in part}) for part in parts_by_depth(spec)[2:]]
    assert tops == [["down_layers.2"], ["down_layers.1"], ["convInit.conv", "down_layers.0"]]


class Own(nn.Module):
    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, out_channels, 1)

    def forward(self, images: Any) -> Any:
        return self.head(self.body(images))


def test_a_network_whose_encoder_nobody_knows_has_two_parts() -> None:
    parts = parts_by_depth(as_spec(lambda out_channels: Own(out_channels)).model_copy(update={"spatial_dims": 2}))
    assert parts == (("head.weight", "head.bias"), ("body.weight", "body.bias"))
