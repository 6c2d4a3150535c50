"""Each probe trains from a configuration and resumes bit for bit."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import medssl
from medssl.transfer import load_pretrained
from medssl.volumes import make_store
from probes.scenarios import SCENARIOS, VIT, Scenario, plugins, steps_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three made volumes of some 20 voxels a side."""
    folder = tmp_path_factory.mktemp("probes")
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(3):
        array = random.normal(100, 20, (20, 22, 24)).astype(np.float32)
        array[5:15, 5:15, 5:15] += 200
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"images/p{number}.nii.gz")
    make_store([folder / "images"], folder / "store")
    return folder / "store"


def pretrain(scenario: Scenario, store: Path, out: Path, **options: Any) -> Path:
    config = {
        "network": {**scenario.network, "spatial_dims": 2, "in_channels": 1},
        "data": {"store": str(store), "size": [16, 16], "batch": 4, "crops_per_volume": scenario.per_volume},
        "tasks": list(scenario.tasks),
        "consistency": list(scenario.consistency),
        "train": {"steps": 4, "checkpoint_every": 2, "picture_every": 4, "accumulate": 2 if scenario.divides else 1, "device": "cpu"},
    }
    return medssl.pretrain(config=config, out=out, plugins=plugins(), **options).folder


def result(run: Path) -> dict[str, bytes]:
    """Every byte that must be reproducible."""
    newest = run / "checkpoints/step-00000004"
    return {"metrics": (run / "metrics.jsonl").read_bytes(), **{file.name: file.read_bytes() for file in newest.iterdir()}}


@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if scenario.from_store])
def test_a_run_resumes_bit_for_bit(name: str, store: Path, tmp_path: Path) -> None:
    run = pretrain(SCENARIOS[name], store, tmp_path / "run")
    expected = result(run)
    shutil.rmtree(run / "checkpoints/step-00000004")
    assert result(pretrain(SCENARIOS[name], store, run, resume=True)) == expected


@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if not scenario.from_store])
def test_steps_on_other_crops_resume_bit_for_bit(name: str) -> None:
    scenario = SCENARIOS[name]
    unbroken = steps_of(scenario, scenario.objective(), 0, 4)
    halfway = steps_of(scenario, scenario.objective(), 0, 2)
    fresh = scenario.objective()
    fresh.load_state_dict(deepcopy(halfway.state))
    resumed = steps_of(scenario, fresh, 2, 4, deepcopy(halfway.optimizer))
    assert resumed.steps == unbroken.steps[2:]
    assert all(torch.equal(value, resumed.state[key]) for key, value in unbroken.state.items())


def test_the_checkpoint_of_a_task_that_changes_the_channels_loads(store: Path, tmp_path: Path) -> None:
    run = pretrain(SCENARIOS["windows"], store, tmp_path / "run")
    network, report = load_pretrained(None, run, out_channels=3)
    assert report.coverage == 1
    assert network(torch.zeros(1, 2, 16, 16)).shape == (1, 3, 16, 16)


def test_a_task_that_leaves_tokens_out_takes_a_network_with_tokens(store: Path, tmp_path: Path) -> None:
    scenario = SCENARIOS["masked autoencoder"]
    with pytest.raises(medssl.errors.NetworkError, match="Take ViT or UNETR"):
        pretrain(Scenario(scenario.tasks), store, tmp_path / "run")
    assert scenario.network is VIT


def test_crops_of_one_volume_must_come_together(store: Path, tmp_path: Path) -> None:
    with pytest.raises(medssl.errors.ConfigError, match=r"'overlap' compares crops of one volume.*crops_per_volume"):
        pretrain(Scenario(["overlap"]), store, tmp_path / "run", overrides=["data.batch=2"])
