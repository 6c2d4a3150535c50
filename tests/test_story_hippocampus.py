"""The hippocampus story with the ready configurations: 150 images without labels, 8 with, Dice on 20 others.

Fewer steps than the configurations have, so that it takes a minute; the first 20 test cases are seen by no training.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from medssl.train import pretrain
from medssl.transfer import evaluate, fine_tune, predict
from medssl.volumes import make_store

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"


@pytest.fixture(scope="module")
def hippocampus(shared_data: Path) -> tuple[Path, dict[str, Any]]:
    folder = shared_data / "hippocampus"
    return folder, json.loads((folder / "splits.json").read_text())


def image_of(folder: Path, name: str) -> Path:
    return next(path for kind in ("imagesTr", "imagesTs") if (path := folder / kind / f"{name}.nii.gz").is_file())


def test_150_images_then_8_labels_give_dice_on_20_others(hippocampus: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, splits = hippocampus
    (tmp_path / "images").mkdir()
    for name in splits["pretraining"][:150]:
        shutil.copy(image_of(folder, name), tmp_path / "images")
    assert make_store([tmp_path / "images"], tmp_path / "store").volumes == 150

    store = f"data.store={tmp_path / 'store'}"
    steps = ["train.steps=150", "train.checkpoint_every=150", "train.picture_every=0"]
    run = pretrain(config=EXAMPLES / "hippocampus-pretrain.yaml", overrides=[store, *steps], out=tmp_path / "pretrained")
    losses = [json.loads(line)["inpainting"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-20:]) / 20 < 0.8, "the answer that needs no learning costs 1"

    places = [f"data.dataset={folder}", f"data.splits={folder / 'splits.json'}"]
    tuned = fine_tune(
        config=EXAMPLES / "hippocampus-finetune.yaml",
        overrides=[*places, "train.steps=90", "train.validate_every=90"],
        pretrained=run.folder,
        out=tmp_path / "tuned",
    )
    assert tuned.report is not None
    assert tuned.report.coverage == 1.0
    assert tuned.config.data.labelled == 8

    predict(tuned.folder, [image_of(folder, name) for name in splits["test"][:20]], tmp_path / "maps")
    scores = evaluate(tmp_path / "maps", folder / "labelsTr")
    assert len(scores.cases) == 20
    assert scores.dice is not None
    print(f"Dice {scores.dice:.3f}, by class {scores.means}")
    assert scores.dice > 0.6
    assert all(dice is not None and dice > 0.5 for dice in scores.means.values())
