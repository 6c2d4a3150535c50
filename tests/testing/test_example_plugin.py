"""The example package of the docs keeps the public contract and trains from a configuration."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from medssl.learn import build_objective
from medssl.plugins import Plugins
from medssl.testing import PretextTaskContract, make_crops

PACKAGE = Path(__file__).parents[2] / "docs" / "examples" / "medssl-denoising"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("medssl_denoising", PACKAGE / "medssl_denoising.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestDenoising(PretextTaskContract):
    task = load().Denoising


@pytest.mark.parametrize("dims", [2, 3])
def test_it_learns_from_a_configuration(dims: int) -> None:
    plugins = Plugins.load({"denoising": load()})
    network = {"name": "UNet", "spatial_dims": dims, "options": {"channels": [4, 8, 8], "strides": [2, 2]}}
    objective = build_objective(network, [{"name": "my-denoising", "amount": 2.0}], plugins=plugins)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.01)
    losses = []
    for step in range(12):
        loss = objective.run(make_crops(3, (16,) * dims), step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < sum(losses[:3])


def test_the_task_is_short() -> None:
    lines = [line for line in (PACKAGE / "medssl_denoising.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 45
