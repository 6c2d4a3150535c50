"""One run in a folder, one process at a time, rows that end where the checkpoint does."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from medssl.config import BaseOptions, load_config
from medssl.errors import ConfigError, MissingInput, TrainingError
from medssl.train.run_folder import Rows, begin_run, continue_run, cut_rows, holds_run, locked, read_rows


class Inner(BaseOptions):
    keep: int = 1
    steps: int = 10


class Config(BaseOptions):
    train: Inner = Inner()
    seed: int = 0


def test_a_second_run_is_refused_and_resuming_needs_the_same_configuration(tmp_path: Path) -> None:
    assert not holds_run(tmp_path)
    (tmp_path / "slurm-1.out").write_text("a batch system's log is no run")
    begin_run(tmp_path, Config())
    assert holds_run(tmp_path)
    assert load_config(tmp_path / "config.yaml") == {"train": {"keep": 1, "steps": 10}, "seed": 0}
    with pytest.raises(TrainingError, match=r"already holds a run.*--resume"):
        begin_run(tmp_path, Config())
    continue_run(tmp_path, Config(train=Inner(keep=3)), frozenset({"train.keep"}), frozenset(), 0)
    assert load_config(tmp_path / "config.yaml")["train"]["keep"] == 3
    with pytest.raises(ConfigError, match=r"seed: 0 there, 1 here"):
        continue_run(tmp_path, Config(seed=1), frozenset({"train.keep"}), frozenset(), 0)


def test_rows_past_the_checkpoint_and_torn_rows_are_cut(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    rows = Rows(file)
    for step in range(1, 6):
        rows.append({"step": step, "loss": step / 3})
    rows.sync()
    rows.close()
    whole = file.read_bytes()
    with file.open("ab") as stream:
        stream.write(b'{"step": 6, "lo')
    assert [row["step"] for row in read_rows(file)] == [1, 2, 3, 4, 5]
    cut_rows(file, 9)
    assert file.read_bytes() == whole
    cut_rows(file, 3)
    assert [row["step"] for row in read_rows(file)] == [1, 2, 3]
    rows.append({"step": 4, "loss": math.nan})
    assert read_rows(file)[-1] == {"step": 4, "loss": None}
    cut_rows(tmp_path / "absent.jsonl", 3)
    with pytest.raises(MissingInput, match="folder of a run"):
        read_rows(tmp_path / "absent.jsonl")


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    code = "import sys; from medssl.train.run_folder import locked\nwith locked(sys.argv[1]): print('in', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(TrainingError, match=rf"another process \(process {other.pid}\)"), locked(tmp_path):
            pass
        other.kill()
        other.wait()
    with locked(tmp_path):
        pass
