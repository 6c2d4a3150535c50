"""One run, killed again and again at random moments, inside checkpoint writing too, ends in the bits of the unbroken run.

A server process imports everything once and forks a child for each attempt; it kills the child after a time, or the child
kills itself at its n-th flush to the disk, which is inside the writing of a checkpoint.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from medssl.config import with_overrides
from medssl.train.checkpoint import list_checkpoints

SERVER = """
import json, os, signal, sys, time, warnings
import medssl, medssl.train.pretraining
from medssl.plugins import Plugins
Plugins.load()

def attempt(order):
    if order["flush"] is not None:
        real, calls = os.fsync, []
        def fsync(descriptor):
            calls.append(descriptor)
            if len(calls) == order["flush"]:
                os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor)
        os.fsync = fsync
    medssl.pretrain(config=order["config"], out=order["out"], resume=True)

warnings.simplefilter("error", medssl.train.checkpoint.CheckpointWarning)
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            attempt(order)
        except BaseException as error:
            sys.stderr.write(repr(error))
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    if order["seconds"] is not None:
        time.sleep(order["seconds"])
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield process
        stream(process.stdin).close()


def stream(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def attempt(server: subprocess.Popen[str], config: dict[str, Any], out: Path, **when: Any) -> int:
    """Exit code of one attempt to go on with the run; `seconds` or `flush` say when it is killed."""
    stream(server.stdin).write(json.dumps({"config": config, "out": str(out), "seconds": None, "flush": None, **when}) + "\n")
    stream(server.stdin).flush()
    return int(stream(server.stdout).readline())


def result(run: Path) -> dict[str, bytes]:
    newest = list_checkpoints(run)[-1]
    return {"metrics": (run / "metrics.jsonl").read_bytes(), **{file.name: file.read_bytes() for file in newest.iterdir()}}


@pytest.mark.parametrize("kills", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_moments_not_one_bit_differs(
    kills: int, server: subprocess.Popen[str], config: dict[str, Any], tmp_path: Path
) -> None:
    config = with_overrides(config, ["train.checkpoint_every=1", "train.steps=8", "network.options.dropout_prob=0.2"])
    assert stream(server.stdout).readline() == "ready\n"
    assert attempt(server, config, tmp_path / "whole") == 0
    whole = result(tmp_path / "whole")
    chance, done, runs = random.Random(5), Counter[str](), 0
    while done.total() < kills:
        run, code = tmp_path / f"killed-{runs}", -signal.SIGKILL
        while code == -signal.SIGKILL:
            how = "while writing" if chance.random() < 0.5 else "at a random moment"
            when = {"flush": chance.randint(2, 20)} if how == "while writing" else {"seconds": chance.uniform(0.3, 2.0)}
            code = attempt(server, config, run, **(when if done.total() < kills else {}))
            done[how] += code == -signal.SIGKILL
        assert code == 0
        assert result(run) == whole
        assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
        runs += 1
    print(f"{runs} runs, kills: {dict(done)}, damaged checkpoints: 0, differing bits: 0")
