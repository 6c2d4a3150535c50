"""`make bench-training`: what training costs beside other jobs and alone, and what the engine adds to a plain loop.

The runs are those of `docs/examples/hippocampus-pretrain.yaml` (network, task, sizes) on made data of that size, for 40 steps, on
two CPUs. CPU seconds are comparable on a machine that does other things, wall seconds only on a quiet one.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import Spent, alternately, bind, busy, call_cost, command_cost
from benchmarks.report import Row, publish
from medssl.config import load_config
from medssl.contracts import Crops
from medssl.learn import build_objective, freeze_unreached
from medssl.networks import as_spec
from medssl.testing import make_crops
from medssl.train import RunState, TrainOptions, make_engine
from medssl.train.loop import StepEngine, StepSettings, run_steps
from medssl.train.optim import learning_rate_at
from medssl.volumes import make_store

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "hippocampus-pretrain.yaml"
CPUS = 2
STEPS = 40
VOLUMES = 16
SIDES = (36, 50, 35)
BLOCK_STEPS = 10
"""Steps of one timing of the engine."""
SPINNING = {"GOMP_SPINCOUNT": "300000"}
"""What OpenMP's threads do where nobody sets a policy. libgomp lets this win over `OMP_WAIT_POLICY`, so the command runs unchanged."""


def waiting_rows(folder: Path, repeat: int) -> list[Row]:
    """40 steps through the command line, as it lets threads wait against OpenMP's default; alone, and beside two busy loops."""
    store = _made_store(folder)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_", "KMP_"))}
    runs = iter(range(1_000_000))

    def cost(environment: Mapping[str, str]) -> Spent:
        out = folder / f"run-{next(runs)}"
        words = ["pretrain", str(EXAMPLE), "--out", str(out), f"data.store={store}", f"train.steps={STEPS}", "train.device=cpu"]
        return command_cost([sys.executable, "-m", "medssl", *words], {**clean, **environment})

    measured = {"ours": lambda: cost({}), "peer": lambda: cost(SPINNING)}
    alone = alternately(measured, repeat)
    with busy(CPUS):
        beside = alternately(measured, repeat)
    peer = "threads that spin, OpenMP's default"
    what = f"{STEPS} steps of {EXAMPLE.stem}"
    return [
        Row(f"{what}, alone, wall", alone["ours"].wall, alone["peer"].wall, peer, "s", 1.1),
        Row(f"{what}, alone, CPU", alone["ours"].cpu, alone["peer"].cpu, peer, "s", 1.1),
        Row(f"{what}, beside {CPUS} busy loops, wall", beside["ours"].wall, beside["peer"].wall, peer, "s", 1.0),
        Row(f"{what}, beside {CPUS} busy loops, CPU", beside["ours"].cpu, beside["peer"].cpu, peer, "s", 0.5),
    ]


def engine_rows(repeat: int) -> list[Row]:
    """CPU milliseconds a step, on one thread: the engine alone, and with the objective that asks the questions, against a plain loop."""
    torch.set_num_threads(1)
    config = load_config(EXAMPLE)
    size, batch = config["data"]["size"], config["data"]["batch"]
    crops = [make_crops(batch, size, seed=seed) for seed in range(4)]
    asked = [_question(some.images, number, config["tasks"][0]) for number, some in enumerate(crops)]
    rate = float(config["train"]["learning_rate"])
    network = as_spec(config["network"]).pretraining()
    found = alternately(
        {
            "objective": lambda: call_cost(_objective_steps(config, crops, rate)),
            "engine": lambda: call_cost(_engine_steps(network.build(seed=0), asked, rate)),
            "plain": lambda: call_cost(_plain_steps(network.build(seed=0), asked, rate)),
        },
        repeat,
    )
    each = {name: 1000 * spent.cpu / BLOCK_STEPS for name, spent in found.items()}
    peer = "a plain torch loop on ready tensors"
    return [
        Row("a step of the engine on ready tensors, CPU", each["engine"], each["plain"], peer, "ms", 1.03),
        Row(
            "a step of medssl's engine, questions made and loss taken by the task, CPU", each["objective"], each["plain"], peer, "ms", 1.03
        ),
    ]


