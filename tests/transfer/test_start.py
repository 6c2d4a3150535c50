"""What a fine-tuning takes over from its pretrained checkpoint, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medssl.errors import CheckpointError, ConfigError, MissingInput, TransferError
from medssl.networks import NetworkSpec, head_tensors
from medssl.train.checkpoint import newest_good, save_checkpoint
from medssl.transfer.finetune import fine_tune
from medssl.volumes import IntensityRule, Preparation

Config = Callable[..., dict[str, Any]]
PREPARATION = Preparation(other=IntensityRule(kind="window", low=0, high=200))


@pytest.fixture
def pretrained(tmp_path: Path, finetune_config: Config) -> Path:
    """A checkpoint as a pretraining writes it, with weights that are easy to know again."""
    spec = NetworkSpec(**finetune_config()["network"])
    network = spec.build(seed=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter * 0.5 + 0.01)
    state = {
        "kind": "pretrain",
        "network": spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        "head": list(head_tensors(spec)),
        "preparation": PREPARATION.model_dump(mode="json"),
        "spacing": [1.0, 1.0, 1.5],
        "channels": 1,
        "lineage": [],
    }
    save_checkpoint(tmp_path / "pretrained", 7, {"network": network.state_dict()}, state)
    return tmp_path / "pretrained"


def first_state(run_folder: Path, finetune_config: Config, **keys: Any) -> dict[str, torch.Tensor]:
    """The network after one step that changes nothing to speak of."""
    config = {**finetune_config(1, validation=0), **keys}
    config["train"] = {"steps": 1, "learning_rate": 1e-12, "weight_decay": 0}
    return dict(fine_tune(config=config, out=run_folder).network.state_dict())


def test_weights_arrive_and_the_head_starts_anew(pretrained: Path, tmp_path: Path, finetune_config: Config) -> None:
    tensors = first_state(tmp_path / "run", finetune_config, pretrained=str(pretrained))
    theirs = newest_good(pretrained)
    assert theirs is not None
    head = set(head_tensors(NetworkSpec(**finetune_config()["network"])))
    for name, tensor in tensors.items():
        if name not in head:
            torch.testing.assert_close(tensor, theirs.tensors["network"][name])
    again = first_state(tmp_path / "again", finetune_config, pretrained=str(pretrained))
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_image_form_network_and_lineage_are_taken_over(pretrained: Path, tmp_path: Path, finetune_config: Config) -> None:
    config = finetune_config(1)
    del config["network"]
    run = fine_tune(config=config, pretrained=pretrained, out=tmp_path / "run")
    assert run.config.preparation == PREPARATION
    assert run.config.data.spacing == (1.0, 1.0, 1.5)
    assert run.config.network is not None
    assert (run.config.network.name, run.config.network.out_channels) == ("UNet", 3)
    last = newest_good(run.folder)
    assert last is not None
    assert Preparation.model_validate(last.state["preparation"]) == PREPARATION
    assert last.state["spacing"] == [1.0, 1.0, 1.5]
    assert [entry["step"] for entry in last.state["lineage"]] == [7]
    assert run.report is not None
    assert run.report.coverage == 1.0
    saved = json.loads((run.folder / "load_report.json").read_text())
    assert saved["coverage"] == 1.0
    assert saved["new"]["head"]


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ({"spacing": 2.0}, [r"data\.spacing is \(2\.0, 2\.0, 2\.0\)", r"\(1\.0, 1\.0, 1\.5\)"]),
        ({"preparation": {"other": {"kind": "raw"}}}, ["preparation is", "'raw'", "'window'"]),
    ],
)
def test_another_image_form_is_refused_with_both_shown(
    pretrained: Path, tmp_path: Path, finetune_config: Config, keys: dict[str, Any], shown: list[str]
) -> None:
    config = finetune_config(1)
    if "spacing" in keys:
        config["data"] |= keys
    else:
        config |= keys
    with pytest.raises(ConfigError) as raised:
        fine_tune(config=config, pretrained=pretrained, out=tmp_path / "run")
    for text in shown:
        assert raised.match(text)


def test_the_same_image_form_may_be_said_again(pretrained: Path, tmp_path: Path, finetune_config: Config) -> None:
    config = finetune_config(1, spacing=[1.0, 1.0, 1.5]) | {"preparation": PREPARATION.model_dump()}
    assert fine_tune(config=config, pretrained=pretrained, out=tmp_path / "run").state.step == 1


def test_plain_weights_of_another_program_start_a_run_too(tmp_path: Path, finetune_config: Config) -> None:
    config = finetune_config(1)
    network = NetworkSpec(**config["network"]).build(3, seed=9)
    torch.save({f"module.{name}": tensor for name, tensor in network.state_dict().items()}, tmp_path / "weights.pt")
    run = fine_tune(config=config, pretrained=tmp_path / "weights.pt", out=tmp_path / "run")
    assert run.report is not None
    assert run.report.coverage == 1.0
    assert run.config.preparation == Preparation()


def test_wrong_checkpoints_are_one_message(pretrained: Path, tmp_path: Path, finetune_config: Config) -> None:
    other = finetune_config(1)
    other["network"] = {"name": "SegResNet", "options": {"init_filters": 8}}
    with pytest.raises(TransferError):
        fine_tune(config=other, pretrained=pretrained, out=tmp_path / "run")
    with pytest.raises(MissingInput):
        fine_tune(config=finetune_config(1), pretrained=tmp_path / "nowhere", out=tmp_path / "run")
    (weights,) = pretrained.rglob("network.safetensors")
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        fine_tune(config=finetune_config(1), pretrained=pretrained, out=tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_fine_tuning_can_start_from_a_fine_tuning(tuned: Any, tmp_path: Path, finetune_config: Config) -> None:
    run = fine_tune(config=finetune_config(1), pretrained=tuned.folder, out=tmp_path / "run")
    last = newest_good(run.folder)
    assert last is not None
    assert [entry["kind"] for entry in last.state["lineage"]] == ["finetune"]
    assert run.report is not None
    assert run.report.head
