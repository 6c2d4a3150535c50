"""Every task x every loss of our packages x networks x 2D and 3D: one step from configuration, or a refusal with the reason.

`make test` takes a covering of the table in which every two of (task, loss, network with its dimensions) meet; `make test-all` takes all.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch

from medssl.errors import ConfigError, NetworkError
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
"""Where 32 voxels are no side of a crop that the network takes; what is refused in 3D is tried with 32."""
LOSSES: dict[str, dict[str, Any]] = {
    "moco": {"queue": 8, "momentum": 0.996},
    "moco-v3": {"momentum": 0.996},
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


def refusals(task: str, loss: str, network: str, dims: int) -> list[str]:
    """Why a case cannot be, in words of the message that says one of these; none where it runs."""
    cls, needs = PLUGINS.tasks()[task], PLUGINS.losses()[loss].needs if loss else frozenset()
    dense = {"inpainting", "context-encoder", "restoration", "cross-modality", "colorization", "denoising", "next-slice", "position"}
    slabs, tiles = {"slice-order", "order-verification"}, {"jigsaw", "relative-position"}
    reasons = {
        "does not work on tokens": task == "masked-autoencoder" and network != "UNETR",
        "needs|alone|half a patch": (network == "UNETR" and task in {*slabs, *tiles, "volume-contrast"})
        or (network == "ResNet" and task in slabs),
        "needs at least|half a patch": network == "ResNet" and dims == 3 and task in tiles,
        "no dense output": network == "ResNet" and (task in {*dense, "region-matching"} or "feature_maps" in needs),
        "no task here gives both the same answer": "answers" in needs and not cls.same_for_views,
        "different momentum": (task, loss) == ("ibot", "moco"),
        "uda compares classes": loss == "uda" and cls.answer != "logits",
    }
    return [words for words, applies in reasons.items() if applies]


def one_step(task: str, loss: str, network: str, dims: int) -> None:
    cls, side = PLUGINS.tasks()[task], 32 if refusals(task, loss, network, dims) else SIDES.get((task, network), 32)
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
    expected = refusals(*case)
    if not expected:
        one_step(*case)
        return
    with pytest.raises((ConfigError, NetworkError), match="|".join(expected)):
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
