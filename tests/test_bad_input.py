"""Bad input through the command line: each ends in one message that says what was wrong and what to do, and no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from medssl.cli import main
from medssl.config import with_overrides

Refusal = Callable[..., str]

PRETRAIN: dict[str, Any] = {
    "network": {"name": "SegResNet", "spatial_dims": 3, "in_channels": 1, "options": {"init_filters": 8}},
    "data": {"store": "store", "size": [16, 16, 16], "batch": 2},
    "tasks": [{"name": "inpainting"}],
    "train": {"steps": 2},
}
FINETUNE: dict[str, Any] = {
    "network": {**PRETRAIN["network"], "out_channels": 2},
    "data": {"images": "images", "labels": "labels", "size": [16, 16, 16], "batch": 2},
    "train": {"steps": 2},
}


def save(path: Path, array: np.ndarray[Any, Any], spacing: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([spacing, spacing, spacing, 1.0])), path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images with labels, and a store of them, where commands run."""
    from medssl.volumes import make_store

    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for number in range(3):
        array = random.normal(100, 10, (24, 24, 24)).astype(np.float32)
        array[6:18, 6:18, 6:18] += 100
        save(tmp_path / f"images/p{number}.nii.gz", array)
        save(tmp_path / f"labels/p{number}.nii.gz", (array > 150).astype(np.uint8))
    make_store([tmp_path / "images"], tmp_path / "store")
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Run a command that must fail; its one message."""

    def run(*words: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        assert ended.value.code in {1, 2}, captured.err
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert "unexpected" not in captured.err, captured.err
        assert captured.err.count("medssl: error:") == 1, captured.err
        return " ".join(captured.err.split())

    return run


def config(folder: Path, content: dict[str, Any], *overrides: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(with_overrides(content, overrides)))
    return path


@pytest.mark.parametrize("command", [("index",), ("store",)])
def test_an_empty_folder(command: tuple[str], folder: Path, refused: Refusal) -> None:
    (folder / "nothing").mkdir()
    option = {"index": "--index", "store": "--out"}[command[0]]
    assert "nothing" in refused(*command, folder / "nothing", option, folder / "out")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.stepz=3", "Did you mean 'steps'"),
        ("datum=3", "Did you mean 'data'"),
        ("train.steps=many", "train.steps"),
        ("data.batch=0", "data.batch"),
        ("tasks.0.name=inpaintin", "Did you mean 'inpainting'"),
        ("tasks.0.ratioo=0.5", "Did you mean 'ratio'"),
        ("tasks.0.ratio=7", "ratio"),
        ("network.name=SegResNett", "Did you mean 'SegResNet'"),
        ("network.options.init_filterz=8", "init_filters"),
        ("data.size=[15, 16, 16]", "15"),
        ("data.size=[16, 16, 16, 16]", "size"),
        ("data.store=nowhere", "medssl store"),
        ("tasks=[]", "task"),
    ],
)
def test_a_pretraining_that_cannot_start(override: str, expected: str, folder: Path, refused: Refusal) -> None:
    message = refused("pretrain", config(folder, PRETRAIN), "--out", folder / "run", override)
    assert expected in message


def test_a_crop_that_no_level_of_the_network_can_see(folder: Path, refused: Refusal) -> None:
    """SegResNet halves three times: 8 voxels end as one, which instance norms cannot take."""
    message = refused(
        "pretrain",
        config(folder, {**PRETRAIN, "network": {**PRETRAIN["network"], "name": "DynUNet", "options": {}}}),
        "--out",
        folder / "run",
        "data.size=[4, 4, 4]",
    )
    assert "size" in message or "crop" in message


def test_a_folder_that_holds_another_run(folder: Path, refused: Refusal) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text("precious: true")
    assert "give another folder" in refused("pretrain", config(folder, PRETRAIN), "--out", folder / "run")
    assert (folder / "run" / "config.yaml").read_text() == "precious: true"


def test_a_truncated_checkpoint(folder: Path, refused: Refusal) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", str(config(folder, PRETRAIN)), "--out", str(folder / "run")])
    weights = folder / "run/checkpoints/step-00000002/network.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    message = refused("finetune", config(folder, FINETUNE), "--out", folder / "tuned", "--pretrained", weights.parent)
    assert "network.safetensors" in message


def test_a_label_without_an_image(folder: Path, refused: Refusal) -> None:
    (folder / "images/p1.nii.gz").unlink()
    assert "p1.nii.gz" in refused("finetune", config(folder, FINETUNE), "--out", folder / "tuned")


def test_an_image_without_a_label(folder: Path, refused: Refusal) -> None:
    (folder / "labels/p1.nii.gz").unlink()
    assert "p1.nii.gz" in refused("finetune", config(folder, FINETUNE), "--out", folder / "tuned")


@pytest.mark.parametrize(("shape", "spacing"), [((24, 24, 23), 1.0), ((24, 24, 24), 1.5)])
def test_a_label_on_another_grid(shape: tuple[int, ...], spacing: float, folder: Path, refused: Refusal) -> None:
    save(folder / "labels/p1.nii.gz", np.zeros(shape, np.uint8), spacing)
    message = refused("finetune", config(folder, FINETUNE), "--out", folder / "tuned")
    assert "p1.nii.gz" in message
    assert "grid" in message


def test_a_label_value_that_the_network_has_no_output_for(folder: Path, refused: Refusal) -> None:
    save(folder / "labels/p1.nii.gz", np.full((24, 24, 24), 7, np.uint8))
    message = refused("finetune", config(folder, FINETUNE), "--out", folder / "tuned")
    assert "7" in message
    assert "out_channels" in message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("predict", "nowhere", "images", "--out", "maps"), "nowhere"),
        (("evaluate", "--predictions", "nowhere", "--labels", "labels"), "nowhere"),
        (("volumes", "nowhere"), "nowhere"),
        (("store", "nowhere", "--out", "other"), "nowhere"),
        (("index", "nowhere", "--index", "index"), "nowhere"),
        (("pretrain", "nowhere.yaml", "--out", "run"), "nowhere.yaml"),
        (("finetune", "nowhere.yaml", "--out", "run"), "nowhere.yaml"),
    ],
)
def test_what_is_named_and_is_not_there(words: tuple[str, ...], expected: str, folder: Path, refused: Refusal) -> None:
    assert expected in refused(*words)
