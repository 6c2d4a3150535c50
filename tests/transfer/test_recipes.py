"""Recipes freeze what they say, spend nothing on it, end in the same weights when resumed, and state what becomes of batch norms."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from torch import Tensor

from medssl.networks import as_spec, parts_by_depth
from medssl.train.checkpoint import newest_good
from medssl.train.config import TrainOptions
from medssl.transfer.finetune import fine_tune
from medssl.transfer.options import FinetuneTrainOptions
from medssl.transfer.recipes import DECODER_FIRST, Recipe

Config = Callable[..., dict[str, Any]]
PARTS = (("head",), ("decoder",), ("end",), ("stem",))


def recipe(preset: Any, steps: int = 100, **options: Any) -> Recipe:
    return Recipe(preset, PARTS, TrainOptions(steps=steps, **options))


def test_what_is_trained_is_a_function_of_the_step() -> None:
    def trained(preset: str, *steps: int) -> list[int]:
        return [recipe(preset).trained(step) for step in steps]

    assert trained("full", 0, 99) == [4, 4]
    assert trained("linear", 0, 50, 99) == [1, 1, 1]
    assert trained("sawtooth", 0, 19, 20, 99) == [2, 2, 4, 4]
    assert trained("gradual", 0, 12, 13, 25, 38, 50, 99) == [1, 1, 2, 3, 4, 4, 4]
    assert [recipe(preset).is_staged for preset in ("full", "linear", "sawtooth", "gradual")] == [False, True, True, True]
    for preset in ("gradual", "sawtooth"):
        assert recipe(preset, steps=1).trained(0) >= 1 and recipe(preset, steps=1).rate(0) > 0


def test_a_sawtooth_has_two_teeth() -> None:
    rates = [recipe("sawtooth", warmup=0.2).rate(step) for step in range(100)]
    first = round(100 * DECODER_FIRST)
    tops = [max(rates[:first]), max(rates[first:])]
    assert tops == [pytest.approx(1e-3), pytest.approx(1e-3)]
    assert rates[first - 1] < 0.05 * tops[0] and rates[first] < 0.1 * tops[1]


def test_deeper_parts_learn_slower_and_a_preset_says_so_in_the_configuration() -> None:
    gradual = FinetuneTrainOptions(preset="gradual")
    assert (gradual.schedule, gradual.warmup, gradual.decay_by_depth) == ("one-cycle", 0.25, 2.6)
    assert FinetuneTrainOptions(preset="gradual", decay_by_depth=2).decay_by_depth == 2
    assert (FinetuneTrainOptions().schedule, FinetuneTrainOptions().decay_by_depth) == ("cosine", 1.0)
    scales = Recipe("gradual", PARTS, gradual, 2.0).scales()
    assert scales == {"head": 1.0, "decoder": 0.5, "end": 0.25, "stem": 0.125}


def with_preset(config: dict[str, Any], preset: str, norm: str = "instance", **train: Any) -> dict[str, Any]:
    options = {**config["network"]["options"], "channels": [4, 8, 8], "strides": [2, 2], "norm": norm}
    network = {**config["network"], "out_channels": 3, "options": options}
    return {**config, "network": network, "train": {**config["train"], "preset": preset, **train}}


class Watch:
    """Notes, step by step, which parts changed and which had a gradient."""

    def __init__(self) -> None:
        self.changed: list[list[bool]] = []
        self.rates: list[dict[float, float]] = []
        self.backward: list[int] = []

    def attach(self, engine: Any) -> None:
        self.network = engine.objective.network
        self.parts = parts_by_depth(engine.objective.spec)
        engine.add_event_handler(Events.ITERATION_STARTED, self.before)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.after)

    def before(self) -> None:
        self.kept = {name: tensor.detach().clone() for name, tensor in self.network.named_parameters()}

    def after(self, engine: Any) -> None:
        now = dict(self.network.named_parameters())
        self.changed.append([any(not torch.equal(now[name], self.kept[name]) for name in part) for part in self.parts])
        self.backward.append(sum(parameter.grad is not None for parameter in now.values()))
        self.rates.append({group["scale"]: group["lr"] for group in engine.optimizer.param_groups})


@pytest.mark.parametrize("preset", ["full", "linear", "sawtooth", "gradual"])
def test_frozen_parts_stay_and_have_no_backward_pass(tmp_path: Path, finetune_config: Config, preset: str) -> None:
    watch = Watch()
    run = fine_tune(config=with_preset(finetune_config(10), preset, validate_every=3), out=tmp_path / "run", handlers=[watch])
    said = Recipe(preset, watch.parts, run.config.train)  # type: ignore[arg-type, attr-defined]
    stages = [said.trained(step) for step in range(10)]
    assert len(set(stages)) == {"full": 1, "linear": 1, "sawtooth": 2, "gradual": len(watch.parts)}[preset]
    assert [sum(parts) for parts in watch.changed] == stages
    assert all(parts == sorted(parts, reverse=True) for parts in watch.changed)
    assert watch.backward == [sum(len(part) for part in watch.parts[:count]) for count in stages]
    if preset == "gradual":
        assert sorted(watch.rates[3]) == pytest.approx([2.6**-depth for depth in reversed(range(len(watch.parts)))])
        assert all(rate == pytest.approx(scale * watch.rates[3][1.0]) for scale, rate in watch.rates[3].items())


@pytest.mark.parametrize("preset", ["gradual", "sawtooth"])
def test_a_resumed_run_is_in_the_right_stage(tmp_path: Path, finetune_config: Config, preset: str) -> None:
    config = with_preset(finetune_config(8), preset, checkpoint_every=1, keep=9)
    whole = fine_tune(config=config, out=tmp_path / "whole")
    shutil.copytree(whole.folder, tmp_path / "cut")
    for step in range(3, 9):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step-{step:08d}")
    resumed = fine_tune(config=config, out=tmp_path / "cut", resume=True)
    one, other = (newest_good(run.folder) for run in (whole, resumed))
    assert one is not None and other is not None and one.step == other.step == 8
    assert all(torch.equal(tensor, other.tensors["network"][name]) for name, tensor in one.tensors["network"].items())


@pytest.mark.parametrize("frozen_norms", ["freeze", "train"])
def test_batch_norms_of_frozen_parts_do_as_they_are_told(tmp_path: Path, finetune_config: Config, frozen_norms: str) -> None:
    config = with_preset(finetune_config(4), "linear", norm="batch", frozen_norms=frozen_norms)
    seen: list[dict[str, Tensor]] = []

    class Look:
        def attach(self, engine: Any) -> None:
            def look() -> None:
                seen.append({name: tensor.clone() for name, tensor in engine.objective.network.state_dict().items()})

            engine.add_event_handler(Events.STARTED, look)
            engine.add_event_handler(Events.ITERATION_COMPLETED, look)

    fine_tune(config=config, out=tmp_path / "run", handlers=[Look()])
    head, *body = parts_by_depth(as_spec(config["network"]))
    frozen = {name for part in body for name in part}
    statistics = {name for name in seen[0] if "running" in name and name.rpartition(".")[0] + ".weight" in frozen}
    norms = {name for name in frozen if name.rpartition(".")[0] + ".running_mean" in seen[0]}
    moved = {name for name in seen[0] if not torch.equal(seen[0][name], seen[-1][name])}
    assert statistics and norms and set(head) & moved
    assert not (frozen - norms) & moved
    assert (statistics | norms) <= moved if frozen_norms == "train" else not (statistics | norms) & moved
