"""A network that exists, as a bundle's configuration makes one: pretrained, fine-tuned, loaded into, and left as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import DynUNet, SegResNet
from torch import Tensor, nn

import medssl
from medssl.errors import NetworkError
from medssl.monai import PretextLoss, PretextNetwork, PretextTaskd, prepare_pretext_batch
from medssl.run import Run

OPTIONS: dict[str, Any] = {"size": [8, 8, 8], "batch": 2, "verbose": False, "learning_rate": 1e-6, "warmup": 0}
TASK = [{"name": "inpainting", "block": 4}]


def small(outputs: int = 3) -> SegResNet:
    return SegResNet(3, 8, 1, outputs, blocks_down=(1, 1), blocks_up=(1,))


class Own(nn.Module):
    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 2, 2), nn.ReLU())
        self.up, self.out = nn.ConvTranspose3d(8, 8, 2, 2), nn.Conv3d(8, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.out(self.up(self.body(images)))
        return found


def copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(network: nn.Module, before: dict[str, Tensor], within: float = 0.0) -> bool:
    return all(torch.allclose(tensor, before[name], rtol=0, atol=within) for name, tensor in network.state_dict().items())


def state_of(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((sorted((run.folder / "checkpoints").iterdir())[-1] / "state.json").read_text())
    return found


@pytest.fixture(scope="module")
def store(pretrained: Run) -> Path:
    return Path(pretrained.config.data.store)  # type: ignore[attr-defined]


def test_a_monai_network_goes_on_from_its_weights_and_is_left_as_it_is(store: Path, tmp_path: Path) -> None:
    network = small()
    network.convInit.requires_grad_(False)
    before = copied(network)
    run = medssl.pretrain(network, store, TASK, out=tmp_path / "run", steps=1, **OPTIONS)
    assert same(network, before) and not network.convInit.conv.weight.requires_grad
    assert same(run.network, before, within=1e-5) and not same(run.network, before)
    assert state_of(run)["network"]["name"] == "SegResNet"
    assert medssl.load_into(network, run).coverage == 1
    medssl.load_pretrained(None, run, out_channels=4)  # the checkpoint alone says how the network is built


def test_a_network_of_ones_own_that_no_file_can_hold(store: Path, ct: Path, tmp_path: Path) -> None:
    network = Own()
    run = medssl.pretrain(network, store, TASK, out=tmp_path / "run", steps=1, **OPTIONS)
    assert state_of(run)["network"]["factory"] == f"a live {Own.__module__}.Own"
    assert medssl.load_into(Own(5), run).head == ("out.weight", "out.bias")
    assert medssl.pretrain(Own(), store, TASK, out=tmp_path / "run", steps=2, resume=True, **OPTIONS).state.step == 2
    with pytest.raises(NetworkError, match="which a file cannot hold. Pass the same Python callable or network again"):
        medssl.load_pretrained(None, run)
    data = {"images": ct / "images", "labels": ct / "labels", "size": [8, 8, 8], "batch": 1}
    tuned = medssl.fine_tune(network, data, run, tmp_path / "tuned", steps=1, verbose=False)
    assert tuned.report.coverage == 1
    with pytest.raises(NetworkError, match="which a file cannot hold"):
        medssl.predict(tuned.folder, [ct / "images"], tmp_path / "maps")
    assert len(medssl.predict(tuned.folder, [ct / "images"], tmp_path / "maps", network=Own())) == 4
    medssl.pretrain(Own(), store, ["relative-position"], out=tmp_path / "end", steps=1, encoder_end="body", **OPTIONS | {"size": [16] * 3})


def test_fine_tuning_from_scratch_begins_with_its_weights(ct: Path, tmp_path: Path) -> None:
    network = small(2)
    before = copied(network)
    data = {"images": ct / "images", "labels": ct / "labels", "size": [8, 8, 8], "batch": 1}
    run = medssl.fine_tune(network, data, out=tmp_path / "run", steps=1, learning_rate=1e-6, verbose=False)
    assert same(run.network, before, within=1e-5)


def test_deep_supervision_is_off_in_pretraining_alone(store: Path, tmp_path: Path) -> None:
    network = DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2] * 2, filters=[4, 8, 8], deep_supervision=True, deep_supr_num=1)
    run = medssl.pretrain(network, store, TASK, out=tmp_path / "run", steps=1, **OPTIONS)
    report = medssl.load_into(network, run)
    assert report.coverage == 1 and not report.missing


def test_a_bundle_pretrains_its_network(store: Path, tmp_path: Path) -> None:
    bundle = {
        "imports": ["$import medssl"],
        "network": {"_target_": "SegResNet", "spatial_dims": 3, "init_filters": 8, "in_channels": 1, "out_channels": 2},
        "pretrained": f"$medssl.pretrain(@network, {str(store)!r}, {TASK!r}, out={str(tmp_path / 'run')!r}, steps=1, **{OPTIONS!r})",
        "report": "$medssl.load_into(@network, @pretrained)",
    }
    parser = ConfigParser(bundle)
    assert parser.get_parsed_content("report").coverage == 1
    assert same(parser.get_parsed_content("network"), copied(parser.get_parsed_content("pretrained").network) | _head(parser), 0)


def _head(parser: ConfigParser) -> dict[str, Tensor]:
    held = parser.get_parsed_content("network").state_dict()
    return {name: tensor for name, tensor in held.items() if name.startswith("conv_final.2")}


def test_a_pretext_network_trains_the_network_itself() -> None:
    pytest.importorskip("medssl_placement")
    network = small()
    model = PretextNetwork(network, "relative-position")
    item = PretextTaskd("image", "relative-position", network=network)({"image": torch.randn(1, 64, 64, 64)})
    image, label = prepare_pretext_batch({key: value[None] for key, value in item.items()})
    PretextLoss("relative-position", network=network)(model(image), label).backward()
    assert model.network is network
    assert any(parameter.grad is not None for parameter in network.parameters())
