"""Small labelled volumes made here, and one fine-tuned run for all tests that need one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medssl.run import Run
from medssl.transfer.finetune import fine_tune

NETWORK: dict[str, Any] = {
    "name": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "options": {"channels": [8, 16], "strides": [2], "num_res_units": 1},
}


def make_case(folder: Path, name: str, seed: int, affine: np.ndarray | None = None, shape: tuple[int, int, int] = (18, 14, 12)) -> Path:
    """A dark box and a bright box in noise; their labels are 1 and 2. Returns the image's path."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    for value in (1, 2):
        start = [int(rng.integers(1, side // 2 - 2)) for side in shape]
        start[0] += (value - 1) * shape[0] // 2 - (value - 1)
        labels[tuple(slice(a, a + 5) for a in start)] = value
    image = np.array([100, 40, 160])[labels] + rng.normal(0, 8, shape)
    grid = np.diag([1.0, 1.0, 1.5, 1.0]) if affine is None else affine
    for kind, array in (("images", np.rint(image).astype(np.int16)), ("labels", labels)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, grid), folder / kind / f"{name}.nii.gz")
    return folder / "images" / f"{name}.nii.gz"


@pytest.fixture(scope="session")
def case_maker() -> Callable[..., Path]:
    return make_case


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images` and `labels` of six cases."""
    folder = tmp_path_factory.mktemp("cases")
    for number in range(6):
        make_case(folder, f"case{number}", number)
    return folder


@pytest.fixture(scope="session")
def finetune_config(cases: Path) -> Callable[..., dict[str, Any]]:
    def build(steps: int = 4, **data: Any) -> dict[str, Any]:
        return {
            "network": NETWORK,
            "data": {"images": str(cases / "images"), "labels": str(cases / "labels"), "size": [8, 8, 8], "batch": 2, **data},
            "train": {"steps": steps, "learning_rate": 1e-2, "validate_every": 2, "checkpoint_every": 2},
        }

    return build


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory, finetune_config: Callable[..., dict[str, Any]]) -> Run:
    """Fine-tuned from scratch until it knows the boxes."""
    config = finetune_config(120)
    config["train"] |= {"validate_every": 60, "checkpoint_every": 60}
    return fine_tune(config=config, out=tmp_path_factory.mktemp("run") / "tuned")
