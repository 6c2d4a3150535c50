"""What may be changed when a run goes on, what is said of it, and which checkpoint it goes on from."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import medssl
from medssl.config import BaseOptions, with_overrides
from medssl.contracts import ConsistencyLoss, NetworkInfo, Views
from medssl.errors import ConfigError, PluginError, TrainingError
from medssl.run import Run
from medssl.train.checkpoint import before_skips, find_checkpoint, list_checkpoints, load_checkpoint, newest_good, save_checkpoint
from medssl.train.loop import StepEngine
from medssl.train.resuming import ResumeWarning
from medssl.train.run_folder import read_rows
from medssl.train.training import _say_trivial

Config = dict[str, Any]
Diverge = Callable[[int], None]


@pytest.fixture
def diverge(monkeypatch: pytest.MonkeyPatch) -> Diverge:
    """From that step on (counted from 1) no loss is finite."""

    def begin(first: int) -> None:
        def gradients(self: StepEngine, step: int, batches: Any) -> Any:
            return ({"loss": math.nan}, ("loss",)) if step + 1 >= first else whole(self, step, batches)

        whole = StepEngine._gradients
        monkeypatch.setattr(StepEngine, "_gradients", gradients)

    return begin


def named(run: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run)]


def test_a_run_that_diverged_goes_on_with_what_its_message_says(
    config: Config, diverge: Diverge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_overrides(config, ["train.checkpoint_every=1", "train.max_skipped=3", "train.steps=9"])
    with monkeypatch.context():
        diverge(3)
        with pytest.raises(TrainingError, match=r"Lower train\.learning_rate.*--resume \(in Python resume=True\) from the checkpoint"):
            medssl.pretrain(config=config, out=tmp_path / "run")
    assert named(tmp_path / "run") == ["step-00000002", "step-00000004", "step-00000005"]
    monkeypatch.undo()
    lower = with_overrides(config, ["train.learning_rate=1e-4"])
    capsys.readouterr()
    run = medssl.pretrain(config=lower, out=tmp_path / "run", resume=True)
    assert "from step 2 on train.learning_rate is 0.0001 instead of 0.001" in capsys.readouterr().err
    rows = read_rows(tmp_path / "run/metrics.jsonl")
    assert run.state.step == 9 and run.state.skipped == 0 and [row["step"] for row in rows] == list(range(1, 10))
    assert rows[1]["learning_rate"] > 5e-4 > 1e-4 > rows[2]["learning_rate"]
    changed = find_checkpoint(tmp_path / "run").state["changed"]
    assert changed == [{"step": 2, "key": "train.learning_rate", "before": 0.001, "now": 0.0001}]


def test_checkpoints_behind_skipped_steps_do_not_replace_the_last_one_before(tmp_path: Path) -> None:
    for step, skipping in ((1, 0), (2, 0), (3, 1), (4, 2), (5, 3)):
        save_checkpoint(tmp_path, step, {"network": {"a": torch.zeros(1)}}, {"skipping": skipping}, keep=2)
    assert named(tmp_path) == ["step-00000002", "step-00000004", "step-00000005"]
    newest = newest_good(tmp_path)
    assert newest is not None and newest.step == 5 and before_skips(tmp_path, newest).step == 2
    save_checkpoint(tmp_path, 6, {"network": {"a": torch.zeros(1)}}, {"skipping": 0}, keep=2)
    assert named(tmp_path) == ["step-00000005", "step-00000006"]


def test_a_run_whose_steps_were_all_skipped_does_not_end_well(config: Config, diverge: Diverge, tmp_path: Path) -> None:
    diverge(1)
    for resume in (False, True):
        with pytest.raises(TrainingError, match="none of 6 steps was taken"):
            medssl.pretrain(config=config, out=tmp_path / "run", resume=resume)


def test_a_finished_run_can_be_lengthened_and_not_shortened(config: Config, unbroken: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(unbroken, tmp_path / "run")
    longer = medssl.pretrain(config=with_overrides(config, ["train.steps=8"]), out=tmp_path / "run", resume=True)
    assert longer.state.step == 8
    with pytest.raises(ConfigError, match=r"train\.steps is 6, and 8 steps are done"):
        medssl.pretrain(config=config, out=tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match=r"in which .*train\.learning_rate.* may be changed.*`from: .*run`"):
        medssl.pretrain(config=with_overrides(config, ["train.steps=8", "seed=4"]), out=tmp_path / "run", resume=True)


@pytest.mark.parametrize(("what", "said"), [("threads", r"compute threads \(OMP_NUM_THREADS\) \d+ there, 77 here"), ("torch", "9.9 here")])
def test_other_threads_or_another_torch_are_warned_of(
    what: str, said: str, config: Config, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(unbroken, tmp_path / "run")
    recorded = load_checkpoint(list_checkpoints(unbroken)[-1]).state["compute"]
    assert recorded["torch"] == torch.__version__ and recorded["threads"] >= 1 and recorded["device"] == "cpu"
    if what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
        monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    else:
        monkeypatch.setattr(torch, "__version__", "9.9")
    with pytest.warns(ResumeWarning, match=said):
        medssl.pretrain(config=config, out=tmp_path / "run", resume=True)


class Growing(ConsistencyLoss):
    """Keeps every embedding it saw."""

    name: ClassVar[str] = "growing"
    needs = frozenset({"embeddings"})

    class Options(BaseOptions):
        """None."""

    def __init__(self, options: Growing.Options, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.register_buffer("kept", torch.zeros(0, network.embedding_width or 1))

    def forward(self, views: Views) -> Tensor:
        return (views.embeddings[0] - views.embeddings[1]).square().mean(1)

    def commit(self, views: Views) -> None:
        self.kept = torch.cat([self.kept, views.embeddings[0]])


def test_a_queue_that_grows_is_refused_at_the_first_step(config: Config, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"'kept' of 'growing' \(.*\) had shape \[0, \d+\] .* has shape \[2, \d+\]"):
        medssl.pretrain(config=config, consistency=[Growing], out=tmp_path / "run")
    assert named(tmp_path / "run") == []


def test_what_is_to_beat_is_a_loss_and_measures_stand_beside_it() -> None:
    said: list[str] = []

    class Display:
        def say(self, text: str) -> None:
            said.append(text)

    display: Any = Display()
    _say_trivial({"where": 3.258, "where/accuracy": 0.0385, "fill": 0.2}, display)
    assert said == ["to beat, the loss of the answer that needs no learning: where 3.258 (accuracy 0.0385), fill 0.2"]


def test_a_run_is_shown_in_a_line(config: Config, unbroken: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(unbroken, tmp_path / "run")
    run = medssl.pretrain(config=config, out=tmp_path / "run", resume=True)
    assert isinstance(run, Run) and len(repr(run)) < 80 + len(str(tmp_path)) and "step 6 of" in repr(run)
