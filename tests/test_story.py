"""The main job, end to end, through the command line: DICOM folder -> index -> store -> pretraining -> transfer -> label maps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from medssl.archive import Index, write_volumes
from medssl.cli import main
from medssl.demo import make_scan, write_archive, write_labels

NETWORK = {"name": "SegResNet", "spatial_dims": 3, "in_channels": 1, "options": {"init_filters": 8}}
Call = Callable[..., str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run one command in this process; its standard output."""

    def run(*words: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        assert ended.value.code == 0, captured.err
        return captured.out

    return run


def write_config(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def pretrain_config(folder: Path, steps: int) -> Path:
    data = {"store": str(folder / "store"), "size": [32, 32, 32], "batch": 2}
    train = {"steps": steps, "checkpoint_every": max(steps // 2, 1)}
    terms = {"tasks": [{"name": "inpainting"}], "consistency": [{"name": "agreement", "weight": 0.1}]}
    return write_config(folder / "pretrain.yaml", {"network": NETWORK, "data": data, **terms, "train": train})


def test_from_made_up_dicom_to_label_maps(tmp_path: Path, call: Call) -> None:
    scans = [make_scan(patient, spacing=5.0) for patient in range(4)]
    write_archive(scans, tmp_path / "archive")

    index = json.loads(call("index", tmp_path / "archive", "--index", tmp_path / "index", "--json"))
    assert len(index["volumes"]) == 4
    assert index["rejected"], "the localizer, the secondary capture and the corrupt file must be accounted for"
    assert index["files"] == sum(volume["instances"] for volume in index["volumes"]) + sum(index["rejected"].values())

    call("store", tmp_path / "index", "--out", tmp_path / "store", "--spacing", 5)
    call("pretrain", pretrain_config(tmp_path, 4), "--out", tmp_path / "run", "train.learning_rate=1e-3")
    run = tmp_path / "run"
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "pictures"} <= {path.name for path in run.iterdir()}
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    assert all(np.isfinite(row[name]) for row in metrics for name in ("loss", "inpainting", "agreement"))
    assert (run / "checkpoints/step-00000004/state.json").is_file()
    assert list((run / "checkpoints/step-00000004").glob("*.safetensors"))
    assert list((run / "pictures").glob("*.png"))
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["train"]["learning_rate"] == 1e-3

    images = write_volumes(Index(tmp_path / "index"), tmp_path / "nifti")
    write_labels(scans, images, tmp_path / "labelled", {"train": [0, 1, 2], "test": [3]})
    data = {
        "images": str(tmp_path / "labelled/train/images"),
        "labels": str(tmp_path / "labelled/train/labels"),
        "size": [32, 32, 32],
        "batch": 2,
        "spacing": 5.0,
    }
    config = {"network": {**NETWORK, "out_channels": 3}, "data": data, "train": {"steps": 4}}
    call("finetune", write_config(tmp_path / "finetune.yaml", config), "--out", tmp_path / "tuned", "--pretrained", run)
    call("predict", tmp_path / "tuned", tmp_path / "labelled/test/images", "--out", tmp_path / "maps")
    (written,) = (tmp_path / "maps").glob("*.nii.gz")
    image = nib.load(tmp_path / "labelled/test/images" / written.name)
    assert nib.load(written).shape == image.shape
    assert np.allclose(nib.load(written).affine, image.affine, atol=1e-4)
    scores = json.loads(call("evaluate", "--predictions", tmp_path / "maps", "--labels", tmp_path / "labelled/test/labels", "--json"))
    assert scores

    call("predict", tmp_path / "tuned", tmp_path / "archive/patient03", "--out", tmp_path / "from-dicom")
    (from_dicom,) = (tmp_path / "from-dicom").glob("*.nii.gz")
    assert np.array_equal(np.asarray(nib.load(from_dicom).dataobj), np.asarray(nib.load(written).dataobj))


def test_from_a_real_brain_study_to_label_maps(shared_data: Path, tmp_path: Path, call: Call) -> None:
    study = shared_data / "mr-brain-study"
    index = json.loads(call("index", study, "--index", tmp_path / "index", "--json"))
    assert len(index["volumes"]) >= 5
    listed = json.loads(call("volumes", tmp_path / "index", "--where", "instances = 96", "--json"))
    assert len(listed["volumes"]) == 2
    call("store", tmp_path / "index", "--out", tmp_path / "store", "--where", "instances = 96")
    call("pretrain", pretrain_config(tmp_path, 20), "--out", tmp_path / "run")

    import medssl

    segmenter, report = medssl.load_pretrained(None, tmp_path / "run", out_channels=2)
    assert "loaded" in str(report)
    assert segmenter is not None

    (image,) = write_volumes(Index(tmp_path / "index"), tmp_path / "labelled/images", f"volume = '{listed['volumes'][0]['volume']}'")
    loaded = nib.load(image)
    array = np.asarray(loaded.dataobj)
    (tmp_path / "labelled/labels").mkdir()
    brightest = (array > np.percentile(array, 90)).astype(np.uint8)
    nib.save(nib.Nifti1Image(brightest, loaded.affine), tmp_path / "labelled/labels" / image.name)
    data = {"images": str(tmp_path / "labelled/images"), "labels": str(tmp_path / "labelled/labels"), "size": [32, 32, 32], "batch": 2}
    config = {"network": {**NETWORK, "out_channels": 2}, "data": data, "train": {"steps": 2}}
    call("finetune", write_config(tmp_path / "finetune.yaml", config), "--out", tmp_path / "tuned", "--pretrained", tmp_path / "run")
    call("predict", tmp_path / "tuned", image, "--out", tmp_path / "maps")
    (written,) = (tmp_path / "maps").glob("*.nii.gz")
    assert nib.load(written).shape == loaded.shape
