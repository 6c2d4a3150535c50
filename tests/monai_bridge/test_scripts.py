"""The two complete scripts of the docs run as they stand, on made images."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.utils import set_determinism

from medssl.networks import NetworkSpec, head_tensors
from medssl.train.checkpoint import save_checkpoint
from medssl.volumes import Preparation

Run = Callable[..., list[float]]
VALUES = {name: [0.0, 100.0] for name in ("minimum", "low", "high", "span", "mean", "std")}
EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four noisy images with a bright box each, and labels."""
    for number in range(4):
        rng = np.random.default_rng(number)
        labels = np.zeros((14, 12, 18), np.uint8)
        labels[3:9, 4:9, 5:11] = 1
        for kind, array in (("images", (labels * 60 + rng.normal(100, 10, labels.shape)).astype(np.int16)), ("labels", labels)):
            (tmp_path / kind).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / kind / f"case{number}.nii.gz")
    return tmp_path


@pytest.fixture
def run() -> Iterator[Run]:
    """Runs the `main` of a script as its command line would."""

    def call(script: str, *arguments: object) -> list[float]:
        spec = importlib.util.spec_from_file_location(Path(script).stem, EXAMPLES / script)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        losses: list[float] = module.main([str(argument) for argument in arguments])
        return losses

    yield call
    set_determinism(None)


def test_pretext_script_trains_with_worker_processes(images: Path, run: Run) -> None:
    pytest.importorskip("medssl_inpainting")
    losses = run("monai_pretext.py", images / "images", "--out", images / "weights.pt", "--epochs", 2, "--size", 16, "--workers", 2)
    assert len(losses) == 4
    weights = torch.load(images / "weights.pt", weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.parametrize("spacing", [None, [2.0, 2.0, 2.0]], ids=["own grid", "resampled"])
def test_finetune_script_starts_from_a_checkpoint(
    spacing: list[float] | None, images: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = NetworkSpec("SegResNet", options={"init_filters": 8}).checked()
    state = {
        "kind": "pretrain",
        "network": spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        "head": list(head_tensors(spec)),
        "preparation": Preparation().model_dump(mode="json"),
        "spacing": spacing,
        "kinds": [{"channels": [{"name": "MR", "modality": "MR"}], "volumes": 4, "values": [VALUES]}],
    }
    save_checkpoint(images / "run", 5, {"network": spec.build(seed=0).state_dict()}, state)
    arguments = (images / "images", images / "labels", images / "run", "--out", images / "out.pt", "--epochs", 3, "--size", 8)
    losses = run("monai_finetune.py", *arguments, "--classes", 2)
    assert "100.0% of the values outside the head" in capsys.readouterr().out
    assert losses[-1] < losses[0]
    assert (images / "out.pt").is_file()
