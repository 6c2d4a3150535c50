"""Guards against shortcuts that hold for every shipped task with classes: nothing seen is not asked about, no answer is likelier than
another, and where flips and rotations would change the answer, the crop itself is asked about.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medssl.augment import ViewOptions
from medssl.contracts import Draw, PooledHead, PretextTask
from medssl.learn import build_objective
from medssl.plugins import KNOWN_PACKAGES, Plugins
from medssl.testing import make_crops, make_info

PLUGINS = Plugins.load()
SIZE = (32, 48)
UNET = {"name": "UNet", "spatial_dims": 2, "options": {"channels": [4, 8, 8], "strides": [2, 2]}}
P_999 = 3.29
"""Standard deviations of a normal distribution that one draw in a thousand lies beyond, on both sides."""


def built(name: str) -> PretextTask:
    cls = PLUGINS.task(name)
    suite: Any = cls.suite
    return cls(
        cls.Options(**suite.get("options", {})), make_info(2, suite.get("channels", 1), crop=SIZE, tokens=suite.get("tokens", False))
    )


TASKS = {name: built(name) for name in sorted(PLUGINS.tasks()) if name in KNOWN_PACKAGES}
CLASSES = [name for name, task in TASKS.items() if isinstance(task.head(), PooledHead) and task.answer == "logits"]


def test_the_tasks_with_classes_are_those_of_placing_and_ordering() -> None:
    assert {"relative-position", "jigsaw", "slice-order", "order-verification", "frame-order", "rotation"} == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_every_answer_is_as_likely(name: str) -> None:
    task, crops = TASKS[name], make_crops(16, SIZE, TASKS[name].network.channels)
    targets = torch.cat([task.make(crops, Draw(0, step, crops.index, name)).target for step in range(100)])
    head = task.head()
    assert isinstance(head, PooledHead)
    counts, expected = torch.bincount(targets, minlength=head.outputs).double(), len(targets) / head.outputs
    # Wilson and Hilferty: the cube root of chi-squared over its degrees of freedom is nearly normal.
    free = head.outputs - 1
    scale = 2 / (9 * free)
    chi = float(((counts - expected).square() / expected).sum())
    assert ((chi / free) ** (1 / 3) - (1 - scale)) / scale**0.5 < P_999


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "rotation"])
def test_what_shows_nothing_is_not_asked_about(name: str) -> None:
    task, crops = TASKS[name], make_crops(2, SIZE, TASKS[name].network.channels)
    air = crops.images.clone()
    air[0] = -1.0
    answerable = task.make(crops.with_images(air), Draw(0, 0, crops.index, name)).answerable
    assert answerable is not None and answerable.tolist() == [False, True]


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if not task.same_for_views and name != "masked-autoencoder"])
def test_where_a_flip_would_change_the_answer_the_crop_itself_is_asked_about(name: str) -> None:
    suite: Any = TASKS[name].suite
    channels = suite.get("channels", 1)
    views = ViewOptions(clean=False, flip=1.0, rotate=20.0)
    term = {"name": name, **suite.get("options", {})}
    objective = build_objective({**UNET, "in_channels": channels}, [term], ["vicreg"], views, seed=0, plugins=PLUGINS, crop=SIZE)
    crops = make_crops(4, SIZE, channels)
    asked = [view for view in objective.ask(crops, 0).views if name in view.questions]
    assert len(asked) == 1 and torch.equal(asked[0].crops.images, crops.images)
