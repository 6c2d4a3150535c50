"""Tasks, consistency losses and unlabelled volumes beside the segmentation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events

from medssl.config import with_overrides
from medssl.errors import ConfigError, UsageError
from medssl.train.checkpoint import newest_good
from medssl.transfer import fine_tune
from medssl.volumes import make_store

Config = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory, case_maker: Callable[..., Path]) -> Path:
    """A store of three volumes without labels."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for number in range(3):
        case_maker(folder, f"other{number}", 100 + number)
    make_store([folder / "images"], folder / "store", modality="MR")
    return folder / "store"


@pytest.fixture
def semi(finetune_config: Config, unlabelled: Path) -> dict[str, Any]:
    config = finetune_config(4, validation=0)
    config["network"] = {**config["network"], "options": {**config["network"]["options"], "norm": "INSTANCE"}}
    return {**config, "consistency": ["agreement"], "unlabelled": {"store": str(unlabelled), "batch": 2}, "batch_dice": False}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_agreement_learns_from_unlabelled_crops_beside_labelled_ones(semi: dict[str, Any], tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Look:
        def attach(self, engine: Any) -> None:
            ask = engine.objective.ask
            engine.objective.ask = lambda crops, *rest: (seen.append(crops.labels), ask(crops, *rest))[1]
            engine.add_event_handler(Events.COMPLETED, lambda: delattr(engine.objective, "ask"))

    run = fine_tune(config=semi, out=tmp_path / "run", handlers=[Look()])
    assert all(labels.shape == (4, 1, 8, 8, 8) for labels in seen)
    assert all((labels[:2] >= 0).any() and (labels[2:] == -1).all() for labels in seen)
    written = rows(run.folder)
    assert set(written[0]) >= {"segmentation", "segmentation/answerable", "agreement", "loss"}
    assert all(row["agreement"] > 0 and row["segmentation/answerable"] == pytest.approx(0.5, abs=0.01) for row in written)
    last = newest_good(run.folder)
    assert last is not None and last.state["consistency"][0]["name"] == "agreement"


def test_it_goes_on_bit_for_bit(semi: dict[str, Any], tmp_path: Path) -> None:
    class Kill:
        def attach(self, engine: Any) -> None:
            def die() -> None:
                raise KeyboardInterrupt

            engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), die)

    semi["train"]["checkpoint_every"] = 1
    whole = fine_tune(config=semi, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fine_tune(config=semi, out=tmp_path / "parts", handlers=[Kill()])
    parts = fine_tune(config=semi, out=tmp_path / "parts", resume=True)
    assert rows(whole.folder) == rows(parts.folder)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, parts.network.state_dict()[name]), name


def test_small_batches_add_up_to_a_large_one(semi: dict[str, Any], tmp_path: Path) -> None:
    large = with_overrides(semi, ["data.batch=4", "unlabelled.batch=4", "train.steps=1"])
    small = with_overrides(semi, ["train.accumulate=2", "train.steps=1"])
    one, other = (rows(fine_tune(config=config, out=tmp_path / str(i)).folder)[0] for i, config in enumerate((large, small)))
    for name in ("segmentation", "agreement", "loss"):
        assert one[name] == pytest.approx(other[name], rel=1e-4), name
    assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)


def test_a_pretext_task_beside_the_segmentation(finetune_config: Config, tmp_path: Path) -> None:
    config = {**finetune_config(2, validation=0), "tasks": [{"name": "inpainting", "block": 2, "weight": 0.1}]}
    run = fine_tune(config=config, out=tmp_path / "run")
    assert set(rows(run.folder)[0]) >= {"segmentation", "inpainting", "loss"}
    assert not any("inpainting" in name for name in run.network.state_dict())


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"consistency": []}, UsageError, "teach nothing by themselves"),
        ({"preparation": {"other": {"kind": "raw"}}}, ConfigError, "another preparation than the labelled ones"),
        ({"tasks": ["inpaintin"]}, UsageError, "Did you mean 'inpainting'"),
    ],
)
def test_what_cannot_be_is_one_message(
    semi: dict[str, Any], change: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=says) as caught:
        fine_tune(config={**semi, **change}, out=tmp_path / "run")
    assert type(caught.value).__name__ in (error.__name__, "PluginError", "ConfigError")
    assert not (tmp_path / "run" / "checkpoints").exists()
