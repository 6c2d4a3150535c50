"""Does each task, and each loss, teach a network anything?

    python docs/experiments/does_it_learn.py run HIPPOCAMPUS --work DIR      # hours; go on by the same command
    python docs/experiments/does_it_learn.py table docs/experiments/does-it-learn.jsonl

`HIPPOCAMPUS` is Task04 of the Medical Segmentation Decathlon as it is unpacked (imagesTr, labelsTr, imagesTs). `run` pretrains one small
network with every installed task and loss and writes a JSON line for each and each seed to `--rows`, where it is not there
already; `table` writes them as tables into `docs/does-it-learn.md`. Every pretraining is shown the same number of voxels,
however many views or parts it makes of a crop.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from learning_table import write_tables
from made_up import made_up
from measuring import MEAN_OF, crops_of_store, loss_metric, task_metrics
from reading_out import Frozen, effective_rank, linear_head
from subjects import RANDOM, Subject, random_of, subjects

from medssl import pretrain
from medssl.learn import Objective, build_objective
from medssl.learn.checks import clean_input
from medssl.monai.crops import crops_of
from medssl.networks import first_network
from medssl.plugins import Plugins
from medssl.volumes import Store, store_items

ROWS = Path(__file__).with_name("does-it-learn.jsonl")
LABELS = (1, 4)
"""With how many labelled cases the linear head is trained."""
LABELLED, TESTS, MADE = 24, 16, 200
"""Cases to draw labelled ones from, test cases of the linear head, and images of a made-up set."""


def main(words: Sequence[str] | None = None) -> int:
    """Run, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    doing = parser.add_subparsers(dest="doing", required=True)
    run = doing.add_parser("run")
    run.add_argument("hippocampus", type=Path)
    run.add_argument("--work", type=Path, required=True, help="folder for stores and runs")
    run.add_argument("--rows", type=Path, default=ROWS)
    run.add_argument("--voxels", type=float, default=50e6, help="what each pretraining is shown")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    run.add_argument("--only", nargs="+", help="names of subjects, or beginnings of them")
    run.add_argument("--tests", type=int, default=TESTS)
    run.add_argument("--batches", type=int, default=16, help="batches of 20 held-out crops on which metrics are taken")
    run.add_argument("--threads", type=int, default=1)
    table = doing.add_parser("table")
    table.add_argument("rows", type=Path, nargs="?", default=ROWS)
    table.add_argument("--page", type=Path, default=Path(__file__).parents[1] / "does-it-learn.md")
    wanted = parser.parse_args(words)
    if wanted.doing == "table":
        write_tables(read_rows(wanted.rows), wanted.page)
        return 0
    torch.set_num_threads(wanted.threads)
    plugins = Plugins.load()
    todo = [one for one in subjects(plugins) if not wanted.only or any(one.name.startswith(name) for name in wanted.only)]
    for seed in wanted.seeds:
        for subject in todo:
            if (subject.name, seed) in {(row["subject"], row["seed"]) for row in read_rows(wanted.rows)}:
                continue
            row = Bench(wanted.hippocampus, wanted.work, wanted.voxels, wanted.tests, wanted.batches, plugins).row(subject, seed)
            with wanted.rows.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
    return 0


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows that are there."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


