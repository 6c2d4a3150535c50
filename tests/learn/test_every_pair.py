"""Every task x every loss of our packages x networks x 2D and 3D: one step from configuration, or a refusal with the reason.

`make test` takes a covering of the table in which every two of (task, loss, network with its dimensions) meet; `make test-all` takes all.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch

from medssl.errors import ConfigError, MedsslError, NetworkError
from medssl.learn import Objective, build_objective, freeze_unreached
from medssl.plugins import KNOWN_PACKAGES, Plugins
from medssl.testing import make_crops

NETWORKS: dict[str, dict[str, Any]] = {
    "UNet": {"channels": [4, 8, 8], "strides": [2, 2]},
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "DynUNet": {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8]},
    "ResNet": {"block_inplanes": [4, 4, 8, 8]},
    "UNETR": {"feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2},
}
SIDES: dict[tuple[str, str], int] = {
    **{("order-verification", network): 48 for network in ("UNet", "DynUNet")},
    **{(task, "ResNet"): 96 for task in ("jigsaw", "relative-position")},
    ("volume-contrast", "ResNet"): 64,
}
"""Where 32 voxels are no side of a crop."""
LOSSES: dict[str, dict[str, Any]] = {
    "moco": {"queue": 8},
    "pirl": {"bank": 37},
    "dino": {"prototypes": 24},
    "dense-agreement": {"points": 27},
    "voxel-contrast": {"points": 27},
}
PLUGINS = Plugins.load()
TASKS_SHIPPED = sorted(name for name in PLUGINS.tasks() if name in KNOWN_PACKAGES)
LOSSES_SHIPPED = ["", *sorted(name for name in PLUGINS.losses() if name in KNOWN_PACKAGES)]
PLACES = list(product(NETWORKS, (2, 3)))
Case = tuple[str, str, str, int]


def covering() -> Iterator[Case]:
    """A case for each task and loss; networks and dimensions in turn, another turn for each task, so that they too meet every one."""
    for row, task in enumerate(TASKS_SHIPPED):
        for column, loss in enumerate(LOSSES_SHIPPED):
            yield (task, loss, *PLACES[(row + column) % len(PLACES)])


def refusal(task: str, loss: str, network: str, dims: int) -> tuple[type[MedsslError], str] | None:
    """Why a case cannot be; None where it runs."""
    cls, needs = PLUGINS.tasks()[task], PLUGINS.losses()[loss].needs if loss else frozenset()
    in_pieces = {"jigsaw", "order-verification", "relative-position", "slice-order", "volume-contrast"}
    if task == "masked-autoencoder" and network != "UNETR":
        return NetworkError, "does not work on tokens"
    if network == "UNETR" and task in in_pieces:
        return NetworkError, "needs|alone"
    if network == "ResNet" and task in {"slice-order", "order-verification"}:
        return NetworkError, "needs"
    if network == "ResNet" and dims == 3 and task in {"jigsaw", "relative-position"}:
        return NetworkError, "needs"
    dense = {"inpainting", "context-encoder", "restoration", "cross-modality", "colorization", "denoising", "next-slice", "position"}
    if network == "ResNet" and (task in {*dense, "region-matching"} or "feature_maps" in needs):
        return NetworkError, "no dense output"
    if "answers" in needs and not cls.same_for_views:
        return ConfigError, "no task here gives both the same answer"
    if loss == "uda" and cls.answer != "logits":
        return ConfigError, "uda compares classes"
    if loss == "pirl" and task in {"position"}:
        return ConfigError, ""
    return None


def one_step(task: str, loss: str, network: str, dims: int) -> None:
    cls, side = PLUGINS.tasks()[task], SIDES.get((task, network), 32)
    channels = cls.suite.get("channels", 1)
    options = {**NETWORKS[network], **({"img_size": [side] * dims} if network == "UNETR" else {})}
    spec = {"name": network, "spatial_dims": dims, "in_channels": channels, "options": options}
    per_volume = 2 if cls.compares == "group" else 1
    size = (side,) * dims
    crops = make_crops(4, size, channels, per_volume=per_volume, body="body" in cls.needs)
    consistency = [{"name": loss, "weight": 0.1, **LOSSES.get(loss, {})}] if loss else []
    objective = build_objective(spec, [{"name": task, **cls.suite.get("options", {})}], consistency, plugins=PLUGINS, crop=size)
    freeze_unreached(objective, crops)
    step_of(objective, crops)


def step_of(objective: Objective, crops: Any) -> None:
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    before = [p.detach().clone() for p in objective.network.parameters() if p.requires_grad]
    result = objective.run(crops, 0)
    result["loss"].backward()
    assert objective.sometimes_unreached or all(p.grad is not None for p in trained)
    optimizer.step()
    objective.commit()
    assert all(torch.isfinite(value) for value in result.values())
    after = [p for p in objective.network.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def take(case: Case) -> None:
    expected = refusal(*case)
    if expected is None:
        one_step(*case)
        return
    with pytest.raises(expected[0], match=expected[1]):
        one_step(*case)


def test_the_catalogue_is_whole() -> None:
    assert set(TASKS_SHIPPED) | set(LOSSES_SHIPPED) - {""} == set(KNOWN_PACKAGES)


def test_the_covering_covers() -> None:
    cases = list(covering())
    assert {(task, loss) for task, loss, _, _ in cases} == set(product(TASKS_SHIPPED, LOSSES_SHIPPED))
    assert {(task, network, dims) for task, _, network, dims in cases} == {(task, *place) for task, place in product(TASKS_SHIPPED, PLACES)}
    assert {(loss, network, dims) for _, loss, network, dims in cases} == {
        (loss, *place) for loss, place in product(LOSSES_SHIPPED, PLACES)
    }


@pytest.mark.parametrize("case", list(covering()), ids=lambda case: "-".join(map(str, case)))
def test_one_step_of_the_covering(case: Case) -> None:
    take(case)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS_SHIPPED)
def test_one_step_of_all(task: str) -> None:
    for loss, (network, dims) in product(LOSSES_SHIPPED, PLACES):
        take((task, loss, network, dims))
