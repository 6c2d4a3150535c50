"""Networks that exist: read back into their specification where their attributes say it, else copied; weights come along."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from monai.networks.nets import (
    AttentionUnet,
    BasicUNet,
    BasicUNetPlusPlus,
    DenseNet121,
    DynUNet,
    SegResNet,
    SegResNetDS,
    SwinUNETR,
    UNet,
    ViT,
    VNet,
)
from torch import Tensor, nn

from medssl.errors import NetworkError
from medssl.networks import as_spec, first_network, head_module, head_tensors, network_info, unique_tensors

READ_BACK: dict[str, Callable[[], nn.Module]] = {
    "UNet": partial(UNet, 2, 1, 2, (8, 16, 32), (2, 2)),
    "UNet, residual": partial(UNet, 3, 2, 1, (8, 16), (2,), num_res_units=2, norm="batch"),
    "AttentionUnet": partial(AttentionUnet, 2, 1, 2, (8, 16), (2,)),
    "SegResNet": partial(SegResNet, 3, 8, 1, 3, blocks_down=(1, 2), blocks_up=(1,)),
    "SegResNetDS": partial(SegResNetDS, 2, 8, 1, 3, blocks_down=(1, 2, 2), dsdepth=2),
    "DynUNet": partial(DynUNet, 2, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[4, 8, 8, 8], deep_supervision=True, deep_supr_num=2),
    "VNet": partial(VNet, 2, 1, 2),
    "DenseNet121": partial(DenseNet121, 2, 1, 4),
}
COPIED: dict[str, Callable[[], nn.Module]] = {
    "BasicUNet": partial(BasicUNet, 2, 1, 3, (8, 8, 16, 16, 16, 8)),
    "BasicUNetPlusPlus": partial(BasicUNetPlusPlus, 2, 1, 3, (8, 8, 16, 16, 16, 8)),
    "DynUNet, residual": partial(DynUNet, 2, 1, 2, [3] * 3, [1, 2, 2], [2] * 2, filters=[4, 8, 8], res_block=True),
    "SwinUNETR": partial(SwinUNETR, 1, 2, feature_size=12, spatial_dims=2),
    "ViT": partial(ViT, 1, (32, 32), (16, 16), 48, 48, 2, 4, classification=True, num_classes=3, spatial_dims=2),
}


@pytest.mark.parametrize("name", [*READ_BACK, *COPIED])
def test_a_network_that_exists_is_built_again(name: str) -> None:
    network = (READ_BACK | COPIED)[name]().train()
    network.requires_grad_(False)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    spec = as_spec(network)
    assert spec.rebuildable == (name in READ_BACK)
    assert (spec.name or str(spec.factory)).endswith(name.partition(",")[0])
    again = first_network(spec, seed=0)
    assert again.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in again.state_dict().items())
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in again.parameters())
    other = spec.build(out_channels=7)
    changed = {key for key, tensor in unique_tensors(other).items() if tensor.shape != before[key].shape}
    assert changed and changed <= set(head_tensors(spec))
    assert not any(parameter.is_meta for parameter in other.parameters())


@pytest.mark.parametrize("name", ["BasicUNet", "DynUNet, residual", "SwinUNETR"])
def test_a_copied_network_has_the_head_that_its_specification_has(name: str) -> None:
    made = COPIED[name]
    ours = as_spec(made()).pretraining()
    theirs = as_spec(partial(made.func, *made.args, **made.keywords)).pretraining()  # type: ignore[attr-defined]
    assert head_module(ours) == head_module(theirs)
    assert network_info(ours) == network_info(theirs)


class Own(nn.Module):
    """With two layers behind its feature map that both keep the number of outputs, and a norm between them."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU())
        self.out = nn.Sequential(nn.Conv2d(6, outputs, 1), nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 1))

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.out(self.body(images))
        return found


def test_every_layer_of_the_width_of_the_outputs_is_the_head() -> None:
    spec = as_spec(Own(1))
    assert (spec.spatial_dims, spec.in_channels, spec.out_channels) == (2, 1, 1)
    assert head_module(spec) == "out"
    assert spec.build(out_channels=4)(torch.randn(2, 1, 8, 8)).shape == (2, 4, 8, 8)
    with pytest.raises(NetworkError, match="which a file cannot hold"):
        type(spec).model_validate(spec.model_dump()).build()


class Squared(nn.Module):
    """Its outputs come from no layer with weights alone."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.one(images).sum(1), self.other(images).sum(1)], dim=1)


def test_what_cannot_be_found_is_said() -> None:
    with pytest.raises(NetworkError, match=r"cannot be found\. Give what builds it instead"):
        as_spec(Squared())
    with pytest.raises(NetworkError, match="no convolution that says what images it takes"):
        as_spec(nn.Linear(2, 2))
