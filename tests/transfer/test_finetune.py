"""Fine-tuning: it learns, its folder says all, it stops and goes on bit for bit, handlers attach, wrong use is one message."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Events
from monai.handlers import MetricLogger

import medssl.archive
from medssl.errors import CheckpointError, ConfigError, DataError, PluginError, TrainingError, UsageError
from medssl.plugins import Plugins
from medssl.run import Run
from medssl.train import checkpoint as checkpoints
from medssl.train.checkpoint import load_checkpoint, newest_good, save_checkpoint
from medssl.train.run_folder import read_rows
from medssl.train.stopping import Stopped
from medssl.transfer import evaluate, predict
from medssl.transfer.finetune import fine_tune
from medssl.transfer.segment import Windows
from medssl.transfer.segmentation import Segmentation
from medssl.volumes import Preparation, stored_cases, training_cases

Config = Callable[..., dict[str, Any]]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_its_folder_says_how(tuned: Run) -> None:
    folder = tuned.folder
    assert tuned.best.dice > 0.7
    assert tuned.report is None
    written = rows(folder)
    assert [row["step"] for row in written] == list(range(1, 121))
    assert all(np.isfinite(row["loss"]) for row in written)
    assert [row["step"] for row in written if "dice" in row] == [60, 120]
    assert set(written[-1]) >= {"dice", "dice/1", "dice/2", "loss"}
    assert max(row.get("dice", 0) for row in written) == tuned.best.dice
    last, best = newest_good(folder), newest_good(folder, "best")
    assert last is not None
    assert best is not None
    assert (last.step, best.step) == (120, tuned.best.step)
    assert set(last.tensors) == {"network", "optimizer"}
    assert last.state["kind"] == "finetune"
    assert last.state["network"]["out_channels"] == 3
    assert last.state["head"]


def test_network_has_its_best_weights_and_is_plain_monai(tuned: Run) -> None:
    best = newest_good(tuned.folder, "best")
    assert best is not None
    assert type(tuned.network).__module__.startswith("monai.networks.nets")
    assert all(torch.equal(value, best.tensors["network"][name]) for name, value in tuned.network.state_dict().items())


def test_validation_is_what_predict_and_evaluate_say(tuned: Run, cases: Path, tmp_path: Path) -> None:
    held = {path.name for path in (cases / "images").iterdir()} - set(trained_on(tuned))
    predict(tuned.folder, [cases / "images" / name for name in held], tmp_path / "maps")
    assert evaluate(tmp_path / "maps", cases / "labels").dice == pytest.approx(tuned.best.dice, abs=1e-9)


def trained_on(run: Run) -> list[str]:
    return [case.images[0].name for case in training_cases(run.config.data)[0]]


def test_resolved_configuration_runs_again_as_it_stands(tmp_path: Path, finetune_config: Config) -> None:
    first = fine_tune(config=finetune_config(2), out=tmp_path / "first")
    again = fine_tune(config=tmp_path / "first" / "config.yaml", out=tmp_path / "again")
    assert rows(first.folder) == rows(again.folder)
    assert yaml.safe_load((first.folder / "config.yaml").read_text()) == yaml.safe_load((again.folder / "config.yaml").read_text())


def test_parts_and_configuration_mean_the_same(tmp_path: Path, finetune_config: Config) -> None:
    config = finetune_config(2)
    by_config = fine_tune(config=config, out=tmp_path / "a")
    by_parts = fine_tune(config["network"], config["data"], out=tmp_path / "b", **config["train"])
    assert rows(by_config.folder) == rows(by_parts.folder)
    assert by_config.config == by_parts.config


def test_labelled_and_overrides_reach_the_configuration(tmp_path: Path, finetune_config: Config) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(finetune_config(9)))
    run = fine_tune(config=path, overrides=["train.steps=1", "network.options.channels=[4, 8]"], labelled=1, seed=5, out=tmp_path / "run")
    assert (run.config.train.steps, run.config.data.labelled, run.config.seed) == (1, 1, 5)
    assert run.config.network is not None
    assert run.config.network.options["channels"] == [4, 8]


@pytest.mark.parametrize(("asked", "found"), [({}, None), ({"validate_precision": "bf16"}, torch.bfloat16)])
def test_validation_is_fp32_unless_told_otherwise(
    asked: dict[str, str], found: torch.dtype | None, tmp_path: Path, finetune_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medssl.train.device.native_bf16", lambda _: True)
    seen: list[torch.dtype | None] = []

    def answer(windows: Windows, inputs: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        seen.append(windows.dtype)
        return torch.zeros((1, 3, *inputs.shape[2:]))

    monkeypatch.setattr(Windows, "__call__", answer)
    config = finetune_config(2)
    config["train"] |= {"precision": "bf16", "device": "cpu", **asked}
    fine_tune(config=config, out=tmp_path / "run")
    assert seen and set(seen) == {found}


class StopAt:
    """A handler that sends SIGINT to this process at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.step), lambda: os.kill(os.getpid(), signal.SIGINT))


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, finetune_config: Config) -> None:
    config = finetune_config(6)
    config["network"] = {**config["network"], "options": {**config["network"]["options"], "dropout": 0.2}}
    config["augment"] = {"flip": [0, 1, 2]}
    whole = fine_tune(config=config, out=tmp_path / "whole")
    with pytest.raises(Stopped) as stopped:
        fine_tune(config=config, out=tmp_path / "parts", handlers=[StopAt(3)])
    assert stopped.value.code == 130
    assert [row["step"] for row in rows(tmp_path / "parts")] == [1, 2, 3]
    with pytest.raises(TrainingError, match="--resume"):
        fine_tune(config=config, out=tmp_path / "parts")
    parts = fine_tune(config=config, out=tmp_path / "parts", resume=True)
    assert rows(whole.folder) == rows(parts.folder)
    assert whole.best == parts.best
    for series in ("step", "best"):
        one, other = newest_good(whole.folder, series), newest_good(parts.folder, series)
        assert one is not None
        assert other is not None
        for name, tensor in one.tensors["network"].items():
            assert torch.equal(tensor, other.tensors["network"][name]), name


