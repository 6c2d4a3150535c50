"""Which crops fit, worked out without running them: checked against running them."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medssl.errors import NetworkError
from medssl.networks import NetworkSpec, as_spec, check_crop, crop_problem, network_info, sizes
from medssl.plugins import Plugins


def really_works(spec: NetworkSpec, size: tuple[int, ...], batch: int = 1) -> bool:
    network = spec.build(2, seed=0)
    try:
        output = network(torch.zeros(batch, 1, *size))
        output.sum().backward()
    except (RuntimeError, ValueError):
        return False
    return output.dim() == 2 or tuple(output.shape[2:]) == tuple(size)


def refused(spec: NetworkSpec, size: tuple[int, ...], **kwargs: object) -> str | None:
    try:
        check_crop(spec, size, **kwargs)
    except NetworkError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ["UNet", "BasicUNet", "SegResNet", "DynUNet", "ResNet"])
@settings(max_examples=10, deadline=None, derandomize=True)
@given(size=st.tuples(*[st.one_of(st.sampled_from([4, 8, 16, 24, 32]), st.integers(1, 40))] * 2))
def test_the_answer_is_what_training_would_meet_in_2d(make_small, name: str, size: tuple[int, ...]) -> None:
    spec = make_small(name, 2)
    assert (crop_problem(spec, size) is None) == really_works(spec, size)


@pytest.mark.parametrize("name", ["UNet", "BasicUNet", "SegResNet", "DynUNet", "ResNet"])
@pytest.mark.parametrize("size", [(16, 16, 16), (16, 8, 24), (15, 16, 16), (4, 4, 4), (16, 16, 17), (1, 1, 1), (8, 32, 8)])
def test_the_answer_is_what_training_would_meet_in_3d(make_small, name: str, size: tuple[int, ...]) -> None:
    spec = make_small(name, 3)
    assert (crop_problem(spec, size) is None) == really_works(spec, size)


@pytest.mark.parametrize(
    ("name", "multiple", "smallest"),
    [("UNet", "multiples of 4", "8x8x8"), ("SegResNet", "multiples of 4", "4x4x4"), ("DynUNet", "multiples of 4", "8x8x8")],
)
def test_the_message_names_multiple_smallest_and_nearest(make_small, name: str, multiple: str, smallest: str) -> None:
    message = refused(make_small(name, 3), (13, 16, 18))
    assert message is not None
    assert f"{name} cannot take crops of 13x16x18 voxels" in message
    assert multiple in message
    assert f"the smallest crop with equal sides is {smallest}" in message
    assert "nearest to yours 12x16x16 or 16x16x20" in message


def test_every_size_that_the_message_names_is_taken(spec: NetworkSpec) -> None:
    for side in (1, 13):
        message = refused(spec, (side,) * spec.spatial_dims)
        if message is None:
            continue
        named = [tuple(int(part) for part in text.split("x")) for text in re.findall(r"\d+(?:x\d+)+", message.partition("voxels: ")[2])]
        named = [size for size in named if len(size) == spec.spatial_dims]
        assert named
        assert all(refused(spec, size) is None for size in named), message


def test_one_voxel_at_the_end_is_explained(make_small) -> None:
    assert "one voxel would be left where the network normalises" in refused(make_small("UNet", 3), (4, 4, 4))
    assert refused(make_small("UNet", 3), (4, 4, 8)) is None
    resnet = make_small("ResNet", 2)
    assert "one voxel would be left" in refused(resnet, (16, 16))
    assert refused(resnet, (16, 16), batch=2) is None
    assert crop_problem(resnet, (16, 16), needs={"encoder_end"}) is not None
    assert crop_problem(resnet, (16, 16), batch=2, needs={"encoder_end"}) is None


def test_multiples_by_axis() -> None:
    options = {"kernel_size": [3, 3, 3], "strides": [1, [2, 2, 1], 2], "upsample_kernel_size": [[2, 2, 1], 2], "filters": [4, 8, 16]}
    message = refused(as_spec(NetworkSpec("DynUNet", options=options)), (16, 16, 9))
    assert "multiples of 4x4x2" in message
    assert "16x16x8 or 16x16x10" in message


def test_the_encoder_alone_takes_more(make_small) -> None:
    spec = make_small("UNet", 2)
    assert refused(spec, (18, 18)) is not None
    assert refused(spec, (18, 18), needs={"encoder_end"}) is None


class LooksAtValues(nn.Module):
    """Cannot be run without values, so it is tried on the CPU."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.low = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.5)
        self.top = nn.ConvTranspose2d(4, out_channels, 2, stride=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scale = max(float(images.abs().max()), 1.0)
        return self.top(self.drop(self.low(images / scale)))


def test_a_network_that_needs_values() -> None:
    spec = as_spec(LooksAtValues).model_copy(update={"encoder_end": "low"})
    before = torch.random.get_rng_state()
    info = network_info(spec)
    assert (info.embedding_width, info.feature_width, info.strides) == (4, 4, (2, 2))
    assert refused(spec, (10, 12)) is None
    assert "its output would have 12x12 voxels. Its sides may be multiples of 2" in refused(spec, (11, 12))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_wrong_number_of_sides(make_small) -> None:
    with pytest.raises(NetworkError, match="cannot take crops of 32x32 voxels: it works in 3D and needs 3 sides"):
        check_crop(make_small("UNet", 3), (32, 32))


def test_nothing_random_is_consumed(make_small) -> None:
    spec = as_spec(NetworkSpec("UNet", spatial_dims=2, options={"channels": [4, 8], "strides": [2], "dropout": 0.2}))
    before = torch.random.get_rng_state()
    refused(spec, (15, 15))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> tuple[NetworkSpec, Plugins]:
        return as_spec(NetworkSpec("BasicUNet", spatial_dims=2, options={"features": [8, 8, 8, 8, 8, 8]})), Plugins.load()

    info = network_info(*asked(), crop=(48, 32))
    problems = {size: crop_problem(asked()[0], size, 2) for size in ((48, 32), (8, 8))}
    for measures in ("Trunk", "run"):
        monkeypatch.setattr(sizes, measures, None)
    assert network_info(*asked(), crop=(48, 32)) is info
    assert {size: crop_problem(asked()[0], size, 2) for size in problems} == problems
    assert problems[48, 32] is None and problems[8, 8] is not None
