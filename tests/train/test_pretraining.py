"""Pretraining: the run folder, the forms of its arguments, what is refused before the first step, and what a step survives."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
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
from torch.utils.data import DataLoader

import medssl
from medssl import hookimpl
from medssl.config import BaseOptions, with_overrides
from medssl.contracts import Crops, DenseHead, Draw, PretextBatch, PretextTask
from medssl.errors import ConfigError, MedsslError, PluginError, StoreError, TrainingError, TransferError, UsageError
from medssl.plugins import Plugins
from medssl.testing.fixtures import make_info
from medssl.train import device, find_checkpoint
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
        self.asked += self.training and torch.is_grad_enabled()  # what is looked at beside the steps has no gradient
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


def test_the_resolved_configuration_runs_again_to_the_same_numbers(unbroken: Path, tmp_path: Path) -> None:
    first, again = unbroken, medssl.pretrain(config=unbroken / "config.yaml", out=tmp_path / "again").folder
    assert (first / "config.yaml").read_text() == (again / "config.yaml").read_text()
    assert (first / "metrics.jsonl").read_bytes() == (again / "metrics.jsonl").read_bytes()
    assert yaml.safe_load((first / "config.yaml").read_text())["tasks"][0]["block"] == 8


SMALL = {"size": [16, 16, 16], "batch": 2, "steps": 1, "picture_every": 0}
SPEC = medssl.NetworkSpec("SegResNet", options={"init_filters": 8})


@pytest.fixture(scope="module")
def usual_loss(store: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """The first loss of the network and task below, named as in a configuration."""
    out = tmp_path_factory.mktemp("usual") / "run"
    return float(medssl.pretrain(SPEC, store, tasks="inpainting", out=out, **SMALL).state.metrics["inpainting"])


@pytest.mark.parametrize(
    "network",
    [
        partial(SegResNet, spatial_dims=3, in_channels=1),
        "SegResNet",
        {"name": "SegResNet", "options": {"init_filters": 8}},
        {"_target_": "monai.networks.nets.SegResNet", "options": {"init_filters": 8}},
        lambda out_channels: SegResNet(3, init_filters=8, in_channels=1, out_channels=out_channels),
    ],
    ids=["partial", "name", "mapping", "import path", "callable"],
)
def test_all_forms_of_a_network_learn_alike(network: Any, usual_loss: float, store: Path, tmp_path: Path) -> None:
    run = medssl.pretrain(network, store, tasks="inpainting", out=tmp_path / "run", **SMALL)
    assert run.state.metrics["inpainting"] == usual_loss


@pytest.mark.parametrize(
    ("tasks", "weight"),
    [
        (["inpainting"], 1.0),
        ([{"name": "inpainting", "weight": 0.5}], 0.5),
        ([Plugins.load().task("inpainting")], 1.0),
        ([(Plugins.load().task("inpainting"), 0.25)], 0.25),
    ],
    ids=["name", "mapping", "class", "class and weight"],
)
def test_all_forms_of_a_task_learn_alike(tasks: Any, weight: float, usual_loss: float, store: Path, tmp_path: Path) -> None:
    run = medssl.pretrain(SPEC, store, tasks=tasks, out=tmp_path / "run", **SMALL)
    assert run.state.metrics == pytest.approx({"inpainting": usual_loss, "loss": weight * usual_loss})


@pytest.mark.parametrize(("data", "named"), [([], "an empty list"), (DataLoader([{"image": 1}]), "a DataLoader"), (["a", "b"], "a list")])
def test_data_that_is_no_store_and_no_dataset_is_named(data: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"^data is {named}\. Give a store"):
        medssl.pretrain("UNet", data, ["inpainting"], size=[16, 16, 16], out=tmp_path / "run")


def test_a_configuration_may_name_its_tasks_alone(config: Config, tmp_path: Path) -> None:
    named = with_overrides({**config, "tasks": ["inpainting"]}, ["train.steps=1"])
    assert "inpainting" in medssl.pretrain(config=named, out=tmp_path / "run").state.metrics


@pytest.mark.parametrize("task", [Copy, Copy(Copy.Options(), make_info())], ids=["class", "object"])
def test_tasks_can_be_ones_that_no_plugin_brings(task: Any, store: Path, tmp_path: Path) -> None:
    run = medssl.pretrain(SPEC, store, tasks=[task], out=tmp_path / "run", **SMALL)
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
        ("network.options.init_filterz=8", "Did you mean 'init_filters'"),
        ("data.store=nowhere", "medssl store"),
        ("data.size=[15, 16, 16]", "16"),
        ("data.size=[2, 2, 2]", "size|sides"),
        ("tasks.0.ratioo=0.5", "Did you mean 'ratio'"),
        ("train.stepz=3", "Did you mean 'steps'"),
        ("train.precision=bf15", "train.precision"),
        ("train.device=cuda:7", "cuda:7"),
    ],
)
def test_what_cannot_work_is_refused_before_a_folder_is_made(override: str, message: str, config: Config, tmp_path: Path) -> None:
    with pytest.raises(MedsslError, match=message):
        medssl.pretrain(config=with_overrides(config, [override]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bf16_is_refused_where_it_is_not_native(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "native_bf16", lambda _: False)
    with pytest.raises(ConfigError, match="precision: auto"):
        medssl.pretrain(config=with_overrides(config, ["train.precision=bf16", "train.device=cpu"]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Blurred(Copy):
    """Copy, with a picture that cannot be drawn."""

    name = "blurred"

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        raise ValueError("out of ink")


def test_a_task_whose_picture_fails_is_refused_before_the_first_step(store: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"picture of task 'blurred'.*out of ink"):
        medssl.pretrain(SPEC, store, tasks=[Blurred], out=tmp_path / "run", **{**SMALL, "picture_every": 1})
    assert not (tmp_path / "run").exists()


def test_without_terms_or_plugins_the_error_says_what_to_do(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pretext task"):
        medssl.pretrain(config={**config, "tasks": [], "consistency": []}, out=tmp_path / "run")
    bare = Plugins.load(environ={"MEDSSL_ONLY": "none"})
    with pytest.raises(PluginError, match="pip install medssl-inpainting"):
        medssl.pretrain(config=config, out=tmp_path / "run", plugins=bare)


@pytest.mark.usefixtures("bf16_units")
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
    run = copy_run({4}, store, tmp_path / "run", steps=4)  # before the first step the loss is tried at both ends of the run
    assert run.state.skipped == 1
    (row,) = read_rows(run.folder / "skipped.jsonl")
    assert row["step"] == 2
    assert row["terms"] == ["copy"]
    assert len(row["samples"]) == 2
    assert all(torch.isfinite(tensor).all() for tensor in network_of(run.folder).values())


def test_too_many_such_steps_end_the_run_with_term_and_step(store: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"'copy' is not finite at step 3"):
        copy_run({4, 5}, store, tmp_path / "run", steps=6, max_skipped=1)


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


class Failing:
    """A handler that fails where it is told to."""

    def __init__(self, where: str) -> None:
        self.where = where

    def attach(self, engine: Any) -> None:
        if self.where == "attaching":
            raise ValueError("no server")
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.completed)

    def completed(self, engine: Any) -> None:
        raise ValueError("no server")


@pytest.mark.parametrize("where", ["medssl_handlers", "attaching", "handler Failing"])
def test_a_plugin_whose_handler_fails_is_named(where: str, config: Config, tmp_path: Path) -> None:
    class Plugin:
        @hookimpl
        def medssl_handlers(self, run: Any) -> list[Any]:
            if where == "medssl_handlers":
                raise ValueError("no server")
            return [Failing(where)]

    with pytest.raises(PluginError, match=rf"plugin 'mine' .*{where}.*no server"):
        medssl.pretrain(config=config, out=tmp_path / "run", plugins=Plugins.load({"mine": Plugin()}))


@pytest.fixture(scope="module")
def first_round(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of inpainting."""
    out = tmp_path_factory.mktemp("first") / "run"
    return medssl.pretrain(SPEC, store, tasks="inpainting", out=out, **{**SMALL, "steps": 6, "learning_rate": 0.01}).folder


