"""A Python file as a plugin of one command: `medssl --plugin task.py ...`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medssl.errors import MissingInput, PluginError
from medssl.plugins import PLUGIN_FILES, Plugins

TASK = '''
from medssl.augment import transformed
from medssl.contracts import DenseHead, PretextBatch, PretextTask
from medssl.learn.ops import masked_mean
from monai.transforms import RandGibbsNoise


class Unringing(PretextTask):
    """Take Gibbs ringing away."""

    name, answer, citation = "unringing", "values", "Somebody, Unringing, 2026"

    def head(self):
        return DenseHead(channels=self.network.channels)

    def make(self, crops, draw):
        return PretextBatch(transformed(crops.images, RandGibbsNoise(prob=1.0), draw), crops.images)

    def loss(self, prediction, batch):
        return masked_mean((prediction - batch.target).square())
'''
HOOK = """

from medssl import hookimpl


@hookimpl
def medssl_pretext_tasks():
    return [Unringing]
"""


def loaded(*files: Path) -> Plugins:
    return Plugins.load(environ={PLUGIN_FILES: os.pathsep.join(map(str, files))})


@pytest.mark.parametrize("further", ["", HOOK], ids=["classes", "hooks"])
def test_a_file_brings_its_tasks(further: str, tmp_path: Path) -> None:
    file = tmp_path / f"task_{len(further)}.py"
    file.write_text(TASK + further)
    found = loaded(file).tasks()["unringing"]
    assert found is loaded(file).tasks()["unringing"]
    assert "unringing" not in Plugins.load(environ={}).tasks()


def test_what_is_no_plugin_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="there is no Python file"):
        loaded(tmp_path / "none.py")
    for name, text, message in (
        ("empty_plugin", "x = 1", "defines no PretextTask, no ConsistencyLoss and no hook"),
        ("broken_plugin", "import no_such_thing", "cannot be loaded: ModuleNotFoundError"),
        ("json", TASK, "has the name of another module"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(PluginError, match=message):
            loaded(tmp_path / f"{name}.py")


def test_the_command_line_trains_on_tasks_of_files_of_the_command_and_of_the_environment(tmp_path: Path) -> None:
    import numpy as np

    from medssl.volumes import Incoming, write_store

    values = np.random.default_rng(0).normal(0, 100, (2, 16, 16, 16)).astype(np.float32)
    write_store([Incoming(f"v{n}", f"p{n}", f"s{n}", "MR", lambda n=n: (values[n], np.eye(4))) for n in range(2)], tmp_path / "store")
    (tmp_path / "ringing.py").write_text(TASK)
    (tmp_path / "second.py").write_text(TASK.replace("unringing", "second").replace("Unringing", "Second"))
    network = {"name": "SegResNet", "options": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}}
    config = {
        "network": network,
        "data": {"store": "store", "size": [8, 8, 8], "batch": 1},
        "tasks": ["unringing", "second"],
        "train": {"steps": 1, "device": "cpu"},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "medssl", "--plugin", "ringing.py", "pretrain", "run.yaml", "--out", "run"]
    known = {**os.environ, PLUGIN_FILES: os.pathsep.join(("second.py", str(tmp_path / "ringing.py")))}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=known, check=False)
    assert done.returncode == 0, done.stderr
    measured = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "unringing" in measured
    assert "second" in measured
