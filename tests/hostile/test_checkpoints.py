"""Checkpoints of others: their names are no paths, they import nothing that nobody named, and their states follow a schema."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medssl.errors import CheckpointError, MedsslError
from medssl.monai import PrepareImage
from medssl.networks import NetworkSpec, head_tensors
from medssl.train.checkpoint import load_checkpoint, save_checkpoint
from medssl.train.checkpoint_state import checksum_of
from medssl.train.config import PretrainConfig
from medssl.train.optim import load_optimizer, make_optimizer, optimizer_tensors, parameter_groups
from medssl.train.setup import _network
from medssl.transfer.load import load_pretrained
from medssl.transfer.prediction import load_segmenter
from medssl.volumes import Preparation

State = dict[str, Any]
SPEC = NetworkSpec(
    name="UNet", spatial_dims=2, in_channels=1, out_channels=2, options={"channels": [4, 8], "strides": [2], "num_res_units": 0}
)
VALUES = {key: [0.0, 1.0] for key in ("minimum", "low", "high", "span", "mean", "std")}
NESTED = "[" * 20_000 + "]" * 20_000


def state_of(spec: NetworkSpec = SPEC) -> State:
    """What a fine-tuning's checkpoint says."""
    return {
        "kind": "finetune",
        "network": spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        "head": list(head_tensors(SPEC)),
        "data": "0",
        "preparation": Preparation().model_dump(mode="json"),
        "spacing": None,
        "channels": 1,
        "channel_names": ["MR"],
        "modalities": ["MR"],
        "arrays": [0],
        "kinds": [{"channels": [{"name": "MR", "modality": "MR", "array": 0}], "volumes": 4, "values": [VALUES]}],
        "label_values": None,
        "size": [16, 16],
        "overlap": 0.5,
        "lineage": [],
        "versions": {"torch": "2"},
        "skipped": 0,
        "skipping": 0,
        "best": {"dice": 0.5, "step": 3},
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "run", 3, {"network": SPEC.build(seed=0).state_dict()}, state_of())


def restated(checkpoint: Path, change: Callable[[State], Any] | str) -> None:
    """The state with something changed and a checksum that fits."""
    file = checkpoint / "state.json"
    if isinstance(change, str):
        text = '{\n "checksum": "' + "0" * 16 + '",\n "x": ' + change + "}"
    else:
        state = json.loads(file.read_text())
        change(state)
        text = json.dumps({"checksum": "0" * 16} | {key: value for key, value in state.items() if key != "checksum"}, indent=1)
    file.write_text(text.replace("0" * 16, checksum_of(text.encode()), 1))


def further_round(checkpoint: Path) -> PretrainConfig:
    return PretrainConfig.model_validate({"data": {"store": "x", "size": [16, 16]}, "from": str(checkpoint)})


def used(checkpoint: Path) -> None:
    load_segmenter(checkpoint)
    load_pretrained(None, checkpoint, out_channels=3)
    PrepareImage(checkpoint)(np.random.default_rng(0).normal(size=(1, 8, 8, 8)))
    _network(further_round(checkpoint), load_checkpoint(checkpoint))


def test_what_nobody_changed_is_used(checkpoint: Path) -> None:
    restated(checkpoint, lambda state: None)
    used(checkpoint)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../network.safetensors", "x/network.safetensors", ".safetensors", "network", "a\x1b.safetensors"]
)
def test_a_file_of_a_checkpoint_is_no_path(name: str, checkpoint: Path) -> None:
    (checkpoint.parent / "network.safetensors").write_bytes((checkpoint / "network.safetensors").read_bytes())
    restated(checkpoint, lambda state: state["files"].update({name: state["files"].pop("network.safetensors")}))
    with pytest.raises(CheckpointError, match="damaged: it calls a file") as caught:
        load_checkpoint(checkpoint)
    assert str(caught.value).isprintable()


CHANGES: list[State] = [
    {"axes": None, "format": "other"},
    {"format": None},
    {"format": ["medssl-checkpoint"]},
    {"version": -1},
    {"version": 0},
    {"version": "2"},
    {"version": True},
    {"version": 10**30},
    {"version": 1, "versions": 3},
    {"step": -1},
    {"step": "3"},
    {"step": 2.5},
    {"step": None},
    {"files": []},
    {"files": {"network.safetensors": 7}},
    {"files": {}},
    {"aliases": {"network": {"a": "no such tensor"}}},
    {"aliases": {"network": ["a"]}},
    {"aliases": None},
    {"kind": 3},
    {"network": "UNet"},
    {"network": {"name": 3}},
    {"network": {}},
    {"network": {"name": "no such"}},
    {"network": state_of()["network"] | {"in_channels": 2**40}},
    {"network": state_of()["network"] | {"out_channels": None}},
    {"network": state_of()["network"] | {"spatial_dims": 3}},
    {"network": state_of()["network"] | {"options": {"channels": [2**31, 8], "strides": [2]}}},
    {"network": state_of()["network"] | {"options": {"channels": [4, 8], "strides": "x"}}},
    {"network": state_of()["network"] | {"options": []}},
    {"head": "model"},
    {"head": [3]},
    {"preparation": None},
    {"preparation": {"version": 9}},
    {"preparation": {"other": {"kind": "window", "low": 5, "high": 5}}},
    {"spacing": [-1, -1, -1]},
    {"spacing": [1, 1]},
    {"spacing": "x"},
    {"channels": 0},
    {"channels": "1"},
    {"channel_names": [3]},
    {"channel_names": []},
    {"modalities": ["MR", "CT"]},
    {"arrays": [-1]},
    {"kinds": 3},
    {"kinds": [{}]},
    {"kinds": [{"channels": [], "volumes": 4, "values": []}]},
    {"kinds": [{"channels": [{"name": "MR"}], "volumes": 4}]},
    {"kinds": [{"channels": [{"name": "MR", "modality": "MR", "other": 1}], "volumes": 4}]},
    {"kinds": [{"channels": [{"name": "MR", "modality": "MR"}], "volumes": 4, "values": []}]},
    {"kinds": [{"channels": [{"name": "MR", "modality": "MR"}], "volumes": 4, "values": [{}]}]},
    {"kinds": [{"channels": [{"name": "MR", "modality": "MR"}], "volumes": 4, "values": [{**VALUES, "span": [1.0]}]}]},
    {"kinds": [{"channels": [{"name": "MR", "modality": "MR"}], "volumes": 4, "values": [{**VALUES, "odd": [1.0, 2.0]}]}]},
    {"label_values": {"x": 1}},
    {"label_values": {"1": 10**9}},
    {"size": [16]},
    {"size": [16, -16]},
    {"size": [16, 16, 16]},
    {"size": [10**9, 10**9]},
    {"overlap": 1},
    {"overlap": "x"},
    {"best": {"dice": "x", "step": 3}},
    {"best": {}},
    {"skipped": -1},
    {"lineage": [3]},
    {"lineage": 3},
    {"compute": []},
    {"changed": [3]},
]


