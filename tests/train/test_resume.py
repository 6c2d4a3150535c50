"""Killed, stopped, damaged: a run goes on and ends in the same bits as one that was never disturbed."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from forking import Forks

import medssl
from medssl.config import with_overrides
from medssl.errors import ConfigError, TrainingError
from medssl.train.checkpoint import CheckpointWarning, list_checkpoints

Config = dict[str, Any]

KILLED = """
import os, signal, sys
from ignite.engine import Events
import medssl
from medssl.train import checkpoint

class Kill:
    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: os.kill(os.getpid(), signal.SIGKILL))

writes = []
def half_written(file, content, write=checkpoint._write_synced):
    writes.append(file)
    if len(writes) == 6:
        file.write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(file, content)

where, folder, file = sys.argv[1:]
if where == "while writing a checkpoint":
    checkpoint._write_synced = half_written
medssl.pretrain(config=file, out=folder, handlers=[Kill()])
"""


def written(config: Config, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "pretrain.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def result(run: Path) -> dict[str, bytes]:
    """Every byte that must be reproducible."""
    newest = list_checkpoints(run)[-1]
    return {"metrics": (run / "metrics.jsonl").read_bytes(), **{file.name: file.read_bytes() for file in newest.iterdir()}}


@pytest.mark.parametrize("where", ["between two checkpoints", "while writing a checkpoint"])
def test_a_killed_run_resumes_to_the_same_bits(where: str, forks: Forks, config: Config, unbroken: Path, tmp_path: Path) -> None:
    file = written(config, tmp_path)
    code, said = forks.run(KILLED, where, tmp_path / "killed", file)
    assert code == -signal.SIGKILL, said
    expected = "step-00000004" if where == "between two checkpoints" else "step-00000002"
    assert list_checkpoints(tmp_path / "killed")[-1].name == expected
    threads = with_overrides(config, ["data.threads=1"])
    medssl.pretrain(config=threads, out=tmp_path / "killed", resume=True)
    assert result(tmp_path / "killed") == result(unbroken)
    assert not [path for path in (tmp_path / "killed/checkpoints").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("combine", ["balanced", "turns"])
def test_however_terms_share_the_steps_a_killed_run_goes_on(combine: str, forks: Forks, config: Config, tmp_path: Path) -> None:
    config = with_overrides(config, [f"combine={combine}", "train.steps=12"])
    expected = medssl.pretrain(config=config, out=tmp_path / "whole").folder
    code, said = forks.run(KILLED, "between two checkpoints", tmp_path / "killed", written(config, tmp_path))
    assert code == -signal.SIGKILL, said
    medssl.pretrain(config=config, out=tmp_path / "killed", resume=True)
    assert result(tmp_path / "killed") == result(expected)
    rows = [json.loads(line) for line in (expected / "metrics.jsonl").read_text().splitlines()]
    alone = [key in row for key in ("inpainting", "simsiam") for row in rows]
    assert all(alone) if combine == "balanced" else sum(alone) == len(rows)


def test_resume_on_an_empty_folder_starts_afresh(config: Config, tmp_path: Path) -> None:
    assert medssl.pretrain(config=with_overrides(config, ["train.steps=1"]), out=tmp_path / "run", resume=True).state.step == 1


def test_resuming_a_finished_run_changes_nothing(config: Config, unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    assert medssl.pretrain(config=config, out=tmp_path / "run", resume=True).state.step == 6
    assert result(tmp_path / "run") == result(unbroken)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_another_run_in_the_folder_is_refused_and_untouched(config: Config, tmp_path: Path) -> None:
    short = with_overrides(config, ["train.steps=1"])
    medssl.pretrain(config=short, out=tmp_path / "run")
    before = everything(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"newest checkpoint step-00000001.*--resume"):
        medssl.pretrain(config=short, out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"seed: 3 there, 4 here"):
        medssl.pretrain(config={**short, "seed": 4}, out=tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match=r"tasks\.0\.ratio: 0\.\d+ there, 0\.3 here"):
        medssl.pretrain(config=with_overrides(short, ["tasks.0.ratio=0.3"]), out=tmp_path / "run", resume=True)
    assert everything(tmp_path / "run") == before


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["holiday.jpg", "config.yaml"])
def test_a_folder_with_other_files_is_refused_and_untouched(name: str, resume: bool, config: Config, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("precious: true")
    with pytest.raises((TrainingError, ConfigError), match="mine"):
        medssl.pretrain(config=config, out=tmp_path / "mine", resume=resume)
    assert everything(tmp_path / "mine") == {name: b"precious: true"}


def test_a_batch_system_may_have_put_its_log_into_the_folder(config: Config, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "slurm-17.out").write_text("node 3")
    run = medssl.pretrain(config=with_overrides(config, ["train.steps=1"]), out=tmp_path / "run", resume=True)
    assert run.state.step == 1


def test_a_moved_store_is_the_same_and_another_one_is_refused(config: Config, store: Path, tmp_path: Path) -> None:
    short = with_overrides(config, ["train.steps=2"])
    medssl.pretrain(config=short, out=tmp_path / "run")
    shutil.copytree(store, tmp_path / "moved")
    moved = with_overrides(short, [f"data.store={tmp_path / 'moved'}"])
    assert medssl.pretrain(config=moved, out=tmp_path / "run", resume=True).state.step == 2
    manifest = json.loads((tmp_path / "moved/store.json").read_text())
    (tmp_path / "moved/store.json").write_text(json.dumps({**manifest, "spacing": [2.0, 2.0, 2.0]}))
    with pytest.raises(ConfigError, match="not those that .* was trained on"):
        medssl.pretrain(config=moved, out=tmp_path / "run", resume=True)


def test_a_damaged_checkpoint_is_passed_over_and_named(config: Config, unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    weights = list_checkpoints(tmp_path / "run")[-1] / "network.safetensors"
    content = bytearray(weights.read_bytes())
    content[-40] ^= 1
    weights.write_bytes(content)
    with pytest.warns(CheckpointWarning, match=r"network\.safetensors is damaged.*Going back to .*step-00000004"):
        medssl.pretrain(config=config, out=tmp_path / "run", resume=True)
    assert result(tmp_path / "run") == result(unbroken)
