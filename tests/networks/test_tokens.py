"""Leaving tokens out: what the encoder sees, what it costs, and who refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medssl.errors import NetworkError
from medssl.networks import NetworkSpec, Trunk, as_spec, network_info

SIZES = {"hidden_size": 24, "mlp_dim": 48, "num_heads": 2}


def token_spec(name: str, dims: int = 2, **options: Any) -> NetworkSpec:
    further = {"patch_size": [16] * dims, "num_layers": 2} if name == "ViT" else {"feature_size": 4}
    return as_spec({"name": name, "spatial_dims": dims, "options": {"img_size": [64] * dims, **SIZES, **further, **options}})


def tapped(spec: NetworkSpec) -> tuple[Trunk, list[int]]:
    """A trunk, and how many tokens the attention of each block was given since."""
    network = spec.build(seed=0).eval()
    seen: list[int] = []
    blocks = network.blocks if hasattr(network, "blocks") else network.vit.blocks
    for block in blocks:
        block.attn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    return Trunk(network, spec), seen


CASES = [("ViT", {"classification": False}, 0), ("ViT", {"classification": True}, 1), ("UNETR", {}, 0)]


@pytest.mark.parametrize(("name", "options", "extra"), CASES)
@torch.no_grad()
def test_the_encoder_sees_and_pays_for_the_visible_tokens_alone(name: str, options: dict[str, Any], extra: int) -> None:
    trunk, seen = tapped(token_spec(name, **options))
    images = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    visible = torch.tensor([[3, 1, 7, 10], [0, 15, 2, 8]])
    some = trunk(images, {"tokens"}, visible)["tokens"]
    assert some.shape == (2, 4, 24) and set(seen) == {4 + extra}
    seen.clear()
    every = trunk(images, {"tokens"})["tokens"]
    assert every.shape == (2, 16, 24) and set(seen) == {16 + extra}
    assert not torch.allclose(some, every.gather(1, visible.unsqueeze(2).expand(-1, -1, 24)), atol=1e-4)
    # What is hidden does not reach the answer; what is visible does.
    hidden, shown = images.clone(), images.clone()
    hidden[0, :, :16, :16] += 5.0
    shown[0, :, :16, 48:] += 5.0
    assert torch.equal(trunk(hidden, {"tokens"}, visible)["tokens"], some)
    assert not torch.equal(trunk(shown, {"tokens"}, visible)["tokens"][0], some[0])


@torch.no_grad()
def test_tokens_come_in_the_order_in_which_they_are_named_and_all_of_them_are_what_none_left_out_gives() -> None:
    trunk, _ = tapped(token_spec("ViT"))
    images = torch.randn(2, 1, 64, 64)
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    named, plain = trunk(images, {"tokens"}, order)["tokens"], trunk(images, {"tokens"})["tokens"]
    torch.testing.assert_close(named, plain.gather(1, order.unsqueeze(2).expand(-1, -1, 24)))


@torch.no_grad()
def test_the_class_token_sees_the_visible_ones() -> None:
    trunk, _ = tapped(token_spec("ViT", classification=True))
    images, visible = torch.randn(2, 1, 64, 64), torch.tensor([[1, 2], [3, 4]])
    found = trunk(images, {"tokens", "class_token"}, visible)
    assert found["class_token"].shape == (2, 24)
    assert not torch.equal(found["class_token"], trunk(images, {"class_token"})["class_token"])
    with pytest.raises(NetworkError, match="reads class_token, and ViT has no class token. Read tokens instead"):
        tapped(token_spec("ViT", classification=False))[0](images, {"class_token"}, visible)


@pytest.mark.parametrize(("name", "options", "extra"), CASES)
def test_the_network_says_how_many_tokens_there_are(name: str, options: dict[str, Any], extra: int) -> None:
    info = network_info(token_spec(name, **options))
    assert (info.token_grid, info.tokens, info.class_token) == ((4, 4), 16, bool(extra))


def refused(trunk: Trunk, needs: set[str], visible: Tensor, images: Tensor) -> str:
    with pytest.raises(NetworkError) as caught:
        trunk(images, needs, visible)
    return str(caught.value)


def test_every_other_encoder_and_every_other_feature_refuses(spec: NetworkSpec) -> None:
    trunk = Trunk(spec.build(2), spec)
    images = torch.zeros(1, 1, *[32] * spec.spatial_dims)
    assert "cannot leave tokens out" in refused(trunk, {"encoder_end"}, torch.tensor([[0]]), images)
    assert network_info(spec).tokens == 0


def test_what_does_not_fit_is_one_message() -> None:
    trunk, _ = tapped(token_spec("UNETR"))
    images = torch.zeros(2, 1, 64, 64)
    assert "read tokens or class_token" in refused(trunk, {"feature_map"}, torch.zeros(2, 4, dtype=torch.int64), images)
    for shape in ((2, 0), (2, 17), (1, 4)):
        assert "`visible` has shape" in refused(trunk, {"tokens"}, torch.zeros(shape, dtype=torch.int64), images)