def test_best_weights_stay_where_later_ones_are_worse(tmp_path: Path, finetune_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    falling = itertools.count(1)
    monkeypatch.setattr("medssl.transfer.validation.dice_by_class", lambda _, __, classes: [1 / next(falling)] * len(classes))
    with pytest.raises(Stopped):
        fine_tune(config=finetune_config(6), out=tmp_path / "run", handlers=[StopAt(3)])
    run = fine_tune(config=finetune_config(6), out=tmp_path / "run", resume=True)
    assert run.best.step == 2
    best, last = newest_good(run.folder, "best"), newest_good(run.folder)
    assert best is not None
    assert last is not None
    assert best.step == 2
    tensors = run.network.state_dict()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in best.tensors["network"].items())
    assert not all(torch.equal(tensors[name], tensor) for name, tensor in last.tensors["network"].items())


def test_resume_of_another_configuration_is_refused(tmp_path: Path, finetune_config: Config) -> None:
    fine_tune(config=finetune_config(2), out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"weight_decay.*`pretrained: .*run`"):
        fine_tune(config=finetune_config(2), out=tmp_path / "run", resume=True, overrides=["train.weight_decay=0.5"])
    done = fine_tune(config=finetune_config(2), out=tmp_path / "run", resume=True)
    assert done.state.step == 2


