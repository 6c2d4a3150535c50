"""The demo's story: archive -> index -> store -> pretraining -> two fine-tunings -> label maps -> Dice, each step by the public calls."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml

from medssl.archive import Index, build_index, write_volumes
from medssl.demo.anatomy import LABELS, make_scan
from medssl.demo.archive import write_archive, write_labels
from medssl.demo.picture import write_picture
from medssl.errors import UsageError
from medssl.files import take_folder
from medssl.train import pretrain
from medssl.transfer import Evaluation, evaluate, fine_tune, predict
from medssl.volumes import make_store

Say = Callable[[str], None]

MARK = ".medssl-demo"
CROP = [32, 32, 32]
NETWORK = {
    "name": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "options": {"channels": [8, 16, 32, 64], "strides": [2, 2, 2], "num_res_units": 1},
}
STARTS = ("from scratch", "pretrained")


@dataclass(frozen=True)
class DemoResult:
    """What the demo ends with: a table of Dice and the path of a picture."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    picture: Path


def run_demo(out: str | Path, *, steps: int, finetune_steps: int, patients: int, say: Say) -> DemoResult:
    """Run the whole story in `out`; what an earlier demo left there is replaced, any other content is refused."""
    folder = _fresh(Path(out))
    labelled, tested = _split(patients)

    say(f"1/7 making {patients} patients: the MNI152 template, warped and re-contrasted, as DICOM in {folder / 'archive'}")
    scans = [make_scan(patient) for patient in range(patients)]
    write_archive(scans, folder / "archive")

    say(f"2/7 $ medssl index {folder / 'archive'} --index {folder / 'index'}")
    summary = build_index([folder / "archive"], folder / "index")
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(summary.rejected.items()))
    say(f"    {summary.files} files, {len(summary.volumes)} volumes; not volumes: {refused or 'none'}")

    say(f"3/7 $ medssl store {folder / 'index'} --out {folder / 'store'} --spacing 3")
    stored = make_store([folder / "index"], folder / "store", spacing=3.0)
    say(f"    {stored.volumes} volumes")

    config = _write(folder / "pretrain.yaml", _pretrain_config(folder, steps))
    say(f"4/7 $ medssl pretrain {config} --out {folder / 'runs/ssl'}")
    run = pretrain(config=config, out=folder / "runs/ssl")

    say(f"5/7 {len(labelled)} patients get labels; two fine-tunings of {finetune_steps} steps on the same crops")
    images = write_volumes(Index(folder / "index"), folder / "labelled" / "all")
    names = write_labels(scans, images, folder / "labelled", {"train": labelled, "test": tested})
    evaluations, picture_maps = [], []
    for start in STARTS:
        name = start.replace(" ", "-")
        tuned_in = folder / "runs" / f"seg-{name}"
        config = _write(folder / f"finetune-{name}.yaml", _finetune_config(folder, finetune_steps))
        say(f"    $ medssl finetune {config} --out {tuned_in}" + (f" --pretrained {run.folder}" if start == "pretrained" else ""))
        fine_tune(config=config, out=tuned_in, pretrained=run.folder if start == "pretrained" else None)
        maps = folder / f"predictions-{name}"
        say(f"6/7 $ medssl predict {tuned_in} {folder / 'labelled/test/images'} --out {maps}")
        picture_maps.append(predict(tuned_in, [folder / "labelled/test/images"], maps))
        say(f"7/7 $ medssl evaluate --predictions {maps} --labels {folder / 'labelled/test/labels'}")
        evaluations.append(evaluate(maps, folder / "labelled/test/labels"))

    test = folder / "labelled/test"
    case = names["test"][0]
    columns = {"image": test / "images" / case, "truth": test / "labels" / case}
    columns |= {start: maps[0].parent / case for start, maps in zip(STARTS, picture_maps, strict=True)}
    picture = write_picture({name: np.asarray(nib.load(path).dataobj) for name, path in columns.items()}, folder / "demo.png")
    title = f"Dice of {len(tested)} test patients after {finetune_steps} steps on {len(labelled)} labelled patients"
    return DemoResult(title, ("network", *LABELS, "mean"), tuple(_rows(evaluations)), picture)


def _fresh(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise UsageError(f"{folder} holds something that is not an earlier demo. Name another folder with --out.")
        shutil.rmtree(folder)
    take_folder(folder)
    (folder / MARK).touch()
    return folder


def _split(patients: int) -> tuple[list[int], list[int]]:
    """The last third is tested; of the others the first three get labels."""
    tested = list(range(patients - patients // 3, patients))
    return list(range(3)), tested


def _pretrain_config(folder: Path, steps: int) -> dict[str, object]:
    return {
        "network": NETWORK,
        "data": {"store": str(folder / "store"), "size": CROP, "batch": 4},
        "tasks": [{"name": "inpainting", "ratio": 0.5}],
        "consistency": [{"name": "simsiam", "weight": 0.1}],
        "train": {"steps": steps, "learning_rate": 3e-3, "checkpoint_every": max(steps // 2, 1)},
        "seed": 0,
    }


def _finetune_config(folder: Path, steps: int) -> dict[str, object]:
    train = folder / "labelled" / "train"
    return {
        "network": {**NETWORK, "out_channels": len(LABELS) + 1},
        "data": {
            "images": str(train / "images"),
            "labels": str(train / "labels"),
            "size": CROP,
            "batch": 4,
            "spacing": 3.0,
            "validation": 0,
        },
        "train": {"steps": steps},
        "seed": 0,
    }


def _write(path: Path, config: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def _rows(evaluations: Sequence[Evaluation]) -> list[tuple[str, ...]]:
    rows = []
    for start, evaluation in zip(STARTS, evaluations, strict=True):
        means = [evaluation.means[value] or 0.0 for value in range(1, len(LABELS) + 1)]
        rows.append((start, *(f"{mean:.3f}" for mean in means), f"{evaluation.dice or 0.0:.3f}"))
    return rows
