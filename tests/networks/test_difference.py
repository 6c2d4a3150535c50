"""Heads and stems by difference, heads from donors, heads swapped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medssl.errors import NetworkError
from medssl.networks import (
    NetworkSpec,
    Trunk,
    as_spec,
    dense_head,
    head_module,
    head_modules,
    head_tensors,
    stem_modules,
    stem_tensors,
    swap_head,
    unique_tensors,
)


def test_head_and_stem_are_exactly_what_changes(spec: NetworkSpec) -> None:
    """Checked against networks with real values: everything else has the same shape for any number."""
    network = spec.build(2)
    changes = {"head": (spec.build(7), head_modules(spec)), "stem": (spec.build(2, in_channels=3), stem_modules(spec))}
    for other, layers in changes.values():
        first, second = network.state_dict(), other.state_dict()
        changed = {name for name in first if first[name].shape != second[name].shape}
        held = {name for alias in aliases(network, layers) for name in first if name.startswith(alias + ".")}
        assert changed
        assert changed <= held
        assert all(changed & held_by(network, layer) for layer in layers if held_by(network, layer))


def aliases(network: nn.Module, layers: tuple[str, ...]) -> list[str]:
    wanted = {id(network.get_submodule(layer)) for layer in layers}
    return [name for name, module in network.named_modules(remove_duplicate=False) if id(module) in wanted]


def held_by(network: nn.Module, layer: str) -> set[str]:
    return {f"{layer}.{name}" for name in network.get_submodule(layer).state_dict()}


def test_known_heads(make_small) -> None:
    assert head_module(make_small("UNet", 3)) == "model.2"
    assert head_module(make_small("BasicUNet", 2)) == "final_conv"
    assert head_module(make_small("SegResNet", 3)) == "conv_final.2.conv"
    assert head_module(make_small("DynUNet", 2)) == "output_block.conv.conv"
    assert head_module(make_small("ResNet", 3)) is None
    assert head_modules(make_small("ResNet", 3)) == ("fc",)
    assert stem_tensors(make_small("ResNet", 2)) == ("conv1.weight",)


def test_tensors_under_two_names_count_once(make_small) -> None:
    spec = as_spec(NetworkSpec("DynUNet", options={"filters": [4, 8, 16, 16], "deep_supervision": True}))
    network = spec.build(2)
    tensors = unique_tensors(network)
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors)
    assert len(tensors) < len(network.state_dict())
    assert {tensor.data_ptr() for tensor in tensors.values()} == {tensor.data_ptr() for tensor in network.state_dict().values()}
    assert len(head_tensors(spec)) == 4  # weight and bias of the output and of one supervised depth


def test_buffers_that_are_not_saved_are_left_out() -> None:
    network = nn.Conv2d(1, 1, 1)
    network.register_buffer("scratch", torch.zeros(1), persistent=False)
    assert set(unique_tensors(network)) == {"weight", "bias"}


@pytest.mark.parametrize("channels", [1, 4])
def test_a_donor_head_answers_on_the_shared_feature_map(dense_spec: NetworkSpec, channels: int) -> None:
    size = (16,) * dense_spec.spatial_dims if dense_spec.name != "BasicUNet" else (32,) * dense_spec.spatial_dims
    network = dense_spec.build(2, seed=0)
    name, head = dense_head(dense_spec, channels, seed=1)
    seen = Trunk(network, dense_spec)(torch.randn(2, 1, *size))
    assert head(seen["feature_map"]).shape == (2, channels, *size)
    assert torch.equal(network.get_submodule(name)(seen["feature_map"]), seen["output"])


def test_a_classifier_has_no_dense_head(make_small) -> None:
    with pytest.raises(NetworkError, match="no output for every voxel"):
        dense_head(make_small("ResNet", 2), 3)


def test_a_swapped_head_leaves_all_else(spec: NetworkSpec) -> None:
    network = spec.build(2, seed=0)
    before = {name: tensor.clone() for name, tensor in unique_tensors(network).items()}
    assert swap_head(network, spec, 5, seed=1) is network
    after, heads = unique_tensors(network), set(head_tensors(spec))
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in after if name not in heads)
    images = torch.randn(2, 1, *[32] * spec.spatial_dims)
    assert network(images).shape[1] == 5
    assert {name: t.shape for name, t in after.items()} == {name: t.shape for name, t in unique_tensors(spec.build(5)).items()}


def test_a_swapped_head_with_deep_supervision() -> None:
    spec = as_spec(NetworkSpec("DynUNet", spatial_dims=2, options={"filters": [4, 8, 16, 16], "deep_supervision": True}))
    network = swap_head(spec.build(2), spec, 5)
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 2, 5, 32, 32)


class TwoHeads(nn.Module):
    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3, padding=1)
        self.left = nn.Conv2d(4, out_channels, 1)
        self.right = nn.Conv2d(4, out_channels, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images)
        return self.left(features) + self.right(features)


def test_heads_that_cannot_be_singled_out_must_be_named() -> None:
    with pytest.raises(NetworkError, match=r"come from left, right\. Name the module .* network\.head"):
        head_module(as_spec(TwoHeads))
    named = as_spec(TwoHeads).model_copy(update={"head": "left"})
    assert head_module(named) == "left"
    with pytest.raises(NetworkError, match="does not take one tensor"):
        head_module(as_spec(TwoHeads).model_copy(update={"head": "nothing"}))


def test_norms_that_need_divisible_channels(make_small) -> None:
    options = {"channels": [8, 16, 32], "strides": [2, 2], "num_res_units": 1, "norm": ["GROUP", {"num_groups": 8}]}
    assert head_module(as_spec(NetworkSpec("UNet", spatial_dims=2, out_channels=8, options=options))) == "model.2"
