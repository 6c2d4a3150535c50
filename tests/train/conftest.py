"""A tiny store and the configuration of a tiny pretraining on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import medssl
from medssl.volumes import make_store

SMALL = {"blocks_down": [1, 1, 1], "blocks_up": [1, 1], "init_filters": 8}
"""A SegResNet of which a step costs little; in the order in which YAML is written."""


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three made volumes of some 20 voxels a side."""
    folder = tmp_path_factory.mktemp("train")
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(3):
        array = random.normal(100, 20, (20, 22, 24)).astype(np.float32)
        array[5:15, 5:15, 5:15] += 200
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"images/p{number}.nii.gz")
    make_store([folder / "images"], folder / "store")
    return folder / "store"


@pytest.fixture(scope="session")
def unbroken(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `config` that nothing disturbed; read it only."""
    return medssl.pretrain(config=six_steps(store), out=tmp_path_factory.mktemp("unbroken") / "run").folder


@pytest.fixture
def config(store: Path) -> dict[str, Any]:
    """Six steps of two terms, a checkpoint every other step."""
    return six_steps(store)


def six_steps(store: Path) -> dict[str, Any]:
    return {
        "network": {"name": "SegResNet", "spatial_dims": 3, "in_channels": 1, "options": SMALL},
        "data": {"store": str(store), "size": [16, 16, 16], "batch": 2},
        "tasks": [{"name": "inpainting"}],
        "consistency": [{"name": "simsiam", "weight": 0.1}],
        "train": {"steps": 6, "checkpoint_every": 2, "picture_every": 0},
        "seed": 3,
    }