def test_a_further_round_starts_from_the_last(first_round: Path, store: Path, tmp_path: Path) -> None:
    still = {**SMALL, "learning_rate": 1e-12}
    run = medssl.pretrain(data=store, tasks="inpainting", from_=first_round, seed=9, out=tmp_path / "second", **still).folder
    before, after = network_of(first_round), network_of(run)
    body = [name for name in before if not name.startswith("conv_final.2")]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in body)
    fresh = SPEC.build(seed=9).state_dict()
    assert not all(torch.allclose(fresh[name], after[name], atol=1e-6) for name in body)
    (round_one,) = find_checkpoint(run).state["lineage"]
    assert (round_one["kind"], round_one["step"]) == ("pretrain", 6)
    assert round_one["network"] == find_checkpoint(first_round).state["files"]["network.safetensors"]
    third = medssl.pretrain(data=store, tasks="inpainting", from_=run, out=tmp_path / "third", **still).folder
    assert [earlier["step"] for earlier in find_checkpoint(third).state["lineage"]] == [6, 1]


def test_a_further_round_says_which_part_begins_anew(first_round: Path, store: Path, tmp_path: Path) -> None:
    longer = {"name": "SegResNet", "options": {"init_filters": 8, "blocks_up": [1, 1, 2]}}
    with pytest.warns(UserWarning, match=r"9\d\.\d% of the network.*begin anew: up_layers\.2\.1"):
        medssl.pretrain(longer, store, tasks="inpainting", from_=first_round, out=tmp_path / "run", **SMALL)


