"""One run, killed again and again at random moments, inside checkpoint writing too, ends in the bits of the unbroken run.

Each attempt is a process; it is killed after a time, or kills itself at its n-th flush to the disk, which is inside the writing of
a checkpoint.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from forking import Forks

from medssl.config import with_overrides
from medssl.train.checkpoint import list_checkpoints

ATTEMPT = """
import json, os, signal, sys, warnings
import medssl
from medssl.train.checkpoint import CheckpointWarning

order = json.loads(sys.argv[1])
real, calls = os.fsync, []
def fsync(descriptor):
    calls.append(descriptor)
    if len(calls) == order["flush"]:
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = fsync
warnings.simplefilter("error", CheckpointWarning)
medssl.pretrain(config=order["config"], out=order["out"], resume=True)
"""


def attempt(forks: Forks, config: dict[str, Any], out: Path, flush: int | None = None, seconds: float | None = None) -> int:
    """Exit code of one attempt to go on with the run; `seconds` or `flush` say when it is killed."""
    program = forks.start(ATTEMPT, json.dumps({"config": config, "out": str(out), "flush": flush}))
    if seconds is not None:
        time.sleep(seconds)
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.kill(program.pid, signal.SIGKILL)
    return program.wait()


def result(run: Path) -> dict[str, bytes]:
    newest = list_checkpoints(run)[-1]
    return {"metrics": (run / "metrics.jsonl").read_bytes(), **{file.name: file.read_bytes() for file in newest.iterdir()}}


@pytest.mark.parametrize("kills", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_moments_not_one_bit_differs(kills: int, forks: Forks, config: dict[str, Any], tmp_path: Path) -> None:
    config = with_overrides(config, ["train.checkpoint_every=1", "train.steps=8", "network.options.dropout_prob=0.2"])
    assert attempt(forks, config, tmp_path / "whole") == 0
    whole = result(tmp_path / "whole")
    chance, done, runs = random.Random(5), Counter[str](), 0
    while done.total() < kills:
        run, code = tmp_path / f"killed-{runs}", -signal.SIGKILL
        while code == -signal.SIGKILL:
            how = "while writing" if chance.random() < 0.5 else "at a random moment"
            when = {"flush": chance.randint(2, 20)} if how == "while writing" else {"seconds": chance.uniform(0.1, 1.0)}
            code = attempt(forks, config, run, **(when if done.total() < kills else {}))
            done[how] += code == -signal.SIGKILL
        assert code == 0
        assert result(run) == whole
        assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
        runs += 1
    print(f"{runs} runs, kills: {dict(done)}, damaged checkpoints: 0, differing bits: 0")
