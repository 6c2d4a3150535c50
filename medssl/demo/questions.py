"""Pictures of tasks and losses: what is shown, what is asked for, and what a small network answers after a few steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medssl.augment import ViewOptions
from medssl.contracts import Crops, PretextTask
from medssl.demo.anatomy import template
from medssl.learn import Objective, beside_trivial, build_objective, freeze_unreached, pictures
from medssl.learn.views import make_views
from medssl.plugins import Plugins
from medssl.train.pictures import write_sheet

SIDE, MM = 64, 2.0
"""Voxels of a crop, and mm of a voxel."""
STEPS, BATCH, ROWS = 150, 8, 2
"""Of the training, and crops that are shown."""
RATE = 2e-3
UNET = {"name": "UNet", "options": {"channels": [16, 32, 64], "strides": [2, 2], "num_res_units": 1}}
VIT = {
    "name": "ViT",
    "options": {
        "img_size": [SIDE, SIDE], "patch_size": [8, 8], "hidden_size": 96, "mlp_dim": 192, "num_layers": 3, "num_heads": 4,
        "classification": True,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Pictured:
    """What was drawn, and how well the task is answered."""

    file: Path
    measures: Mapping[str, tuple[float, float]]
    """The task's loss and its own measures, each with that of the answer that needs no learning."""


def write_question(name: str, file: str | Path, steps: int = STEPS, plugins: Plugins | None = None) -> Pictured:
    """Draw the installed task or loss `name`: of a task what it shows, asks for and is answered, of a loss the views that it compares.

    A small network learns the task for some steps, in 2D, on slices of the MNI152 template that ships with nilearn; each crop is cut
    and brightened anew, and several channels are made of its tissues; options are those of the task's contract suite. Nothing but
    `steps` changes the picture. Raises what a run of the task would.
    """
    plugins = plugins if plugins is not None else Plugins.load()
    if name not in plugins.tasks():
        plugins.loss(name)
        crops = slices(ROWS, 1, 0)
        views = make_views(crops, ViewOptions(), 0, 0, True)
        return Pictured(write_sheet(file, {f"view {number}": view.crops.images for number, view in enumerate(views)}, rows=ROWS), {})
    cls = plugins.task(name)
    objective = build_objective(_network(cls), [{"name": name, **cls.suite.get("options", {})}], seed=0, plugins=plugins, crop=(SIDE, SIDE))
    channels = cls.suite.get("channels", 1)
    _train(objective, channels, steps)
    shown = {key.partition("/")[2]: image for key, image in pictures(objective, slices(ROWS, channels, steps + 1), 0).items()}
    found = beside_trivial(objective, slices(4 * BATCH, channels, steps + 2), 0)
    measures = {what: (value, easy) for what, (value, easy) in found.items() if easy is not None}
    return Pictured(write_sheet(file, shown or {"crop": slices(ROWS, channels, steps + 1).images}, rows=ROWS), measures)


def slices(count: int, channels: int, seed: int) -> Crops:
    """`count` crops of axial slices; three channels look like colours, and more like the frames of a contrast agent that comes and goes."""
    random = np.random.default_rng(seed)
    maps = template()
    images, corners = [], []
    for _ in range(count):
        low = [int(random.integers(0, max(1, int(side // MM) - SIDE))) for side in maps.t1.shape[:2]]
        height = int(random.integers(60, 121))
        part = tuple(slice(int(MM) * start, int(MM) * (start + SIDE), int(MM)) for start in low)
        t1, grey, white = (volume[part[0], part[1], height] for volume in (maps.t1, maps.grey, maps.white))
        images.append(_channels(t1 ** random.uniform(0.7, 1.4), grey, white, channels))
        corners.append([*(MM * start for start in low), float(height)])
    return _crops(torch.from_numpy(np.stack(images)), torch.tensor(corners), seed, [float(side) for side in maps.t1.shape])


def _channels(t1: Any, grey: Any, white: Any, channels: int) -> Any:
    """(C, x, y) float32 about -1 to 1."""
    if channels == 1:
        made = [t1]
    elif channels == 3:
        made = [0.9 * t1, 0.55 * t1 + 0.3 * grey, 0.45 * t1 + 0.4 * white]
    else:
        taken_up = np.linspace(0, 1, channels)
        made = [t1 * (1 - 0.5 * share) + 0.7 * np.sin(np.pi * share) * grey + 0.5 * share * white for share in taken_up]
    return (2 * np.stack(made) - 1).astype(np.float32)


def _crops(images: Tensor, corners: Tensor, seed: int, volume: list[float]) -> Crops:
    number = torch.arange(len(images))
    affine = torch.zeros(len(images), 3, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = MM
    affine[:, :, 2] = corners
    channels = images.shape[1]
    return Crops(
        images=images,
        channels={1: ("T1",), 3: ("R", "G", "B")}.get(channels, tuple(f"frame {frame}" for frame in range(channels))),
        index=number,
        sample=number + 1000 * seed,
        patient=number + 1000 * seed,
        group=number,
        affine=affine,
        extent=torch.tensor(volume).expand(len(images), 3).clone(),
        rescale=torch.full((len(images), channels, 2), 127.5),
        inside=(images[:, :1] > -0.8).float().flatten(1).mean(dim=1),
        axis="time" if channels > 3 else None,
        body=images[:, :1] > -0.8,
    )


def _network(cls: type[PretextTask]) -> dict[str, Any]:
    spec = VIT if cls.suite.get("tokens") else UNET
    return {**spec, "spatial_dims": 2, "in_channels": cls.suite.get("channels", 1)}


def _train(objective: Objective, channels: int, steps: int) -> None:
    freeze_unreached(objective, slices(BATCH, channels, 0))
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], RATE)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, 2 * (1 - step / steps))
        optimizer.zero_grad()
        crops = slices(BATCH, channels, step)
        torch.autograd.backward(objective.run(crops, step, step / steps)["loss"])
        optimizer.step()
        objective.commit(step / steps)
