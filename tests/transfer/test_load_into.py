"""Weights into networks that exist, from whatever holds weights, and with another number of input channels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import SegResNet, UNet

import medssl
from medssl.errors import CheckpointError, TransferError, UsageError
from medssl.networks import NetworkSpec, head_tensors
from medssl.train.checkpoint import save_checkpoint

OPTIONS: dict[str, Any] = {"init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)}
SMALL = partial(SegResNet, spatial_dims=2, **OPTIONS)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    spec = NetworkSpec("SegResNet", spatial_dims=2, out_channels=1, options=OPTIONS).checked()
    document = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    state = {"kind": "pretrain", "network": document, "head": list(head_tensors(spec))}
    return save_checkpoint(tmp_path / "run", 3, {"network": spec.build(seed=1).state_dict()}, state)


def test_a_bundles_network_arrives_as_an_instance(checkpoint: Path) -> None:
    parser = ConfigParser({"net": {"_target_": "SegResNet", "spatial_dims": 2, "out_channels": 3, **OPTIONS}})
    network = parser.get_parsed_content("net")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = medssl.load_into(network, checkpoint)
    assert report.coverage == 1
    theirs = medssl.load_pretrained(SMALL, checkpoint, out_channels=3)[0].state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, theirs[name] if name not in report.new else before[name]), name
    assert "SegResNet from" in str(report)


def test_a_state_dict_is_a_checkpoint(checkpoint: Path) -> None:
    ours = SMALL(out_channels=2)
    report = medssl.load_into(SMALL(out_channels=2), {"state_dict": {f"module.{name}": value for name, value in ours.state_dict().items()}})
    assert report.coverage == 1
    assert not report.new
    network, again = medssl.load_pretrained(SMALL, ours.state_dict(), out_channels=2)
    assert again.coverage == 1
    assert torch.equal(network.state_dict()["convInit.conv.weight"], ours.state_dict()["convInit.conv.weight"])
    with pytest.raises(CheckpointError, match="state dict holds no named tensors"):
        medssl.load_into(ours, {})
    with pytest.raises(UsageError, match="into a network that exists"):
        medssl.load_into("SegResNet", checkpoint)  # type: ignore[arg-type]
    with pytest.raises(TransferError, match="of UNet .its head aside. could be loaded"):
        medssl.load_into(UNet(2, 1, 2, channels=(4, 8), strides=(2,)), checkpoint)


class Own(torch.nn.Module):
    """A network of a user's, of which no attribute says what it was built with."""

    def __init__(self, outputs: int, width: int = 4) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(1, width, 3, padding=1), torch.nn.ReLU())
        self.out = torch.nn.Conv2d(width, outputs, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, outputs, *size)."""
        answer: torch.Tensor = self.out(self.body(images))
        return answer


@pytest.mark.parametrize(
    ("theirs", "ours", "head"),
    [
        (SMALL(out_channels=1), SMALL(out_channels=3), ("conv_final.2.conv.weight", "conv_final.2.conv.bias")),
        (UNet(2, 1, 1, (4, 8), (2,)), UNet(2, 1, 3, (4, 8), (2,)), None),
        (Own(1), Own(3), ("out.weight", "out.bias")),
    ],
    ids=["SegResNet", "UNet", "one of your own"],
)
def test_tensors_for_other_outputs_leave_the_head(theirs: torch.nn.Module, ours: torch.nn.Module, head: tuple[str, ...] | None) -> None:
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    report = medssl.load_into(ours, {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()})
    assert report.coverage == 1
    assert report.head == report.new == (report.head if head is None else head)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, before[name] if name in report.head else theirs.state_dict()[name]), name


def test_tensors_that_differ_elsewhere_are_missing() -> None:
    with pytest.raises(TransferError, match=r"Missing: .*body"):
        medssl.load_into(Own(3, width=5), Own(3).state_dict())


def test_one_channel_becomes_four(checkpoint: Path) -> None:
    one = medssl.load_pretrained(SMALL, checkpoint, out_channels=2)[0].state_dict()["convInit.conv.weight"]
    with pytest.raises(TransferError, match="stem='repeat', 'average' or 'new'"):
        medssl.load_into(SMALL(in_channels=4, out_channels=2), checkpoint)
    with pytest.raises(UsageError, match="Did you mean 'repeat'"):
        medssl.load_into(SMALL(in_channels=4, out_channels=2), checkpoint, stem="repeated")  # type: ignore[arg-type]
    for stem in ("repeat", "average"):
        network = SMALL(in_channels=4, out_channels=2)
        assert medssl.load_into(network, checkpoint, stem=stem).coverage == 1
        assert torch.allclose(network.state_dict()["convInit.conv.weight"], one.expand(-1, 4, -1, -1) / 4)
    built, report = medssl.load_pretrained(partial(SMALL, in_channels=4), checkpoint, out_channels=2, stem="new")
    assert "convInit.conv.weight" in report.new
    assert built(torch.randn(1, 4, 16, 16)).shape == (1, 2, 16, 16)