def _made_store(folder: Path) -> Path:
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(VOLUMES):
        volume = random.normal(300, 60, SIDES) + 200 * (random.random() - np.linspace(0, 1, SIDES[0]))[:, None, None]
        nib.save(nib.Nifti1Image(np.rint(volume).astype(np.int16), np.eye(4)), folder / "images" / f"p{number:02d}.nii.gz")
    make_store([folder / "images"], folder / "store", modality="MR")
    return folder / "store"


Question = tuple[Tensor, Tensor, Tensor]


def _question(images: Tensor, seed: int, task: Mapping[str, Any]) -> Question:
    """(inputs, target, hidden) of inpainting, by hand: blocks hidden behind the mean of what is visible."""
    generator = torch.Generator().manual_seed(seed)
    grid = [-(-side // task["block"]) for side in images.shape[2:]]
    blocks = torch.rand((len(images), 1, *grid), generator=generator) < task["ratio"]
    hidden = blocks.float()
    for axis in range(2, images.dim()):
        hidden = hidden.repeat_interleave(task["block"], axis).narrow(axis, 0, images.shape[axis])
    visible = 1 - hidden
    mean = (images * visible).flatten(1).sum(1) / visible.flatten(1).sum(1)
    return torch.where(hidden.bool(), mean.view(-1, *[1] * (images.dim() - 1)), images), images, hidden


def _loss(network: nn.Module, question: Question) -> Tensor:
    inputs, target, hidden = question
    error: Tensor = (network(inputs) - target).square() * hidden
    return (error.flatten(1).sum(1) / hidden.flatten(1).sum(1)).mean()


def _plain_steps(network: nn.Module, questions: list[Question], rate: float) -> Any:
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-2)

    def run() -> None:
        for step, question in enumerate(islice(cycle(questions), BLOCK_STEPS)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, BLOCK_STEPS, rate, 0.05, "cosine")
            optimizer.zero_grad(set_to_none=True)
            loss = _loss(network, question)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            loss.item()

    return run


class _Ready(nn.Module):
    """What the engine asks of an objective, where questions are ready."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.heads, self.tasks = network, nn.ModuleDict(), nn.ModuleDict()

    def ask(self, question: Question, step: int, progress: float) -> Question:
        return question

    def totals(self, asked: list[Question]) -> None:
        return None

    def forward(self, question: Question, totals: None) -> dict[str, Tensor]:
        return {"loss": _loss(self.network, question)}

    def commit(self, progress: float) -> None:
        return None


def _engine_steps(network: nn.Module, questions: list[Question], rate: float) -> Any:
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    settings = StepSettings(torch.device("cpu"), lambda step: learning_rate_at(step, BLOCK_STEPS, rate, 0.05, "cosine"), clip=1.0)
    batches = [[question] for question in islice(cycle(questions), BLOCK_STEPS)]
    ready: Any = _Ready(network)
    engine = StepEngine(ready, optimizer, batches, RunState(BLOCK_STEPS), settings)
    return lambda: run_steps(engine)


def _objective_steps(config: Mapping[str, Any], crops: list[Crops], rate: float) -> Any:
    objective = build_objective(config["network"], config["tasks"])
    freeze_unreached(objective, crops[0])
    options = TrainOptions(steps=BLOCK_STEPS, learning_rate=rate, device="cpu", precision="fp32")
    engine = make_engine(objective, _triples(crops), options)
    return lambda: run_steps(engine)


def _triples(crops: list[Crops]) -> Iterator[tuple[int, int, Crops]]:
    for step, some in enumerate(islice(cycle(crops), BLOCK_STEPS)):
        yield step, 0, some


def main() -> None:
    """Measure, print the table, write `build/bench/training.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="runs of which the median is taken")
    parser.add_argument("--only", choices=("waiting", "engine"), help="half of it, for a look")
    wanted = parser.parse_args()
    rows: list[Row] = []
    if bind(CPUS) < CPUS:
        sys.exit(f"bench-training needs {CPUS} CPUs: threads that wait for each other.")
    if wanted.only != "engine":
        with TemporaryDirectory(prefix="medssl-bench-") as folder:
            rows += waiting_rows(Path(folder), wanted.repeat)
    if wanted.only != "waiting":
        rows += engine_rows(5 * wanted.repeat)
    print(f"written to {publish('training', rows)}")


if __name__ == "__main__":
    main()
