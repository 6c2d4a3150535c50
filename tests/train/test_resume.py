"""Killed, stopped, damaged: a run goes on and ends in the same bits as one that was never disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

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
def test_a_killed_run_resumes_to_the_same_bits(where: str, config: Config, tmp_path: Path) -> None:
    file = written(config, tmp_path)
    killed = subprocess.run([sys.executable, "-c", KILLED, where, str(tmp_path / "killed"), str(file)], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    expected = "step-00000004" if where == "between two checkpoints" else "step-00000002"
    assert list_checkpoints(tmp_path / "killed")[-1].name == expected
    threads = with_overrides(config, ["data.threads=1"])
    medssl.pretrain(config=threads, out=tmp_path / "killed", resume=True)
    medssl.pretrain(config=file, out=tmp_path / "whole")
    assert result(tmp_path / "killed") == result(tmp_path / "whole")
    assert not [path for path in (tmp_path / "killed/checkpoints").iterdir() if path.name.startswith(".")]


def test_resume_on_an_empty_folder_starts_afresh(config: Config, tmp_path: Path) -> None:
    assert medssl.pretrain(config=with_overrides(config, ["train.steps=1"]), out=tmp_path / "run", resume=True).state.step == 1


def test_resuming_a_finished_run_changes_nothing(config: Config, tmp_path: Path) -> None:
    medssl.pretrain(config=config, out=tmp_path / "run")
    before = result(tmp_path / "run")
    assert medssl.pretrain(config=config, out=tmp_path / "run", resume=True).state.step == 6
    assert result(tmp_path / "run") == before


def test_a_folder_with_another_run_or_other_files_is_refused(config: Config, tmp_path: Path) -> None:
    short = with_overrides(config, ["train.steps=1"])
    medssl.pretrain(config=short, out=tmp_path / "run")
    before = result(tmp_path / "run")
    with pytest.raises(TrainingError, match="--resume"):
        medssl.pretrain(config=short, out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"seed: 3 there, 4 here"):
        medssl.pretrain(config={**short, "seed": 4}, out=tmp_path / "run", resume=True)
    assert result(tmp_path / "run") == before


def test_a_damaged_checkpoint_is_passed_over_and_named(config: Config, tmp_path: Path) -> None:
    medssl.pretrain(config=config, out=tmp_path / "run")
    before = result(tmp_path / "run")
    weights = list_checkpoints(tmp_path / "run")[-1] / "network.safetensors"
    content = bytearray(weights.read_bytes())
    content[-40] ^= 1
    weights.write_bytes(content)
    with pytest.warns(CheckpointWarning, match="network.safetensors"):
        medssl.pretrain(config=config, out=tmp_path / "run", resume=True)
    assert result(tmp_path / "run") == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_and_ends_with_the_usual_code(number: int, code: int, config: Config, tmp_path: Path) -> None:
    long = with_overrides(config, ["train.steps=100000", "train.checkpoint_every=50000"])
    command = [sys.executable, "-m", "medssl", "pretrain", str(written(long, tmp_path)), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert "--resume" in said
    assert "Traceback" not in said
    (only,) = list_checkpoints(tmp_path / "run")
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert int(only.name.removeprefix("step-")) == len(rows)