@pytest.mark.parametrize(
    "network",
    [
        {"name": "UNet", "options": {"channels": [8, 16], "strides": [2]}},
        {"name": "SegResNet", "options": {"init_filters": 16}},
        {"name": "SegResNet", "options": {"init_filters": 8, "blocks_down": [1, 2, 2, 6]}},
    ],
    ids=["another family", "wider", "deeper"],
)
def test_a_further_round_of_another_network_is_refused(network: Any, first_round: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"leave `network:` out"):
        medssl.pretrain(network, store, tasks="inpainting", from_=first_round, out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_further_round_on_images_prepared_otherwise_is_refused(first_round: Path, store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "other")
    manifest = json.loads((tmp_path / "other/store.json").read_text())
    manifest["preparation"]["other"]["kind"] = "window"
    (tmp_path / "other/store.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="same preparation"):
        medssl.pretrain(data=tmp_path / "other", tasks="inpainting", from_=first_round, out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_says_what_to_cite(unbroken: Path) -> None:
    cited = find_checkpoint(unbroken).state["citations"]
    assert set(cited) == {"inpainting", "simsiam"}
    assert "Context encoders" in cited["inpainting"]


def test_everything_of_a_run_is_its_owners_alone(config: Config, tmp_path: Path) -> None:
    config = with_overrides(config, ["train.steps=2", "train.picture_every=1"])
    before = os.umask(0o000)
    try:
        run = medssl.pretrain(config=config, out=tmp_path / "run")
    finally:
        os.umask(before)
    assert {path.name for path in run.folder.iterdir()} >= {"pictures", "checkpoints", "metrics.jsonl", "timings.jsonl", "config.yaml"}
    for path in (run.folder, *run.folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_run_whose_folder_is_renamed_ends_with_an_error_and_goes_on_under_the_new_name(
    unbroken: Path, config: Config, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"

    class Rename:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.ITERATION_STARTED(once=4), lambda: old.rename(new))

    with pytest.raises(TrainingError, match=rf"{old} was renamed or removed and is now {new} while the run was going on.*--resume"):
        medssl.pretrain(config=config, out=old, handlers=[Rename()])
    assert not old.exists()
    run = medssl.pretrain(config=config, out=new, resume=True)
    assert (new / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    assert all(torch.equal(tensor, network_of(run.folder)[name]) for name, tensor in network_of(unbroken).items())


def test_a_store_that_was_not_finished_is_trained_on_only_when_told(config: Config, store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    (tmp_path / "store/unfinished/1.json").write_text('{"v0123": ""}')
    config = with_overrides(config, [f"data.store={tmp_path / 'store'}", "train.steps=1"])
    with pytest.raises(StoreError, match=r"1 of its volumes are not there yet.*data\.unfinished=true trains on the 3"):
        medssl.pretrain(config=config, out=tmp_path / "run")
    assert medssl.pretrain(config=with_overrides(config, ["data.unfinished=true"]), out=tmp_path / "run").state.step == 1
    (tmp_path / "store/unfinished/1.json").write_text("[]")
    with pytest.raises(StoreError, match=r"1\.json is damaged"):
        medssl.pretrain(config=config, out=tmp_path / "other")
