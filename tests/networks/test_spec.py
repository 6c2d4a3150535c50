"""A network as data: built again, compared, written as JSON; everything else refused with what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from monai.networks.nets import AttentionUnet, DynUNet, FlexibleUNet, SegResNet, UNet, ViT, resnet10
from torch import nn

from medssl.config import check, dump_config
from medssl.errors import ConfigError, NetworkError
from medssl.networks import NetworkSpec, as_spec


def two_layers(out_channels: int, in_channels: int = 1, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.Conv2d(width, out_channels, 1))


def not_a_network(out_channels: int) -> str:
    return "text"


class OwnNetwork(nn.Module):
    def __init__(self, num_classes: int, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Conv3d(2, width, 3, padding=1)
        self.top = nn.Conv3d(width, num_classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.top(self.body(images))


@pytest.mark.parametrize("name", ["UNet", "BasicUNet", "SegResNet", "DynUNet", "ResNet", "AttentionUnet", "resnet18"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_name_alone_is_enough(name: str, dims: int) -> None:
    spec = as_spec({"name": name, "spatial_dims": dims, "in_channels": 1})
    assert isinstance(spec.build(3), nn.Module)


def test_the_five_take_a_crop(spec: NetworkSpec) -> None:
    images = torch.randn(2, 1, *[32] * spec.spatial_dims)
    output = spec.build(3)(images)
    output = output[0] if isinstance(output, tuple) else output
    assert output.shape[:2] == (2, 3)


def test_numbers_of_inputs_and_outputs_reach_differently_named_parameters() -> None:
    network = as_spec(NetworkSpec("resnet10", spatial_dims=2, in_channels=4)).build(7)
    assert network.conv1.in_channels == 4
    assert network.fc.out_features == 7


def test_channels_shape_the_other_defaults() -> None:
    assert as_spec({"name": "UNet", "options": {"channels": [4, 8, 16]}}).options["strides"] == [2, 2]
    assert as_spec({"name": "DynUNet", "options": {"filters": [4, 8, 16]}}).options["upsample_kernel_size"] == [2, 2]


def test_json_and_yaml_round_trip() -> None:
    spec = as_spec(
        NetworkSpec("SegResNet", spatial_dims=2, in_channels=3, out_channels=4, options={"blocks_down": (1, 2), "blocks_up": (1,)})
    )
    again = NetworkSpec.model_validate(json.loads(spec.model_dump_json(by_alias=True)))
    assert again == spec
    assert as_spec(again) == spec
    assert "_target_" not in dump_config(spec)


def test_short_forms() -> None:
    assert check(NetworkSpec, {"_target_": "monai.networks.nets.SegResNet", "init_filters": 16}).options == {"init_filters": 16}
    assert NetworkSpec.model_validate("UNet") == NetworkSpec("UNet")
    assert as_spec("monai.networks.nets.SegResNet").options == as_spec("SegResNet").options
    with pytest.raises(NetworkError, match="needs channels, strides"):
        as_spec("monai.networks.nets.UNet")


def test_a_partial_says_the_same_as_a_specification() -> None:
    made = as_spec(partial(SegResNet, spatial_dims=3, in_channels=1, init_filters=8))
    assert made == as_spec(NetworkSpec("SegResNet", spatial_dims=3, in_channels=1, options={"init_filters": 8}))
    assert made.rebuildable
    assert as_spec(partial(UNet, 2, 1, channels=(4, 8), strides=(2,))).spatial_dims == 2
    assert as_spec(partial(SegResNet, spatial_dims=3, in_channels=1, out_channels=3)).out_channels == 3


OWN: list[tuple[type[nn.Module], dict[str, object]]] = [
    (UNet, {"spatial_dims": 3, "in_channels": 1, "channels": (8, 16), "strides": (2,)}),
    (DynUNet, {"spatial_dims": 3, "in_channels": 1, "strides": [1, 2, 2], "kernel_size": [3, 3, 3], "upsample_kernel_size": [2, 2]}),
    (ViT, {"in_channels": 1, "img_size": (32, 32, 32), "patch_size": (16, 16, 16), "num_layers": 1}),
    (AttentionUnet, {"spatial_dims": 2, "in_channels": 1, "channels": (4, 8), "strides": (2,)}),
]


@pytest.mark.parametrize(("cls", "arguments"), OWN, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_given_whole_is_built_as_monai_builds_it(cls: type[nn.Module], arguments: dict[str, Any]) -> None:
    outputs = "num_classes" if cls is ViT else "out_channels"
    expected = {name: tensor.shape for name, tensor in cls(**arguments, **{outputs: 2}).state_dict().items()}
    fields = {key: arguments[key] for key in ("spatial_dims", "in_channels") if key in arguments}
    options = {key: value for key, value in arguments.items() if key not in fields}
    for given in (
        partial(cls, **arguments),
        {"_target_": f"monai.networks.nets.{cls.__name__}", **arguments},
        NetworkSpec(cls.__name__, **fields, options=options),
    ):
        spec = as_spec(given)
        again = NetworkSpec.model_validate(json.loads(spec.model_dump_json(by_alias=True)))
        for built in (spec.build(2), again.build(2)):
            assert {name: tensor.shape for name, tensor in built.state_dict().items()} == expected


def test_what_monai_would_refuse_is_not_filled_in() -> None:
    with pytest.raises(NetworkError, match="needs strides"):
        as_spec(partial(UNet, spatial_dims=3, in_channels=1, channels=(8, 16)))


def test_a_partial_keeps_the_numbers_its_network_would_take() -> None:
    assert as_spec(partial(FlexibleUNet, in_channels=1, backbone="efficientnet-b0")).spatial_dims == 2
    assert as_spec(resnet10).in_channels == 3
    assert as_spec(SegResNet).in_channels == 1


def test_own_code_by_import_path(tmp_path, monkeypatch) -> None:
    (tmp_path / "our_networks.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, out_channels, in_channels, depth=1):\n"
        "        super().__init__()\n"
        "        self.only = nn.Conv2d(in_channels, out_channels, 1)\n"
        "    def forward(self, x):\n"
        "        return self.only(x)\n"
        "def Fixed(out_channels):\n"
        "    return Net(out_channels, 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = as_spec({"_target_": "our_networks.Net", "spatial_dims": 2, "in_channels": 2, "depth": 3})
    assert spec.build(5).only.weight.shape == (5, 2, 1, 1)
    assert as_spec("our_networks.Fixed").spatial_dims == 2
    assert as_spec({"_target_": "our_networks.Fixed"}).in_channels == 3
    with pytest.raises(NetworkError, match=r"no option 'dept'. Did you mean 'depth'"):
        as_spec({"_target_": "our_networks.Net", "dept": 3})
    with pytest.raises(NetworkError, match="has no 'Nett'. Did you mean 'Net'"):
        as_spec("our_networks.Nett")


def test_a_callable_without_an_import_path_can_be_built_and_says_that_json_cannot_hold_it() -> None:
    width = 6
    own = lambda out_channels: two_layers(out_channels, width=width)  # noqa: E731
    spec = as_spec(own)
    assert spec == as_spec(own)
    assert not spec.rebuildable
    assert (spec.spatial_dims, spec.in_channels) == (2, 1)
    assert spec.build(3)(torch.zeros(1, 1, 8, 8)).shape == (1, 3, 8, 8)
    lost = NetworkSpec.model_validate(json.loads(spec.model_dump_json(by_alias=True)))
    with pytest.raises(NetworkError, match="Pass the same Python callable"):
        lost.build(3)


def test_dimensions_are_read_from_a_network_that_fixes_them() -> None:
    spec = as_spec(partial(OwnNetwork, width=5))
    assert (spec.spatial_dims, spec.in_channels) == (3, 2)


def test_an_argument_that_json_cannot_hold_is_named() -> None:
    spec = as_spec(partial(SegResNet, spatial_dims=2, in_channels=1, norm=nn.Identity()))
    assert "the argument norm is a Identity" in spec.factory


def test_seed_decides_the_weights_and_leaves_the_global_generator(make_small) -> None:
    spec = make_small("SegResNet", 2)
    before = torch.random.get_rng_state()
    one, same, other = spec.build(2, seed=1), spec.build(2, seed=1), spec.build(2, seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [next(network.parameters()) for network in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_deep_supervision_is_off_in_pretraining() -> None:
    spec = as_spec(NetworkSpec("DynUNet", options={"filters": [4, 8, 16, 16], "deep_supervision": True}))
    assert spec.pretraining().options["deep_supervision"] is False
    assert as_spec(NetworkSpec("SegResNetDS", options={"dsdepth": 3})).pretraining().options["dsdepth"] == 1


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("SegResnet", "Did you mean 'SegResNet'"),
        ("Zzz", "Known: .*BasicUNet"),
        ({"name": "SegResNet", "options": {"init_filter": 8}}, "no option 'init_filter'. Did you mean 'init_filters'"),
        ({"name": "SegResNet", "init_filters": 8}, "unknown key 'init_filters'"),
        ({"name": "SegResNet", "options": {"out_channels": 8}}, r"write it as network\.out_channels"),
        ({"name": "resnet18", "options": {"num_classes": 8}}, r"write it as network\.out_channels"),
        ({"name": "resnet18", "options": {"pretrained": True}}, "would download"),
        ({"name": "UNETR"}, "needs img_size: give it in network.options"),
        ({"spatial_dims": 3}, "either name .* or _target_"),
        ({"name": "UNet", "spatial_dims": 4}, "spatial_dims"),
        ({"name": "SegResNet", "options": {"dropout_prob": float("inf")}}, "options.dropout_prob is inf, which JSON cannot hold"),
        ({"name": "UNet", "options": {"channels": True}}, "the options of UNet cannot be read"),
        ({"name": "DynUNet", "options": {"strides": 3}}, "the options of DynUNet cannot be read"),
        ({"_target_": "os.system", "command": "true"}, "not a network class or a function"),
        ({"_target_": "subprocess.Popen", "args": "true"}, "no torch network"),
        ({"_target_": "subprocess.run", "args": "true"}, "function without a parameter out_channels"),
        ({"_target_": "__import__('os').system"}, "is not an import path"),
        ({"_target_": "torch.nn.modules.conv.__builtins__"}, "is not an import path"),
        ({"_target_": "torch.nn.Linear"}, "cannot be told its number of outputs"),
        ({"_target_": "no_such_package.Net"}, "there is no module 'no_such_package'"),
        (nn.Linear(1, 1), "no convolution that says what images it takes. Give a partial"),
        (3, "not int"),
        (lambda width: nn.Conv2d(1, width, 1), "cannot be told its number of outputs"),
    ],
)
def test_what_is_refused(network: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_spec(network)


def test_a_function_that_returns_no_network() -> None:
    with pytest.raises(NetworkError, match="returned str, not a torch network"):
        as_spec(not_a_network)


def test_values_that_the_network_refuses_are_one_message() -> None:
    with pytest.raises(NetworkError, match="UNet cannot be built with .*strides"):
        as_spec({"name": "UNet", "options": {"channels": [4, 8, 16], "strides": [2]}}).build(2)


def test_the_encoder_table_costs_neither_torch_nor_monai() -> None:
    code = "import sys, medssl.networks.encoders; sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
