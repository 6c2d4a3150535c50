"""Runs as a user has them: pretrained and fine-tuned on folders of made NIfTI files, in a few steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.networks.nets import SegResNet

import medssl
from medssl.run import Run
from medssl.volumes import make_store

SMALL: Callable[..., Any] = partial(SegResNet, spatial_dims=3, in_channels=1, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))


def make_ct(folder: Path, count: int = 4, shape: tuple[int, int, int] = (20, 18, 16)) -> Path:
    """Bodies of water with a bone each, in air, in HU; labels of the bone beside them."""
    for number in range(count):
        rng = np.random.default_rng(number)
        labels = np.zeros(shape, np.uint8)
        labels[5:10, 5:11, 4 + number : 9 + number] = 1
        body = np.full(shape, -1000.0)
        body[2:-2, 2:-2, 2:-2] = 30
        image = np.where(labels == 1, 600.0, body) + rng.normal(0, 15, shape)
        for kind, array in (("images", image.astype(np.int16)), ("labels", labels)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / kind / f"case{number}.nii.gz")
    return folder


def make_mr(folder: Path, count: int = 3, shape: tuple[int, int, int] = (20, 18, 16)) -> Path:
    """Noisy brains without a unit."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(100 + number)
        image = np.zeros(shape)
        image[2:-2, 2:-2, 2:-2] = 400
        nib.save(nib.Nifti1Image((image + np.abs(rng.normal(0, 30, shape))).astype(np.int16), np.eye(4)), folder / f"mr{number}.nii.gz")
    return folder


@pytest.fixture(scope="session")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images` and `labels` of CT."""
    return make_ct(tmp_path_factory.mktemp("ct"))


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory, ct: Path) -> Run:
    """A pretraining on a CT store."""
    pytest.importorskip("medssl_inpainting")
    folder = tmp_path_factory.mktemp("pretrained")
    make_store([ct / "images"], folder / "store", modality="CT", workers=1)
    return medssl.pretrain(
        SMALL, folder / "store", tasks=[{"name": "inpainting", "block": 4}], size=[8, 8, 8], batch=2, steps=2, out=folder / "run"
    )


@pytest.fixture(scope="session")
def pretrained_on_both(tmp_path_factory: pytest.TempPathFactory, ct: Path) -> Run:
    """A pretraining on a store of CT and MR."""
    pytest.importorskip("medssl_inpainting")
    folder = tmp_path_factory.mktemp("both")
    make_store([ct / "images"], folder / "store", modality="CT", workers=1)
    make_store([make_mr(folder / "mr")], folder / "store", modality="MR", workers=1)
    return medssl.pretrain(
        SMALL, folder / "store", tasks=[{"name": "inpainting", "block": 4}], size=[8, 8, 8], batch=2, steps=1, out=folder / "run"
    )
