"""Every task of medssl's own packages in a MONAI pipeline: asked and answered, or refused when the transform is made, as the page says."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import SegResNet

from medssl.errors import ConfigError
from medssl.monai import PretextLoss, PretextNetwork, PretextTaskd, prepare_pretext_batch
from medssl.plugins import KNOWN_PACKAGES, Plugins
from medssl.testing import make_crops

PAGE = Path(__file__).parents[2] / "docs" / "for-monai-users.md"
TASKS = sorted(name for name in Plugins.load().tasks() if name in KNOWN_PACKAGES)
SIDE = 48


def network(dims: int, channels: int) -> Any:
    return partial(SegResNet, spatial_dims=dims, in_channels=channels, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))


def answered(task: str, dims: int, channels: int) -> tuple[int, ...]:
    """The shape of what is shown of an image of 48 voxels along each side; the loss reaches the network."""
    answers = network(dims, channels)
    image = make_crops(1, (SIDE,) * dims, channels).images[0]
    item = PretextTaskd("image", task, network=answers)({"image": image})
    model = PretextNetwork(answers, task, seed=0)
    shown, label = prepare_pretext_batch({key: torch.stack([value, value]) for key, value in item.items()})
    PretextLoss(task, network=answers)(model(shown), label).backward()
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.network.parameters()), (task, dims)
    return tuple(item["image"].shape)


def needs_network(task: str) -> bool:
    """Whether the transform asks for the network; a task that it refuses raises."""
    try:
        PretextTaskd("image", task)
    except ConfigError as error:
        if "Say which it is: network=" not in str(error):
            raise
        return True
    return False


def row_of(task: str) -> str:
    """The row of the page's table."""
    try:
        needed = needs_network(task)
    except ConfigError as error:
        return f"| `{task}` | no: it {str(error).partition('. ')[0].removeprefix(f'{task!r} ').removeprefix('a term ')} | | |"
    for channels in (1, 3):
        try:
            shapes = [answered(task, dims, channels) for dims in (2, 3)]
        except ConfigError:
            continue  # it wants images of more channels
        shown = " and ".join(f"({', '.join(map(str, shape))})" for shape in shapes)
        return f"| `{task}` | yes | {'yes' if needed else 'no'} | {shown} |"
    raise AssertionError(f"'{task}' is taken and asks no image of one or three channels anything")


@pytest.mark.parametrize("task", TASKS)
def test_the_page_says_what_becomes_of_the_task(task: str) -> None:
    assert row_of(task) in PAGE.read_text(encoding="utf-8").splitlines()
