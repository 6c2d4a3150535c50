"""What the probes are trained on: terms, network and crops of each, and a few steps of the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor

from medssl import hookimpl
from medssl.contracts import ConsistencyLoss, Crops, PretextTask
from medssl.learn import Objective, Term, build_objective, freeze_unreached
from medssl.plugins import Plugins
from medssl.run import RunState
from medssl.testing import make_crops, select
from medssl.train import TrainOptions, make_engine
from medssl.train.loop import run_steps
from medssl.transfer.segmentation import Segmentation
from probes.alignment import Alignment
from probes.latent_targets import IJEPA, SelfDistillation
from probes.overlap import Overlap
from probes.pictures import BodyPosition, Colour, Halves, Hierarchy, Ramp, Windows

TASKS = (BodyPosition, Colour, Halves, Hierarchy, IJEPA, Overlap, Ramp, SelfDistillation, Windows)
LOSSES = (Alignment,)
STEPS = 4
UNET = {"name": "UNet", "options": {"channels": [4, 8, 8], "strides": [2, 2]}}
VIT = {
    "name": "ViT",
    "options": {
        "img_size": [16, 16], "patch_size": [4, 4], "hidden_size": 16, "mlp_dim": 32, "num_layers": 2, "num_heads": 2,
        "classification": True,
    },
}  # fmt: skip


class Probes:
    """The probes as a plugin in this process."""

    @hookimpl
    def medssl_pretext_tasks(self) -> list[type[PretextTask]]:
        return list(TASKS)

    @hookimpl
    def medssl_consistency_losses(self) -> list[type[ConsistencyLoss]]:
        return list(LOSSES)


def plugins() -> Plugins:
    return Plugins.load({"probes": Probes()})


@dataclass(frozen=True)
class Scenario:
    """A run in miniature: 2D, batches of four crops of 16 x 16."""

    tasks: Sequence[Any] = ()
    consistency: Sequence[Any] = ()
    network: Mapping[str, Any] = field(default_factory=lambda: UNET)
    channels: int = 1
    per_volume: int = 1
    air: Sequence[int] = ()
    """Rows of the batch that show nothing."""
    labelled: bool = False
    """Every second crop has labels, the others have none."""
    divides: bool = True
    """False for losses that compare the whole batch: ranks make up one batch, micro batches do not."""

    @property
    def from_store(self) -> bool:
        """Whether a store of volumes can feed it."""
        return self.channels == 1 and not self.air and not self.labelled

    def objective(self) -> Objective:
        network = {**self.network, "spatial_dims": 2, "in_channels": self.channels}
        return build_objective(network, self.tasks, self.consistency, seed=3, plugins=plugins(), crop=(16, 16))

    def crops(self, step: int) -> Crops:
        crops = make_crops(4, (16, 16), self.channels, seed=step, per_volume=self.per_volume)
        crops.images[list(self.air)] = 0.0
        if self.labelled:
            known = (torch.arange(4) % 2 == 0).view(4, 1, 1, 1)
            crops = replace(crops, labels=torch.where(known, (crops.images > 0.5).long(), -1))
        return crops


SCENARIOS = {
    "masked autoencoder": Scenario([{"name": "masked-autoencoder", "width": 16, "depth": 1}], network=VIT),
    "latent prediction": Scenario([{"name": "i-jepa", "width": 8, "depth": 1, "blocks": 2, "momentum": 0.9}], network=VIT),
    "self-distillation": Scenario(["self-distillation"]),
    "overlap of crops": Scenario(["overlap"], per_volume=2),
    "a queue": Scenario([], [{"name": "moco", "queue": 10, "momentum": 0.9, "hidden": 8, "width": 8}]),
    "colour beside embeddings": Scenario(["colour"], ["alignment"], channels=3),
    "windows": Scenario(["windows"], ["alignment"]),
    "position on views": Scenario([{"name": "inpainting", "block": 4}, "body-position"], ["agreement"]),
    "one modality from another, both ways": Scenario(
        [
            {"name": "cross-modality", "as": "t1-to-t2", "target": "channel 1"},
            {"name": "cross-modality", "as": "t2-to-t1", "target": "channel 0"},
        ],
        channels=2,
    ),
    "air": Scenario([{"name": "relative-position", "gap": 0, "jitter": 0}], air=[1, 2, 3]),
    "pretext invariance": Scenario(["halves"], [{"name": "pirl", "bank": 50}]),
    "two levels": Scenario(["hierarchy"], ["agreement"]),
    "an annealed term": Scenario(["ramp"]),
    "labelled beside unlabelled": Scenario(
        [Term("tasks", "segmentation", Segmentation, Segmentation.Options(batch_dice=False), 1.0)],
        ["agreement"],
        network={**UNET, "out_channels": 3},
        labelled=True,
    ),
    "Dice over all ranks": Scenario([Segmentation], network={**UNET, "out_channels": 3}, labelled=True, divides=False),
    "losses that compare the batch": Scenario(
        [],
        [
            "simsiam",
            {"name": "vicreg", "width": 16},
            {"name": "barlow", "width": 16, "weight": 0.01},
            {"name": "voxel-contrast", "points": 16, "near": 2.0},
            {"name": "dense-agreement", "points": 16, "width": 8},
        ],
        divides=False,
    ),
    "losses that compare the batch with a teacher": Scenario([], ["byol", {"name": "moco-v3", "momentum": 0.996}], divides=False),
    "self-distillation of views and of cells": Scenario(
        [{"name": "ibot", "prototypes": 16}],
        [{"name": "dino", "prototypes": 16}],
    ),
    "regions found again": Scenario([{"name": "region-matching", "radius": [3, 6]}]),
    "what networks of the task's own make": Scenario([{"name": "spot-artifacts", "levels": 1, "width": 4, "settling": 0.5}]),
    "negatives of all ranks": Scenario([], ["simclr"], divides=False),
}


@dataclass
class Trained:
    """What a few steps made."""

    steps: list[dict[str, float]]
    """Losses and measures of each step."""
    gradients: dict[str, Tensor]
    """Of the last step."""
    state: dict[str, Tensor]
    optimizer: dict[str, Any]


def train(scenario: Scenario, accumulate: int = 1, rank: int = 0, world: int = 1) -> Trained:
    """Four steps (two where a loss compares the batch) of four crops each, divided into micro batches or over ranks."""
    objective = scenario.objective()
    freeze_unreached(objective, scenario.crops(0))
    # A norm over four rows multiplies rounding tenfold a step: after two, ranks can still be compared with one batch.
    return steps_of(scenario, objective, 0, STEPS if scenario.divides else 2, None, accumulate, rank, world)


def steps_of(
    scenario: Scenario,
    objective: Objective,
    first: int,
    last: int,
    optimizer: Mapping[str, Any] | None = None,
    accumulate: int = 1,
    rank: int = 0,
    world: int = 1,
) -> Trained:
    """The steps `first` to `last` of a run of four, going on from an objective and the state of an optimizer."""
    share = 4 // (accumulate * world)

    def batches() -> Iterator[tuple[int, int, Crops]]:
        for step in range(first, STEPS):
            for micro in range(accumulate):
                row = (micro * world + rank) * share
                yield step, micro, select(scenario.crops(step), range(row, row + share))

    options = TrainOptions(
        steps=STEPS, accumulate=accumulate, optimizer="sgd", learning_rate=0.02, precision="fp32", device="cpu", clip=None
    )
    engine = make_engine(objective, batches(), options, RunState(STEPS, first))
    if optimizer is not None:
        engine.optimizer.load_state_dict(dict(optimizer))
    steps: list[dict[str, float]] = []

    def note() -> None:
        steps.append(dict(engine.state.output[0]))
        if engine.state.iteration == last:
            engine.terminate()

    engine.add_event_handler(Events.ITERATION_COMPLETED, note)
    run_steps(engine)
    gradients = {name: parameter.grad for name, parameter in objective.named_parameters() if parameter.grad is not None}
    return Trained(steps, gradients, objective.state_dict(), engine.optimizer.state_dict())