@pytest.mark.parametrize("values", CHANGES, ids=lambda values: str(values)[:50])
def test_a_state_that_is_none_is_one_clear_error(values: State, checkpoint: Path) -> None:
    restated(checkpoint, lambda state: state.update(values))
    with pytest.raises(MedsslError) as caught:
        used(checkpoint)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 800 + 2 * len(str(checkpoint))


@pytest.mark.parametrize(
    "key", ["files", "aliases", "step", "network", "preparation", "spacing", "channel_names", "arrays", "size", "overlap"]
)
def test_a_key_that_is_missing_is_named(key: str, checkpoint: Path) -> None:
    restated(checkpoint, lambda state: state.pop(key))
    with pytest.raises(CheckpointError, match=rf"state\.json is damaged: .*{key}"):
        used(checkpoint)


@pytest.mark.parametrize("text", [NESTED, "9" * 5_000, "NaN", "[", "[" * 60 + "]" * 60, "1e999"], ids=lambda text: text[:9])
def test_json_that_nobody_would_write_is_one_clear_error(text: str, checkpoint: Path) -> None:
    restated(checkpoint, text)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(checkpoint)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are needed")
@pytest.mark.parametrize("name", ["state.json", "network.safetensors"])
def test_a_pipe_in_a_checkpoint_is_an_error_at_once(name: str, checkpoint: Path) -> None:
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_checkpoint(checkpoint)


@pytest.fixture
def stranger(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose network is of a module that leaves a file when it is imported."""
    (tmp_path / "stranger_nets.py").write_text(
        f"from monai.networks.nets import UNet\nopen({str(tmp_path / 'ran')!r}, 'w').close()\nclass Net(UNet):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = state_of()["network"]
    del network["name"]
    restated(checkpoint, lambda state: state.update(network={"_target_": "stranger_nets.Net", **network}))
    return checkpoint


def test_a_checkpoint_imports_no_module_that_nobody_named(stranger: Path, tmp_path: Path) -> None:
    uses: list[Callable[[], Any]] = [
        lambda: load_segmenter(stranger),
        lambda: load_segmenter(stranger, trusted=["stranger"]),
        lambda: load_pretrained(None, stranger),
        lambda: _network(further_round(stranger), load_checkpoint(stranger)),
    ]
    for use in uses:
        with pytest.raises(CheckpointError, match=r"'stranger_nets\.Net'.*neither MONAI's nor.*--trust stranger_nets"):
            use()
    assert not (tmp_path / "ran").exists() and "stranger_nets" not in sys.modules
    load_pretrained(SPEC, stranger, out_channels=3)
    assert not (tmp_path / "ran").exists()
    assert load_segmenter(stranger, trusted=["stranger_nets"]).names == {1: "class 1"}
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "target", ["os.system", "monai.networks.nets.unet.torch.hub.load", "medssl.cli.app.main", "monai.apps.download_url"]
)
def test_a_checkpoint_calls_nothing_but_networks(target: str, checkpoint: Path) -> None:
    restated(checkpoint, lambda state: state.update(network={"_target_": target, "spatial_dims": 2, "out_channels": 2}))
    with pytest.raises(MedsslError):
        used(checkpoint)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("odd", ["shape", "type", "unknown", "part", "step"])
def test_what_an_optimizer_does_not_keep_is_refused(name: Any, odd: str) -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(parameter_groups(module, 0.01), name, 1e-3)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tensors = optimizer_tensors(optimizer, module)
    moment = "weight/exp_avg" if name == "adamw" else "weight/momentum_buffer"
    if odd == "part" and name == "adamw":
        del tensors[moment]
    changed = {
        "shape": {moment: torch.zeros(7)},
        "type": {moment: torch.zeros(2, 3, dtype=torch.int64)},
        "unknown": {"weight/other": torch.zeros(2, 3)},
        "part": {} if name == "adamw" else {"other/momentum_buffer": torch.zeros(1)},
        "step": {"weight/step": torch.zeros(4)},
    }
    fresh = make_optimizer(parameter_groups(module, 0.01), name, 1e-3)
    with pytest.raises(CheckpointError, match="optimizer remembers"):
        load_optimizer(fresh, module, tensors | changed[odd])
