"""Every other MONAI network that has a place in the field, in 2D and 3D: head, stem, encoder's end, heads of donors, sizes."""

from __future__ import annotations

import pytest
import torch

from medssl.networks import NetworkSpec, Trunk, as_spec, check_crop, dense_head, head_module, network_info, stem_modules, swap_head

TOKENS = {"hidden_size": 24, "mlp_dim": 48, "num_heads": 2, "img_size": 32}
FAMILIES = {
    "AttentionUnet": ({"channels": [4, 8, 16], "strides": [2, 2]}, True),
    "BasicUNetPlusPlus": ({"features": [4, 4, 8, 8, 16, 4]}, True),
    "SegResNetDS": ({"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 2}, True),
    "FlexibleUNet": ({"decoder_channels": [16, 8, 8, 4, 4]}, True),
    "VNet": ({}, True),
    "MedNeXt": ({"init_filters": 8, "kernel_size": 3}, True),
    "UNETR": ({**TOKENS, "feature_size": 4}, True),
    "SwinUNETR": ({"feature_size": 12}, True),
    "DenseNet": ({"init_features": 8, "growth_rate": 4, "block_config": [2, 2, 2]}, False),
    "SEResNet50": ({}, False),
    "ViT": ({**TOKENS, "num_layers": 2}, False),
    "resnet50": ({}, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, dims: int) -> None:
    if name in ("UNETR", "SwinUNETR", "ViT"):
        pytest.importorskip("einops", reason="MONAI's transformers need einops")
    options, dense = FAMILIES[name]
    spec = as_spec(NetworkSpec(name, spatial_dims=dims, options=options)).pretraining()
    size = (64 if name in ("SwinUNETR", "FlexibleUNet") else 32,) * dims
    check_crop(spec, size, batch=2)
    info, network = network_info(spec), spec.build(2, seed=0)
    seen = Trunk(network, spec)(torch.randn(2, 1, *size))
    assert seen["encoder_end"].shape == (
        2,
        info.embedding_width,
        *[side // stride for side, stride in zip(size, info.strides, strict=True)],
    )
    assert stem_modules(spec)
    assert (head_module(spec) is not None) == dense
    if dense:
        _, head = dense_head(spec, 4)
        assert head(seen["feature_map"]).shape == (2, 4, *size)
    network = swap_head(spec.build(2), spec, 5)
    output = network(torch.randn(2, 1, *size))
    output = output[0] if isinstance(output, list | tuple) else output
    assert output.shape[:2] == (2, 5)
