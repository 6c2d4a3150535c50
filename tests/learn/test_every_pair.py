"""Every task x every loss of our packages on every network that works from the start, in 2D and 3D: one step from mappings."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from medssl.errors import NetworkError
from medssl.learn import build_objective, freeze_unreached
from medssl.plugins import Plugins
from medssl.testing import make_crops

NETWORKS: dict[str, dict[str, Any]] = {
    "UNet": {"channels": [4, 8, 8], "strides": [2, 2]},
    "BasicUNet": {"features": [4, 4, 4, 8, 8, 4]},
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "DynUNet": {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8]},
    "ResNet": {"block_inplanes": [4, 4, 8, 8]},
}
TASKS: dict[str, dict[str, Any]] = {"inpainting": {"block": 4}, "relative-position": {"gap": 0, "jitter": 1}}
LOSSES: dict[str, dict[str, Any]] = {"none": {}, "agreement": {}, "simsiam": {"width": 8, "bottleneck": 4}}
SIDES = {"UNet": 20, "SegResNet": 16, "DynUNet": 20, "BasicUNet": 66, "ResNet": 66}
"""Smallest crops that hold two patches of two voxels at the encoder's end, or that the network can halve."""


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("network", "task", "loss"), list(product(NETWORKS, TASKS, LOSSES)))
def test_one_step(network: str, task: str, loss: str, dims: int) -> None:
    spec = {"name": network, "spatial_dims": dims, "options": NETWORKS[network]}
    tasks = [{"name": task, **TASKS[task]}]
    consistency = [] if loss == "none" else [{"name": loss, "weight": 0.1, **LOSSES[loss]}]
    plugins = Plugins.load()
    if network == "ResNet" and task == "inpainting":
        with pytest.raises(NetworkError, match="no dense output"):
            build_objective(spec, tasks, consistency, plugins=plugins)
        return
    if task == "relative-position" and loss == "agreement":
        with pytest.raises(ValueError, match="no task here gives both the same answer"):
            build_objective(spec, tasks, consistency, plugins=plugins)
        return
    side = SIDES[network] if task == "relative-position" else 32 if network == "BasicUNet" else 16
    crops = make_crops(2, (side,) * dims)
    objective = build_objective(spec, tasks, consistency, plugins=plugins)
    freeze_unreached(objective, crops)
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.01)
    before = [p.detach().clone() for p in objective.network.parameters() if p.requires_grad]
    result = objective.run(crops, 0)
    result["loss"].backward()
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)
    optimizer.step()
    objective.commit()
    assert all(torch.isfinite(value) for value in result.values())
    after = [p for p in objective.network.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
