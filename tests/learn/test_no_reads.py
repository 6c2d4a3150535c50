"""In a step nothing reads a number back from the device: `.item()`, `.cpu()`, `.tolist()` and `if tensor:` would all wait for it.

The device is torch's `meta`, on which tensors have shapes and no numbers, so that whoever reads one fails.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import pytest
import torch

from medssl.augment import ViewOptions
from medssl.learn import build_objective
from medssl.plugins import Plugins
from medssl.testing import make_crops

PLUGINS = Plugins.load()
UNET = {"name": "UNet", "options": {"channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 1}}
VIT = {
    "name": "ViT",
    "options": {"img_size": [24, 48, 24], "patch_size": [8, 8, 8], "hidden_size": 16, "mlp_dim": 16, "num_layers": 1, "num_heads": 2},
}
OPTIONS: dict[str, dict[str, Any]] = {"slice-order": {"axis": "y"}, "order-verification": {"axis": "y"}, "colorization": {"bin": 40}}
CHANNELS = {"colorization": 3, "cross-modality": 2, "frame-order": 4}
BESIDE = {"agreement": ["inpainting"], "uda": [{"name": "colorization", "bin": 40}], "pirl": ["jigsaw"]}
"""The tasks that losses on answers, or on what tasks show, are tried beside."""


@pytest.fixture(autouse=True)
def without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none for `meta`."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


SIZE = (24, 48, 24)


def a_step(
    tasks: list[Any],
    losses: list[Any],
    channels: int = 1,
    network: dict[str, Any] = UNET,
    combine: Literal["sum", "balanced", "turns"] = "sum",
    views: ViewOptions | None = None,
) -> None:
    spec = {**network, "spatial_dims": 3, "in_channels": channels}
    objective = build_objective(spec, tasks, losses, views, crop=SIZE, plugins=PLUGINS, combine=combine)
    crops = make_crops(4, SIZE, channels).to("meta")
    objective.to("meta")
    loss = objective.run(crops, step=0)["loss"]
    assert loss.device.type == "meta"
    torch.autograd.backward(loss)
    objective.commit()


@pytest.mark.parametrize("name", sorted(PLUGINS.tasks()))
def test_no_task_reads(name: str) -> None:
    network = VIT if name == "masked-autoencoder" else UNET
    a_step([{"name": name, **OPTIONS.get(name, {})}], [], CHANNELS.get(name, 1), network)


@pytest.mark.parametrize("name", sorted(PLUGINS.losses()))
def test_no_loss_reads(name: str) -> None:
    a_step(BESIDE.get(name, []), [name], 3 if name == "uda" else 1, UNET)


def test_no_kind_of_view_reads() -> None:
    changes = {"bias": 0.3, "low_resolution": 2, "curve": 0.5, "invert": 0.2, "dropout": 0.3, "stretch": 1.2, "shear": 0.1, "elastic": 2.0}
    a_step([], ["simsiam"], views=ViewOptions(clean=False, rotate_about="any", chance=0.5, **changes))


@pytest.mark.parametrize("combine", ["sum", "balanced", "turns"])
def test_no_combination_reads(combine: Literal["sum", "balanced", "turns"]) -> None:
    a_step(["inpainting", "position"], ["simsiam"], combine=combine)