def test_what_was_loaded_and_how_many_cases_there_are_is_said_first(
    tmp_path: Path, tuned: Run, finetune_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    fine_tune(config=finetune_config(1), out=tmp_path / "run", pretrained=tuned.folder)
    said = capsys.readouterr().err
    places = [said.index(words) for words in ("of the values outside the head", "4 cases of 4 patients to train on", "step 1/1")]
    assert places == sorted(places)


def test_the_pretrained_checkpoint_is_read_once(
    tmp_path: Path, tuned: Run, finetune_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that still goes on a second reading may find another checkpoint than the first, and each costs gigabytes."""
    read: list[Path] = []
    whole = checkpoints.load_checkpoint

    def counted(path: str | Path) -> checkpoints.Checkpoint:
        read.append(Path(path))
        return whole(path)

    monkeypatch.setattr(checkpoints, "load_checkpoint", counted)
    run = fine_tune(config=finetune_config(1), out=tmp_path / "run", pretrained=tuned.folder)
    assert [path for path in read if tuned.folder in path.parents] == [Path(run.report.checkpoint)]


def test_a_finished_fine_tuning_can_be_lengthened(tmp_path: Path, finetune_config: Config) -> None:
    fine_tune(config=finetune_config(2), out=tmp_path / "run")
    longer = fine_tune(
        config=finetune_config(2), out=tmp_path / "run", resume=True, overrides=["train.steps=3", "train.learning_rate=1e-3"]
    )
    assert longer.state.step == 3 and [row["step"] for row in read_rows(tmp_path / "run/metrics.jsonl")] == [1, 2, 3]


def test_skipped_steps_name_their_cases(tmp_path: Path, finetune_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Segmentation.loss
    calls = itertools.count()
    monkeypatch.setattr(Segmentation, "loss", lambda *given: whole(*given) * (float("nan") if next(calls) == 3 else 1))
    run = fine_tune(config=finetune_config(4), out=tmp_path / "run")
    (row,) = [json.loads(line) for line in (run.folder / "skipped.jsonl").read_text().splitlines()]
    cases = training_cases(run.config.data)[0]
    called = {case.volume: case.name for case in cases}
    named = {volume.sample: called[volume.volume] for volume in stored_cases(run.folder / "labelled", cases).volumes}
    assert row["cases"] == sorted({named[sample] for sample in row["samples"]})


def test_it_says_at_the_start_whose_cases_they_are(tmp_path: Path, finetune_config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    fine_tune(config=finetune_config(1), out=tmp_path / "bare")
    said = capsys.readouterr().err
    assert "4 cases of 4 patients to train on, 2 cases of 2 patients to validate with; names do not say whose cases they are" in said
    run = fine_tune(config=finetune_config(1, patient="case([0-5])"), out=tmp_path / "told")
    assert "patients are known by data.patient 'case([0-5])'" in capsys.readouterr().err
    assert run.config.data.patient == "case([0-5])"


def test_monai_handlers_attach(tmp_path: Path, finetune_config: Config) -> None:
    logger = MetricLogger(loss_transform=lambda output: output[0]["loss"])
    run = fine_tune(config=finetune_config(3), out=tmp_path / "run", handlers=[logger])
    assert [(step, loss) for step, loss in logger.loss] == [(row["step"], row["loss"]) for row in rows(run.folder)]


def test_plugins_add_handlers(tmp_path: Path, finetune_config: Config) -> None:
    import medssl

    seen: list[Any] = []

    class Provider:
        @medssl.hookimpl
        def medssl_handlers(self, run: Any) -> list[Any]:
            seen.append(run.objective.network)
            return []

    run = fine_tune(config=finetune_config(1), out=tmp_path / "run", plugins=Plugins.load({"mine": Provider()}))
    assert seen == [run.network]


def test_a_plugins_handler_that_fails_is_blamed(tmp_path: Path, finetune_config: Config) -> None:
    import medssl

    class Fails:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.fail)

        def fail(self, engine: Any) -> None:
            raise ZeroDivisionError("oh")

    class Provider:
        @medssl.hookimpl
        def medssl_handlers(self, run: medssl.run.Run) -> list[Any]:
            assert isinstance(run, Run) and run.config.network is not None
            return [Fails()]

    with pytest.raises(PluginError, match=r"plugin 'mine'.*its handler Fails: ZeroDivisionError: oh"):
        fine_tune(config=finetune_config(1), out=tmp_path / "run", plugins=Plugins.load({"mine": Provider()}))


class StopAtOnce:
    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.STARTED, lambda: os.kill(os.getpid(), signal.SIGINT))


def test_stopped_before_its_first_step_it_promises_no_checkpoint(
    tmp_path: Path, finetune_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Stopped) as stopped:
        fine_tune(config=finetune_config(2), out=tmp_path / "run", handlers=[StopAtOnce()])
    assert "stopped at step 0; go on" in str(stopped.value)
    assert newest_good(tmp_path / "run") is None


@pytest.mark.parametrize("size", [[8, 8], [8, 8, 8]])
def test_2d_and_3d_without_validation(tmp_path: Path, finetune_config: Config, cases: Path, size: list[int]) -> None:
    config = finetune_config(2, size=size, validation=0)
    config["network"] = {**config["network"], "spatial_dims": len(size)}
    run = fine_tune(config=config, out=tmp_path / "run")
    assert run.best.step == 0
    (path,) = predict(run.folder, [cases / "images" / "case0.nii.gz"], tmp_path / "maps")
    assert nib.load(path).shape == (18, 14, 12)
    if len(size) == 2:
        config["data"]["validation"] = 0.2
        assert fine_tune(config=config, out=tmp_path / "validated").best.step > 0


def nnunet(folder: Path, case_maker: Any, form: str) -> Path:
    """A dataset whose cases have two channels: the image, and the image upside down; as files or as the fourth axis."""
    entries = []
    for number in range(3):
        image = nib.load(case_maker(folder, f"case{number}", number))
        array = np.asarray(image.dataobj)
        pair = (array, 200 - array)
        (folder / "imagesTr").mkdir(exist_ok=True)
        if form == "files":
            for channel, values in enumerate(pair):
                nib.save(nib.Nifti1Image(values, image.affine), folder / "imagesTr" / f"case{number}_{channel:04d}.nii.gz")
        else:
            nib.save(nib.Nifti1Image(np.stack(pair, 3), image.affine), folder / "imagesTr" / f"case{number}.nii.gz")
            entries.append({"image": f"imagesTr/case{number}.nii.gz", "label": f"labelsTr/case{number}.nii.gz"})
    (folder / "labels").rename(folder / "labelsTr")
    names = {"0": "T1", "1": "T2"}
    content = {"channel_names": names} if form == "files" else {"modality": names, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("form", ["files", "fourth axis"])
def test_several_images_a_case_in_training_validation_and_prediction(
    tmp_path: Path, finetune_config: Config, case_maker: Any, form: str
) -> None:
    dataset = nnunet(tmp_path / "data", case_maker, form)
    config = finetune_config(2)
    config["network"] = {**config["network"], "in_channels": 2}
    config["data"] = {"dataset": str(dataset), "size": [8, 8, 8], "batch": 2}
    run = fine_tune(config=config, out=tmp_path / "run")
    assert run.best.step > 0
    last = newest_good(run.folder)
    assert last is not None
    assert (last.state["channels"], last.state["channel_names"], last.state["modalities"]) == (2, ["T1", "T2"], ["MR", "MR"])
    written = predict(run.folder, [dataset / "imagesTr"], tmp_path / "maps")
    assert [path.name for path in written] == [f"case{number}.nii.gz" for number in range(3)]
    if form == "fourth axis":
        (tmp_path / "numbered").mkdir()
        for number in range(2):
            (tmp_path / "numbered" / f"vol_{number:04d}.nii.gz").symlink_to(dataset / "imagesTr" / f"case{number}.nii.gz")
        numbered = predict(run.folder, [tmp_path / "numbered"], tmp_path / "numbered maps")
        assert [path.name for path in numbered] == ["vol_0000.nii.gz", "vol_0001.nii.gz"]
    held = training_cases(run.config.data)[1][0].label
    assert held is not None
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / held.name).symlink_to(held)
    assert evaluate(tmp_path / "maps", tmp_path / "held").dice == pytest.approx(run.best.dice, abs=1e-9)
    with pytest.raises(ConfigError, match=r"in_channels is 1; the cases have 2 channel\(s\) \(T1, T2\)"):
        fine_tune(config=config, overrides=["network.in_channels=1"], out=tmp_path / "other")
    if form == "files":
        with pytest.raises(DataError, match=r"it has 1 channel\(s\), not 2 \(T1, T2\)"):
            predict(run.folder, [dataset / "imagesTr" / "case0_0000.nii.gz"], tmp_path / "one")


def test_labelled_cases_are_read_once_and_kept_for_a_resume(
    tmp_path: Path, finetune_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    for room, reader in (("archive.labels.files", "read_nifti"), ("volumes.cases.sources", "read_nifti_channels")):
        original = getattr(medssl.archive, reader)
        monkeypatch.setattr(
            f"medssl.{room}.{reader}", lambda path, unplaced, original=original: read.append(Path(path).name) or original(path, unplaced)
        )
    config = finetune_config(6, validation=0)
    with pytest.raises(Stopped):
        fine_tune(config=config, out=tmp_path / "run", handlers=[StopAt(3)])
    assert sorted(read) == sorted(2 * [f"case{number}.nii.gz" for number in range(6)])
    fine_tune(config=config, out=tmp_path / "run", resume=True)
    assert len(read) == 12


def test_a_resume_looks_at_no_case_again(tmp_path: Path, finetune_config: Config) -> None:
    with pytest.raises(Stopped):
        fine_tune(config=finetune_config(6), out=tmp_path / "run", handlers=[StopAt(3)])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "labelled").rglob("*.b2nd")}
    assert len(before) == 12
    run = fine_tune(config=finetune_config(6), out=tmp_path / "run", resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in (run.folder / "labelled").rglob("*.b2nd")}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", "Did you mean 'steps'"),
        ("train.validate_precision=half", "must be 'auto', 'fp32' or 'bf16'"),
        ("augment.flip=[3]", "axes from 0 to 2"),
        ("data.size=[7, 8, 8]", "cannot take crops"),
        ("data.labelled=40", "data.labelled is 40"),
        ("network.in_channels=2", "1 channel"),
        ("network.name=SegResNett", "Did you mean 'SegResNet'"),
        ("network.out_channels=1", "out_channels"),
    ],
)
def test_wrong_configuration_is_one_message(tmp_path: Path, finetune_config: Config, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        fine_tune(config=finetune_config(), overrides=[override], out=tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_one_case_alone_is_trained_on_without_validation(tmp_path: Path, finetune_config: Config, case_maker: Any) -> None:
    image = case_maker(tmp_path, "only", 0)
    data = {"images": str(image.parent), "labels": str(tmp_path / "labels")}
    run = fine_tune(config=finetune_config(1, **data), out=tmp_path / "run")
    assert (run.state.step, run.best.step) == (1, 0)


def test_labels_beyond_the_outputs_and_empty_labels_are_refused(tmp_path: Path, finetune_config: Config, case_maker: Any) -> None:
    with pytest.raises(DataError, match=r"1 \(in 6 cases\), 2 \(in 6 cases\); the network has 2 outputs.*Set network.out_channels to 3"):
        fine_tune(config=finetune_config(), overrides=["network.out_channels=2"], out=tmp_path / "run")
    data = relabelled(tmp_path, case_maker, 1, empty=0)
    with pytest.raises(DataError, match="all are 0"):
        fine_tune(config=finetune_config(**data, validation=0), out=tmp_path / "run")


def relabelled(folder: Path, case_maker: Any, cases: int, **changes: int) -> dict[str, Any]:
    """Cases of which label 2 becomes another value, or all of the named cases become empty."""
    for number in range(cases):
        image = case_maker(folder, f"case{number}", number)
        path = folder / "labels" / image.name
        label = nib.load(path)
        array = np.asarray(label.dataobj)
        array = np.where(array == 2, changes.get("second", 2), array).astype(np.int32)
        nib.save(nib.Nifti1Image(array * (number not in (changes.get("empty"),)), label.affine), path)
    return {"images": str(folder / "images"), "labels": str(folder / "labels")}


@pytest.mark.parametrize("outputs", [None, 3])
def test_gaps_in_label_values_are_refused_with_a_map(tmp_path: Path, finetune_config: Config, case_maker: Any, outputs: int | None) -> None:
    config = finetune_config(**relabelled(tmp_path, case_maker, 3, second=255))
    if outputs is not None:
        config["network"] = {**config["network"], "out_channels": outputs}
    with pytest.raises(DataError, match=r"values are 0, 1 \(in 3 cases\), 255 \(in 3 cases\)") as raised:
        fine_tune(config=config, out=tmp_path / "run")
    assert "data.label_values={0: 0, 1: 1, 255: 2}" in str(raised.value)
    assert "data.classes={NAME: 255, ...}" in str(raised.value)
    assert "out_channels=256" not in str(raised.value)


def test_classes_that_these_cases_lack_may_be_stated(tmp_path: Path, finetune_config: Config, case_maker: Any) -> None:
    config = finetune_config(1, **relabelled(tmp_path, case_maker, 2, second=3))
    with pytest.raises(DataError, match=r"by data\.label_values=\{0: 0, 1: 1, 3: 2\}.*or say by network\.out_channels=4"):
        fine_tune(config=config, out=tmp_path / "run")
    config["network"] = {**config["network"], "out_channels": 4}
    with pytest.warns(UserWarning, match=r"no training case has a voxel of the label\(s\) \[2\]"):
        fine_tune(config=config, out=tmp_path / "told")


def decathlon(folder: Path, case_maker: Any, cases: int, labels: dict[str, Any], **changes: int) -> dict[str, Any]:
    relabelled(folder, case_maker, cases, **changes)
    entries = [{"image": f"images/case{number}.nii.gz", "label": f"labels/case{number}.nii.gz"} for number in range(cases)]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "training": entries}))
    return {"dataset": str(folder), "images": None, "labels": None}


def test_labels_that_dataset_json_names(tmp_path: Path, finetune_config: Config, case_maker: Any) -> None:
    data = decathlon(tmp_path / "gap", case_maker, 3, {"0": "air", "1": "dark", "63": "bright"}, second=63)
    with pytest.raises(DataError, match=r"1 'dark' \(in 3 cases\), 63 'bright' \(in 3 cases\)"):
        fine_tune(config=finetune_config(1, **data), out=tmp_path / "run")
    data = decathlon(tmp_path / "other", case_maker, 3, {"air": 0, "dark": 1}, second=2)
    with pytest.raises(DataError, match=r"dataset\.json names the labels 0 'air', 1 'dark', and label files also hold 2 \(in 3 cases\)"):
        fine_tune(config=finetune_config(1, **data), out=tmp_path / "run")
    data = decathlon(tmp_path / "lack", case_maker, 3, {"air": 0, "dark": 1, "odd": 2, "bright": 3}, second=3)
    with pytest.warns(UserWarning, match=r"label\(s\) \[2\]"):
        run = fine_tune(config=finetune_config(1, **data), out=tmp_path / "four")
    assert run.config.network is not None
    assert run.config.network.out_channels == 4


def test_the_same_classes_by_any_values_are_the_same_run(tmp_path: Path, finetune_config: Config, case_maker: Any) -> None:
    """Training and validation see classes, predictions have the values of the files, and an evaluation agrees with the validation."""
    plain = fine_tune(config=finetune_config(40, **relabelled(tmp_path / "plain", case_maker, 4)), out=tmp_path / "a")
    data = relabelled(tmp_path / "odd", case_maker, 4, second=126)
    odd = fine_tune(config=finetune_config(40, **data), overrides=["data.label_values={0: 0, 1: 1, 126: 2}"], out=tmp_path / "b")
    assert rows(plain.folder) == rows(odd.folder)
    assert plain.best == odd.best
    predict(plain.folder, [tmp_path / "plain" / "images"], tmp_path / "plain maps")
    predict(odd.folder, [tmp_path / "odd" / "images"], tmp_path / "odd maps")
    for path in (tmp_path / "plain maps").iterdir():
        expected, found = (np.asarray(nib.load(folder / path.name).dataobj) for folder in (tmp_path / "plain maps", tmp_path / "odd maps"))
        assert np.array_equal(np.array([0, 1, 126])[expected], found)
    held = {case.images[0].name for case in training_cases(odd.config.data)[1]}
    for path in (tmp_path / "odd maps").iterdir():
        if path.name not in held:
            path.unlink()
    for given in (None, odd.folder):
        assert evaluate(tmp_path / "odd maps", tmp_path / "odd" / "labels", given).dice == pytest.approx(odd.best.dice, abs=1e-9)
    again = fine_tune(config=tmp_path / "b" / "config.yaml", out=tmp_path / "c")
    assert rows(again.folder) == rows(odd.folder)


@pytest.mark.parametrize("said", [{"label_values": {1: 1, 2: 1}}, {"classes": {"both": [1, 2]}}])
def test_outputs_without_a_class_are_refused(tmp_path: Path, finetune_config: Config, said: dict[str, Any]) -> None:
    config = finetune_config(1, **said)
    with pytest.raises(DataError, match=rf"data\.{next(iter(said))} names 2 classes.*Set network.out_channels to 2"):
        fine_tune(config=config, overrides=["network.out_channels=3"], out=tmp_path / "run")
    fine_tune(config=config, overrides=["network.out_channels=2"], out=tmp_path / "run")


def test_a_run_with_outputs_without_a_class_predicts_nothing(tuned: Run, cases: Path, tmp_path: Path) -> None:
    last = newest_good(tuned.folder)
    assert last is not None
    old = save_checkpoint(tmp_path / "old", last.step, last.tensors, {**last.state, "label_values": {"0": 0, "1": 1, "2": 1}})
    with pytest.raises(CheckpointError, match=r"has 3 outputs and .* names 2 classes.*with network.out_channels=2"):
        predict(old, [cases / "images"], tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_merged_and_ignored_values_in_validation_and_evaluation(tmp_path: Path, finetune_config: Config, case_maker: Any) -> None:
    data = relabelled(tmp_path, case_maker, 3)
    for path in (tmp_path / "labels").iterdir():
        label = nib.load(path)
        array = np.asarray(label.dataobj).copy()
        array[0], array[-1] = 3, 255
        nib.save(nib.Nifti1Image(array, label.affine), path)
    run = fine_tune(config=finetune_config(40, **data, label_values={1: 1, 2: 1, 3: 0, 255: "ignore"}), out=tmp_path / "run")
    assert run.config.network is not None
    assert run.config.network.out_channels == 2
    (held,) = training_cases(run.config.data)[1]
    predict(run.folder, held.images, tmp_path / "maps")
    assert evaluate(tmp_path / "maps", tmp_path / "labels", run.folder).dice == pytest.approx(run.best.dice, abs=1e-9)
    assert held.label is not None
    found = np.asarray(nib.load(tmp_path / "maps" / held.label.name).dataobj)
    true = np.asarray(nib.load(held.label).dataobj)
    inside = true != 255
    ours, theirs = (found == 1)[inside], np.isin(true, (1, 2))[inside]
    assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) == pytest.approx(run.best.dice, abs=1e-9)


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("kind", ["constant", "nan", "torn label", "odd label"])
def test_every_case_is_looked_at_before_the_first_step(
    tmp_path: Path, finetune_config: Config, case_maker: Any, part: str, kind: str
) -> None:
    data = relabelled(tmp_path, case_maker, 3)
    bad = {"train": "case0", "val": "case2"}[part]
    image = nib.load(tmp_path / "images" / f"{bad}.nii.gz")
    shape = image.shape
    if kind in ("constant", "nan"):
        array = np.full(shape, 7 if kind == "constant" else np.nan, np.float32)
        nib.save(nib.Nifti1Image(array, image.affine), tmp_path / "images" / f"{bad}.nii.gz")
    elif kind == "torn label":
        path = tmp_path / "labels" / f"{bad}.nii.gz"
        path.write_bytes(path.read_bytes()[:-20])
    else:
        nib.save(nib.Nifti1Image(np.full(shape, -1, np.int16), image.affine), tmp_path / "labels" / f"{bad}.nii.gz")
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["case0", "case1"], "val": ["case2"]}))
    with pytest.raises(DataError, match=f"case '{bad}'"):
        fine_tune(config=finetune_config(1, **data, splits=str(tmp_path / "splits.json")), out=tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_crop_larger_than_the_only_labelled_case_is_padded(tmp_path: Path, finetune_config: Config, case_maker: Any) -> None:
    image = case_maker(tmp_path, "only", 3)
    data = {"images": str(image.parent), "labels": str(tmp_path / "labels"), "validation": 0, "size": [24, 16, 8]}
    with pytest.warns(UserWarning, match=r"larger than every volume.*the longest sides are \[18, 14, 12\]"):
        run = fine_tune(config=finetune_config(2, **data), out=tmp_path / "run")
    (path,) = predict(run.folder, [image], tmp_path / "maps")
    assert nib.load(path).shape == (18, 14, 12)


def test_validation_labels_without_a_class_are_refused(tmp_path: Path, finetune_config: Config, case_maker: Any) -> None:
    data = relabelled(tmp_path, case_maker, 3, empty=2)
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["case0", "case1"], "val": ["case2"]}))
    config = finetune_config(**data, splits=str(tmp_path / "splits.json"))
    with pytest.raises(DataError, match=r"no label of the validation cases has a labelled voxel.*data\.validation=0"):
        fine_tune(config=config, out=tmp_path / "run")


def test_empty_labels_are_refused_with_the_outputs_given_too(tmp_path: Path, finetune_config: Config, case_maker: Any) -> None:
    data = relabelled(tmp_path, case_maker, 1, empty=0)
    config = finetune_config(**data, validation=0)
    config["network"] = {**config["network"], "out_channels": 3}
    with pytest.raises(DataError, match="all are 0"):
        fine_tune(config=config, out=tmp_path / "run")


def test_cases_without_a_labelled_voxel_are_a_line(tmp_path: Path, finetune_config: Config, case_maker: Any) -> None:
    data = relabelled(tmp_path, case_maker, 3, empty=1)
    with pytest.warns(UserWarning, match="1 of 3 training cases have no labelled voxel"):
        fine_tune(config=finetune_config(1, **data, validation=0), out=tmp_path / "run")


def test_a_run_needs_a_folder_and_a_network(finetune_config: Config, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs out"):
        fine_tune(config=finetune_config())
    config = finetune_config()
    del config["network"]
    with pytest.raises(ConfigError, match="name a network"):
        fine_tune(config=config, out=tmp_path / "run")


def test_checkpoint_keeps_no_paths_or_case_names(tuned: Run, cases: Path) -> None:
    last = newest_good(tuned.folder)
    assert last is not None
    text = (last.path / "state.json").read_text()
    assert str(cases) not in text
    assert "case0" not in text
    assert Preparation.model_validate(load_checkpoint(last.path).state["preparation"]) == Preparation()
