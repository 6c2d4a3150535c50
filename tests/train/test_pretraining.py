"""Pretraining: the run folder, the forms of its arguments, what is refused before the first step, and what a step survives."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ignite.engine import Events
from monai.handlers import StatsHandler
from monai.networks.nets import SegResNet
from safetensors.torch import load_file
from torch import Tensor, nn

import medssl
from medssl import hookimpl
from medssl.config import BaseOptions, with_overrides
from medssl.contracts import Crops, DenseHead, Draw, PretextBatch, PretextTask
from medssl.errors import ConfigError, MedsslError, PluginError, TrainingError, TransferError
from medssl.plugins import Plugins
from medssl.train import find_checkpoint
from medssl.train.run_folder import read_rows

Config = dict[str, Any]


class Copy(PretextTask):
    """Give back what was shown; at the steps in `bad` the loss is not a number."""

    name = "copy"
    answer = "values"

    class Options(BaseOptions):
        """None."""

    bad: frozenset[int] = frozenset()
    asked = 0

    def head(self) -> DenseHead:
        return DenseHead(1)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(crops.images, crops.images)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        self.asked += self.training
        return (prediction - batch.target).abs().flatten(1).mean(1) * (math.nan if self.asked in self.bad else 1.0)


def network_of(folder: Path) -> dict[str, Tensor]:
    return find_checkpoint(folder).tensors["network"]


def test_the_run_folder_holds_what_others_rely_on(config: Config, tmp_path: Path) -> None:
    run = medssl.pretrain(config=with_overrides(config, ["train.picture_every=3"]), out=tmp_path / "run")
    assert run.state.step == 6
    rows = read_rows(run.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "inpainting", "simsiam"} <= set(rows[0])
    assert rows[0]["loss"] == pytest.approx(rows[0]["inpainting"] + 0.1 * rows[0]["simsiam"], rel=1e-5)
    assert {path.name for path in (run.folder / "pictures").iterdir()} == {"step-00000003-inpainting.png", "step-00000006-inpainting.png"}
    newest = run.folder / "checkpoints/step-00000006"
    assert {"network.safetensors", "objective.safetensors", "optimizer.safetensors", "state.json"} == {p.name for p in newest.iterdir()}
    state = json.loads((newest / "state.json").read_text())
    assert state["kind"] == "pretrain"
    assert state["head"] == ["conv_final.2.conv.weight", "conv_final.2.conv.bias"]
    plain = medssl.NetworkSpec(**config["network"]).build()
    plain.load_state_dict(load_file(newest / "network.safetensors"))


def test_the_resolved_configuration_runs_again_to_the_same_numbers(config: Config, tmp_path: Path) -> None:
    first = medssl.pretrain(config=config, out=tmp_path / "a").folder
    again = medssl.pretrain(config=first / "config.yaml", out=tmp_path / "b").folder
    assert (first / "config.yaml").read_text() == (again / "config.yaml").read_text()
    assert (first / "metrics.jsonl").read_bytes() == (again / "metrics.jsonl").read_bytes()
    assert yaml.safe_load((first / "config.yaml").read_text())["tasks"][0]["block"] == 8


@pytest.mark.parametrize(
    "network",
    [
        medssl.NetworkSpec("SegResNet", options={"init_filters": 8}),
        partial(SegResNet, spatial_dims=3, in_channels=1, init_filters=8),
        {"_target_": "monai.networks.nets.SegResNet", "options": {"init_filters": 8}},
        lambda out_channels: SegResNet(3, init_filters=8, in_channels=1, out_channels=out_channels),
    ],
    ids=["spec", "partial", "import path", "callable"],
)
def test_forms_of_a_network_learn_alike(network: Any, store: Path, tmp_path: Path) -> None:
    run = medssl.pretrain(network, store, tasks="inpainting", size=[16, 16, 16], batch=2, steps=1, out=tmp_path / "run")
    assert run.state.metrics["inpainting"] > 0


def test_a_live_network_is_refused_with_the_reason(store: Path, tmp_path: Path) -> None:
    with pytest.raises(MedsslError, match="twice"):
        medssl.pretrain(SegResNet(), store, tasks="inpainting", size=[16, 16, 16], out=tmp_path / "run")


def test_tasks_can_be_classes(store: Path, tmp_path: Path) -> None:
    run = medssl.pretrain(medssl.NetworkSpec("SegResNet"), store, tasks=[Copy], size=[16, 16, 16], steps=1, out=tmp_path / "run")
    assert set(run.state.metrics) == {"copy", "loss"}


def test_slices_of_volumes_train_a_2d_network(config: Config, tmp_path: Path) -> None:
    changed = with_overrides(config, ["network.spatial_dims=2", "data.size=[16, 16]", "train.steps=2"])
    assert medssl.pretrain(config=changed, out=tmp_path / "run").state.step == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network.in_channels=2", "in_channels"),
        ("network.spatial_dims=2", "data.size"),
        ("network.name=SegResNett", "Did you mean 'SegResNet'"),
        ("data.store=nowhere", "medssl store"),
        ("data.size=[48, 48, 48]", "larger than every volume"),
        ("data.size=[15, 16, 16]", "16"),
        ("train.precision=bf15", "train.precision"),
        ("train.device=cuda:7", "cuda:7"),
    ],
)
def test_what_cannot_work_is_refused_before_a_folder_is_made(override: str, message: str, config: Config, tmp_path: Path) -> None:
    with pytest.raises(MedsslError, match=message):
        medssl.pretrain(config=with_overrides(config, [override]), out=tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_without_terms_or_plugins_the_error_says_what_to_do(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pretext task"):
        medssl.pretrain(config={**config, "tasks": [], "consistency": []}, out=tmp_path / "run")
    bare = Plugins.load(environ={"MEDSSL_ONLY": "none"})
    with pytest.raises(PluginError, match="pip install medssl-inpainting"):
        medssl.pretrain(config=config, out=tmp_path / "run", plugins=bare)


def test_gradients_of_small_batches_add_up_to_those_of_a_large_one(config: Config, tmp_path: Path) -> None:
    config = {**config, "consistency": []}  # SimSiam's BatchNorm looks at the batch
    large = medssl.pretrain(config=with_overrides(config, ["data.batch=4", "train.steps=3"]), out=tmp_path / "large")
    small = medssl.pretrain(config=with_overrides(config, ["train.accumulate=2", "train.steps=3"]), out=tmp_path / "small")
    for one, other in zip(read_rows(large.folder / "metrics.jsonl"), read_rows(small.folder / "metrics.jsonl"), strict=True):
        assert one["inpainting"] == pytest.approx(other["inpainting"], rel=1e-5)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)


def copy_run(bad: set[int], store: Path, out: Path, **train: Any) -> Any:
    class Bad(Copy):
        """Copy."""

    Bad.bad = frozenset(bad)
    network = medssl.NetworkSpec("SegResNet", options={"init_filters": 8})
    return medssl.pretrain(network, store, tasks=[Bad], size=[16, 16, 16], out=out, picture_every=0, **train)


def test_a_step_without_a_number_is_skipped_counted_and_written(store: Path, tmp_path: Path) -> None:
    run = copy_run({3}, store, tmp_path / "run", steps=4)  # the dry run before the first step asks once
    assert run.state.skipped == 1
    (row,) = read_rows(run.folder / "skipped.jsonl")
    assert row["step"] == 2
    assert row["terms"] == ["copy"]
    assert len(row["samples"]) == 2
    assert all(torch.isfinite(tensor).all() for tensor in network_of(run.folder).values())


def test_too_many_such_steps_end_the_run_with_term_and_step(store: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"'copy' is not finite at step 3"):
        copy_run({3, 4}, store, tmp_path / "run", steps=6, max_skipped=1)


def test_any_handler_attaches_and_plugins_bring_theirs(config: Config, tmp_path: Path) -> None:
    seen: list[int] = []

    class Count:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.iteration))

    class Plugin:
        @hookimpl
        def medssl_handlers(self, run: Any) -> list[Any]:
            assert isinstance(run.objective.network, nn.Module)
            return [Count()]

    plugins = Plugins.load({"mine": Plugin()})
    stats = StatsHandler(name="medssl.test", output_transform=lambda output: output[0]["loss"])
    medssl.pretrain(config=with_overrides(config, ["train.steps=2"]), out=tmp_path / "run", handlers=[stats], plugins=plugins)
    assert seen == [1, 2]


def test_a_further_round_starts_from_the_last(config: Config, tmp_path: Path) -> None:
    first = medssl.pretrain(config=config, out=tmp_path / "first").folder
    frozen = ["train.learning_rate=1e-12", "train.steps=1"]
    second = {key: value for key, value in with_overrides(config, frozen).items() if key != "network"}
    run = medssl.pretrain(config={**second, "from": str(first), "seed": 9}, out=tmp_path / "second").folder
    before, after = network_of(first), network_of(run)
    body = [name for name in before if not name.startswith("conv_final.2")]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in body)
    (round_one,) = find_checkpoint(run).state["lineage"]
    assert round_one["kind"] == "pretrain"
    assert round_one["step"] == 6
    other = {**second, "network": {"name": "BasicUNet", "options": {"features": [8, 8, 8, 8, 8, 8]}}, "from": str(first)}
    with pytest.raises((TransferError, MedsslError)):
        medssl.pretrain(config=other, out=tmp_path / "third")
