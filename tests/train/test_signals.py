"""SIGINT and SIGTERM: the step is finished, a checkpoint is written, the exit code is the usual one, and the run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from forking import COMMAND, Forks
from ignite.engine import Events

import medssl
from medssl.cli import main
from medssl.config import with_overrides
from medssl.train import Stopped
from medssl.train.checkpoint import list_checkpoints
from medssl.train.run_folder import read_rows
from medssl.train.stopping import SAME_KEYSTROKE, stop_on_signals

Config = dict[str, Any]


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Tests and the processes they start begin with Python's own answers: a shell starts background jobs with SIGINT ignored, nohup
    with SIGHUP."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGHUP, before[1])


class Send:
    """A handler that sends this process a signal at an event."""

    def __init__(self, number: int, event: Any, after: float = 0.0) -> None:
        self.number, self.event, self.after = number, event, after

    def attach(self, engine: Any) -> None:
        def send() -> None:
            time.sleep(self.after)
            os.kill(os.getpid(), self.number)

        engine.add_event_handler(self.event, send)


def written(config: Config, folder: Path) -> Path:
    file = folder / "pretrain.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def result(run: Path) -> dict[str, bytes]:
    newest = list_checkpoints(run)[-1]
    return {"metrics": (run / "metrics.jsonl").read_bytes(), **{file.name: file.read_bytes() for file in newest.iterdir()}}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_ends_with_the_usual_code_and_says_how_to_go_on(
    number: int, code: int, forks: Forks, config: Config, tmp_path: Path
) -> None:
    long = with_overrides(config, ["train.steps=100000", "train.checkpoint_every=50000"])
    with (tmp_path / "said").open("w") as file:
        program = forks.start(COMMAND, "pretrain", written(long, tmp_path), "--out", tmp_path / "run", said=file.fileno())
    deadline = time.monotonic() + 600
    while not (tmp_path / "run" / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(program.pid, number)
    ended, said = program.wait(), (tmp_path / "said").read_text()
    assert ended == code, said
    assert "--resume" in said
    assert "Traceback" not in said
    (only,) = list_checkpoints(tmp_path / "run")
    assert int(only.name.removeprefix("step-")) == len(read_rows(tmp_path / "run" / "metrics.jsonl"))


def test_a_stopped_run_goes_on_to_the_same_bits(config: Config, unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped, match=r"stopped at step 3, a checkpoint is written; .* --resume") as stopped:
        medssl.pretrain(config=config, out=tmp_path / "run", handlers=[Send(signal.SIGTERM, Events.ITERATION_COMPLETED(once=3))])
    assert stopped.value.code == 143
    assert list_checkpoints(tmp_path / "run")[-1].name == "step-00000003"
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", str(written(config, tmp_path)), "--out", str(tmp_path / "run"), "--resume"])
    assert not ended.value.code
    assert result(tmp_path / "run") == result(unbroken)


def test_a_run_stopped_before_its_first_step_starts_when_resumed(config: Config, tmp_path: Path) -> None:
    short = with_overrides(config, ["train.steps=2"])
    with pytest.raises(Stopped, match=r"stopped at step 0; .* --resume"):
        medssl.pretrain(config=short, out=tmp_path / "run", handlers=[Send(signal.SIGINT, Events.STARTED)])
    assert not list_checkpoints(tmp_path / "run")
    assert medssl.pretrain(config=short, out=tmp_path / "run", resume=True).state.step == 2


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN], ids=["as usual", "ignored"])
def test_a_second_ctrl_c_ends_at_once(before: Any, config: Config, tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, before)
    twice = [Send(signal.SIGINT, Events.ITERATION_STARTED(once=2), after) for after in (0.0, 1.1 * SAME_KEYSTROKE)]
    with pytest.raises(Stopped, match="second SIGINT") as stopped:
        medssl.pretrain(config=config, out=tmp_path / "run", handlers=twice)
    assert stopped.value.code == 130
    assert not list_checkpoints(tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_closed_terminal_is_asked_to_stop_and_nohup_is_not() -> None:
    with stop_on_signals() as request:
        os.kill(os.getpid(), signal.SIGHUP)
        assert request.signal == signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not request
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_keystroke_that_arrives_twice_asks_once() -> None:
    with stop_on_signals() as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == signal.SIGINT
        time.sleep(1.1 * SAME_KEYSTROKE)
        with pytest.raises(Stopped, match="at once"):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("stream", ["closed pipe", "dead device"])
def test_a_run_nobody_listens_to_trains_on_and_ends_well(stream: str, config: Config, tmp_path: Path) -> None:
    short = with_overrides(config, ["train.steps=3"])
    command = [sys.executable, "-m", "medssl", "pretrain", str(written(short, tmp_path)), "--out", str(tmp_path / "run")]
    reader, writer = os.pipe() if stream == "closed pipe" else (-1, os.open("/dev/full", os.O_WRONLY))
    if reader >= 0:
        os.close(reader)
    try:
        done = subprocess.run(command, stderr=writer, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    finally:
        os.close(writer)
    assert done.returncode == 0
    assert read_rows(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 3
    assert [path.name for path in list_checkpoints(tmp_path / "run")][-1] == "step-00000003"
