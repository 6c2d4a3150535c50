"""One forward pass: encoder's end, feature map, output."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from monai.networks.nets import SegResNet
from torch import nn

from medssl import hookimpl
from medssl.contracts import EncoderLayout
from medssl.errors import NetworkError, PluginError
from medssl.networks import Encoder, NetworkSpec, Trunk, as_spec, encoder_end, network_info
from medssl.networks.trunk import tokens_to_grid
from medssl.plugins import Plugins


def images_for(spec: NetworkSpec, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, *[32] * spec.spatial_dims, generator=torch.Generator().manual_seed(0))


def test_shapes_are_those_of_the_network_info(spec: NetworkSpec) -> None:
    info = network_info(spec)
    seen = Trunk(spec.build(2), spec)(images_for(spec))
    assert seen["encoder_end"].shape == (2, info.embedding_width, *[32 // stride for stride in info.strides])
    assert info.spatial_dims == spec.spatial_dims
    if info.feature_width:
        assert seen["feature_map"].shape[1] == info.feature_width
    else:
        assert "feature_map" not in seen


def test_known_widths(make_small) -> None:
    info = network_info(make_small("UNet", 3))
    assert (info.embedding_width, info.strides) == (16, (4, 4, 4))
    info = network_info(make_small("BasicUNet", 2))
    assert (info.embedding_width, info.feature_width, info.strides) == (16, 4, (16, 16))
    info = network_info(make_small("SegResNet", 3))
    assert (info.embedding_width, info.feature_width, info.strides) == (32, 8, (4, 4, 4))
    info = network_info(make_small("DynUNet", 2))
    assert (info.embedding_width, info.feature_width, info.strides) == (16, 4, (4, 4))
    info = network_info(make_small("ResNet", 3))
    assert (info.embedding_width, info.feature_width, info.strides) == (16, 0, (16, 16, 16))


def test_anisotropic_strides() -> None:
    options = {"kernel_size": [3, 3, 3], "strides": [1, [2, 2, 1], 2], "upsample_kernel_size": [[2, 2, 1], 2], "filters": [4, 8, 16]}
    assert network_info(as_spec(NetworkSpec("DynUNet", options=options))).strides == (4, 4, 2)


def test_the_output_and_its_gradients_are_the_plain_networks(spec: NetworkSpec) -> None:
    plain = spec.build(2, seed=3)
    tapped = copy.deepcopy(plain)
    images = images_for(spec)
    expected, got = plain(images), Trunk(tapped, spec)(images)["output"]
    assert torch.equal(expected, got)
    for output in (expected, got):
        output.square().mean().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), tapped.parameters(), strict=True))


def test_stopping_early_gives_the_same_and_runs_no_more(spec: NetworkSpec) -> None:
    network = spec.build(2, seed=3).eval()
    trunk = Trunk(network, spec)
    images = images_for(spec)
    ran: list[str] = []
    for name, module in network.named_modules():
        if not any(module.children()):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    whole = trunk(images)
    all_layers = len(ran)
    ran.clear()
    part = trunk(images, {"encoder_end"})
    assert set(part) == {"encoder_end"}
    assert torch.equal(part["encoder_end"], whole["encoder_end"])
    assert len(ran) < all_layers
    assert torch.equal(Encoder(network).end(images), whole["encoder_end"])
    if "feature_map" in whole:
        assert torch.equal(trunk(images, {"feature_map"})["feature_map"], whole["feature_map"])


def test_gradients_flow_from_every_part(dense_spec: NetworkSpec) -> None:
    for part in ("encoder_end", "feature_map", "output"):
        network = dense_spec.build(2)
        Trunk(network, dense_spec)(images_for(dense_spec), {part})[part].square().sum().backward()
        assert any(parameter.grad is not None for parameter in network.parameters())


def test_a_feature_map_of_a_classifier_is_refused(make_small) -> None:
    spec = make_small("ResNet", 2)
    with pytest.raises(NetworkError, match="reads feature_map, and .* has none"):
        Trunk(spec.build(2), spec)(images_for(spec), {"feature_map"})


def test_deep_copies_tap_the_copied_network(make_small) -> None:
    spec = make_small("SegResNet", 2)
    trunk = Trunk(spec.build(2), spec)
    images = images_for(spec)
    trunk(images)
    both = copy.deepcopy({"network": trunk.network, "trunk": trunk})
    assert both["trunk"].network is both["network"]
    with torch.no_grad():
        for parameter in both["network"].parameters():
            parameter.zero_()
    assert not torch.equal(both["trunk"](images)["feature_map"], trunk(images)["feature_map"])
    assert set(both["trunk"](images)) == {"encoder_end", "feature_map", "output"}


def test_two_trunks_on_one_network_and_plain_use_do_not_disturb_each_other(make_small) -> None:
    spec = make_small("UNet", 2)
    network = spec.build(2, seed=0)
    images = images_for(spec)
    expected = network(images)
    one, other = Trunk(network, spec), Trunk(network, spec)
    assert torch.equal(one(images)["output"], other(images)["output"])
    assert torch.equal(network(images), expected)
    one.close()
    other.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_threads_keep_their_own(make_small) -> None:
    spec = make_small("SegResNet", 2)
    trunk = Trunk(spec.build(2, seed=0).eval(), spec)
    batches = [torch.full((1, 1, 32, 32), float(i)) + torch.randn(1, 1, 32, 32) for i in range(8)]
    with torch.no_grad():
        expected = [trunk(batch)["encoder_end"] for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(lambda batch: _quietly(trunk, batch), batches * 3))
    assert all(torch.equal(a, b) for a, b in zip(expected * 3, got, strict=True))


def _quietly(trunk: Trunk, batch: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return trunk(batch, {"encoder_end"})["encoder_end"]


def test_a_failing_forward_pass_leaves_nothing_behind(make_small) -> None:
    spec = make_small("SegResNet", 2)
    trunk = Trunk(spec.build(2), spec)
    with pytest.raises(RuntimeError):
        trunk(torch.zeros(1, 5, 32, 32))
    assert not trunk._taps.records
    assert trunk(images_for(spec))["output"].shape[0] == 2


class Strange(nn.Module):
    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1))
        self.up = nn.Upsample(scale_factor=4)
        self.top = nn.Conv2d(6, out_channels, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.top(self.up(self.down(images)))


class WorksInPlace(Strange):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.top(self.up(self.down(images).relu_()))


def test_layers_that_work_in_place_do_not_change_what_was_seen() -> None:
    spec = as_spec(WorksInPlace).model_copy(update={"encoder_end": "down"})
    trunk = Trunk(spec.build(2, seed=0), spec)
    images = torch.randn(2, 1, 16, 16)
    whole, part = trunk(images)["encoder_end"], trunk(images, {"encoder_end"})["encoder_end"]
    assert torch.equal(whole, part)
    assert whole.min() < 0


def test_an_unknown_encoder_end_is_refused_with_how_to_name_it() -> None:
    spec = as_spec(Strange)
    with pytest.raises(
        NetworkError, match=r"encoder of Strange ends.*network\.encoder_end: NAME.*medssl_encoder_end.*down, down\.0"
    ) as error:
        Trunk(spec.build(2), spec)(torch.randn(2, 1, 16, 16), {"encoder_end"})
    info = network_info(spec)
    assert (info.embedding_width, info.strides, info.feature_width) == (0, (), 6)
    assert "up" in str(error.value)
    info = network_info(spec.model_copy(update={"encoder_end": "down"}))
    assert (info.embedding_width, info.strides, info.feature_width) == (6, (4, 4), 6)
    with pytest.raises(NetworkError, match=r"'dwn' is no submodule of Strange\. Did you mean 'down'"):
        network_info(spec.model_copy(update={"encoder_end": "dwn"}))


class Teller:
    @staticmethod
    @hookimpl
    def medssl_encoder_end(network: nn.Module) -> str | None:
        return "down" if isinstance(network, Strange) else None


class Breaker:
    @staticmethod
    @hookimpl
    def medssl_encoder_end(network: nn.Module) -> str | None:
        raise KeyError("oh")


def test_a_plugin_names_the_end_and_is_blamed_when_broken(make_small) -> None:
    spec = as_spec(Strange)
    assert network_info(spec, Plugins.load({"teller": Teller})).embedding_width == 6
    with pytest.raises(PluginError, match="plugin 'breaker'"):
        network_info(spec, Plugins.load({"breaker": Breaker}))
    unet = make_small("UNet", 2)
    assert encoder_end(unet.build(2), Plugins.load({"teller": Teller})) == encoder_end(unet.build(2))


class Other:
    @staticmethod
    @hookimpl
    def medssl_encoder_end(network: nn.Module) -> EncoderLayout | None:
        return EncoderLayout("down_layers.0", levels=("convInit",)) if isinstance(network, SegResNet) else None


def test_the_specification_goes_before_plugins_and_these_before_the_core() -> None:
    spec = as_spec(NetworkSpec("SegResNet", spatial_dims=2, options={"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}))
    named, plugins = spec.model_copy(update={"encoder_end": "down_layers.1"}), Plugins.load({"other": Other})
    network = spec.build(2)
    assert encoder_end(network) == encoder_end(network, Plugins.load()) == "down_layers.2"
    assert encoder_end(network, plugins) == "down_layers.0"
    assert encoder_end(network, plugins, named) == "down_layers.1"
    for one, installed, strides in ((spec, None, 4), (spec, plugins, 1), (named, plugins, 2)):
        info = network_info(one, installed)
        assert info.strides == (strides, strides)
        seen = Trunk(one.build(2), one, installed)(images_for(one), {"encoder_end"})["encoder_end"]
        assert seen.shape[2:] == (32 // strides, 32 // strides)
    assert [level.strides for level in network_info(spec, plugins).levels] == [(1, 1)]


def test_subclasses_of_monai_networks_are_known() -> None:
    class Ours(SegResNet):
        pass

    assert encoder_end(Ours(blocks_down=(1, 1), blocks_up=(1,))) == "down_layers.1"


@pytest.mark.parametrize(
    ("size", "patch", "extra"), [((32, 32), None, 0), ((32, 32), None, 1), ((32, 48, 16), 16, 1), ((32, 48), (8, 16), 0)]
)
def test_tokens_become_a_grid(size: tuple[int, ...], patch: object, extra: int) -> None:
    sides = (16,) * len(size) if patch is None else (patch,) * len(size) if isinstance(patch, int) else patch
    grid = tuple(side // part for side, part in zip(size, sides, strict=True))
    values = torch.randn(2, 5, *grid)
    tokens = torch.cat([torch.zeros(2, extra, 5), values.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(tokens_to_grid(tokens, size, patch), values)


def test_tokens_that_do_not_fit() -> None:
    with pytest.raises(NetworkError, match="give patch_size"):
        tokens_to_grid(torch.zeros(1, 7, 3), (32, 32), 16)