class Bench:
    """What all rows have in common."""

    def __init__(self, hippocampus: Path, work: Path, voxels: float, tests: int, batches: int, plugins: Plugins) -> None:
        self.hippocampus, self.work, self.voxels, self.plugins = hippocampus, work, voxels, plugins
        self.tests, self.batches = tests, batches

    def row(self, subject: Subject, seed: int) -> dict[str, Any]:
        """Pretrain, measure, read out."""
        start = time.process_time()
        trains = subject.kind != RANDOM
        first = self._objective(subject, seed)
        steps = max(1, round(self.voxels / shown_in_a_step(first, self._crops(subject, "train", 1)[0]))) if trains else 0
        trained = self._pretrained(subject, seed, steps) if trains else first
        spent = time.process_time() - start
        frozen = Frozen(trained.network, trained.spec, subject.crop, self.plugins)
        random = Frozen(first_network(first.spec, seed), first.spec, subject.crop, self.plugins)
        held = self._crops(subject, "held", self.batches)
        metrics = []
        if trains and subject.tasks:
            metrics += task_metrics(trained, held, self._crops(subject, "train", MEAN_OF))
        if trains and subject.losses:
            answers = "answers" in trained.needs
            without = self._pretrained(replace(subject, losses=()), seed, steps) if answers else None
            metrics.append(loss_metric(trained, frozen, random, None if without is None else self._beside(subject, seed, without), held))
        shown = [clean_input(crops, trained.by_key("tasks")) for crops in held]
        return {
            "subject": subject.name,
            "kind": subject.kind,
            "seed": seed,
            "set": subject.set,
            "network": subject.network,
            "random": random_of(subject),
            "voxels": self.voxels,
            "steps": steps,
            "batch": subject.batch,
            "cpu_seconds": round(spent, 1),
            "metrics": [metric.document() for metric in metrics],
            "rank": round(effective_rank(frozen.embeddings(shown, lambda images: images)), 2),
            "dice": self._dice(subject, trained, frozen, seed),
        }

    def _objective(self, subject: Subject, seed: int) -> Objective:
        terms = subject.tasks, subject.losses
        if not any(terms):
            terms = ({"name": "autoencoder"},), ()  # no weights of it are read: a network needs a term to be in an objective
        return build_objective(subject.spec(), *terms, seed=seed, crop=subject.crop, plugins=self.plugins, combine=subject.combine)

    def _pretrained(self, subject: Subject, seed: int, steps: int) -> Objective:
        folder = self.work / f"run-{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        config = {"network": subject.spec(), "combine": subject.combine, "tasks": list(subject.tasks), "consistency": list(subject.losses)}
        data = {"store": str(self.store(subject.set, "train")), "size": list(subject.crop), "batch": subject.batch, "threads": 1}
        options = {"steps": steps, "learning_rate": subject.rate, "picture_every": 0, "checkpoint_every": steps, "device": "cpu"}
        run = pretrain(config={**config, "data": data, "seed": seed, "train": options}, out=folder, plugins=self.plugins, verbose=False)
        objective = run.objective
        assert isinstance(objective, Objective)
        return objective

    def _beside(self, subject: Subject, seed: int, without: Objective) -> Objective:
        """The objective with its loss, and with the weights of a pretraining without it."""
        objective = self._objective(subject, seed)
        objective.load_state_dict(without.state_dict(), strict=False)
        return objective

    def _dice(self, subject: Subject, objective: Objective, frozen: Frozen, seed: int) -> dict[str, float]:
        """By number of labels; each seed has labelled cases of its own, the same for every subject."""
        order = torch.randperm(LABELLED, generator=torch.Generator().manual_seed(100 + seed)).tolist()
        labelled = [self._read(subject, objective, frozen, "labelled", number) for number in order[: max(LABELS)]]
        tests = [self._read(subject, objective, frozen, "held", number) for number in range(self.tests)]
        return {str(count): round(linear_head(labelled[:count], tests, seed), 4) for count in LABELS}

    def _read(self, subject: Subject, objective: Objective, frozen: Frozen, part: str, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, classes = self._case(subject, objective, part, number)
        return frozen.features(image), classes.flatten()

    def _case(self, subject: Subject, objective: Objective, part: str, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        item = Store(self.store(subject.set, part))[number]
        images = item["image"].as_tensor()[None]
        crops = crops_of(images)
        # As they are stored: what is shown of colours is made of these values.
        vars(crops)["rescale"] = torch.tensor([[1.0, 0.0]]).expand(1, images.shape[1], 2)
        return clean_input(crops, objective.by_key("tasks"))[0], item["label"].as_tensor()[0].long()

    def _crops(self, subject: Subject, part: str, count: int) -> list[Any]:
        batch = subject.batch if part == "train" else 20
        return crops_of_store(self.store(subject.set, part), subject.crop, batch, count, 7)

    def store(self, kind: str, part: str) -> Path:
        """The store of a set: `train`, `labelled` of it, or `held` back; made where it is not there."""
        return _stored(self.hippocampus, self.work, kind, part)


@cache
def _stored(hippocampus: Path, work: Path, kind: str, part: str) -> Path:
    folder = work / "stores" / f"{kind}-{part}"
    if not folder.exists():
        items = _hippocampus(hippocampus, part) if kind == "hippocampus" else _made(kind, part)
        with warnings.catch_warnings(action="ignore"):
            store_items(items, folder, modality="MR" if kind == "hippocampus" else None, label_key=None if part == "train" else "label")
    return folder


def _made(kind: str, part: str) -> list[dict[str, Any]]:
    first, count = {"train": (0, MADE), "labelled": (0, LABELLED), "held": (MADE, 60)}[part]
    return made_up(kind, count, first)


def _hippocampus(folder: Path, part: str) -> list[dict[str, Any]]:
    """Of the labelled cases the last 60 are held back; all others and those without labels are for pretraining."""
    cases = list(_cases(folder))
    if len(cases) < 60 + LABELLED:
        raise SystemExit(f"{folder} has {len(cases)} labelled cases in imagesTr and labelsTr; {60 + LABELLED} or more are needed.")
    chosen = {"train": cases[:-60], "labelled": cases[:LABELLED], "held": cases[-60:]}[part]
    more = sorted((folder / "imagesTs").glob("[!.]*.nii.gz")) if part == "train" else []
    return [*chosen, *[{"image": str(file), "patient": file.name} for file in more]]


def _cases(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted((folder / "imagesTr").glob("[!.]*.nii.gz")):
        if (folder / "labelsTr" / file.name).exists():
            yield {"image": str(file), "label": str(folder / "labelsTr" / file.name), "patient": file.name}


def shown_in_a_step(objective: Objective, crops: Any) -> float:
    """Voxels that the network is shown in a step, all views and parts counted; where terms take turns, on average."""
    steps = range(12) if objective.takes_turns else range(1)
    counts = []
    for step in steps:
        passes = [one for view in objective.ask(crops, step).views for one in view.passes]
        counts.append(sum(one.inputs.shape[0] * one.inputs[0, 0].numel() for one in passes))
    return sum(counts) / len(counts)


if __name__ == "__main__":
    raise SystemExit(main())
