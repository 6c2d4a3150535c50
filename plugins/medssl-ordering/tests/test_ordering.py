"""Ordering tasks keep the public contract, and patch statistics do not give their answers away."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from medssl_ordering import FrameOrder, NextSlice, OrderVerification, SliceOrder, slabs

from medssl.contracts import Draw
from medssl.errors import ConfigError, NetworkError
from medssl.testing import PretextTaskContract, make_crops, make_info


class TestSliceOrder(PretextTaskContract):
    task = SliceOrder


class TestDirectedSliceOrder(PretextTaskContract):
    task = SliceOrder
    sizes: ClassVar = {2: (40, 32), 3: (32, 16, 16)}
    options: ClassVar = {"axis": "x", "direction": True, "gap": 0}


class TestOrderVerification(PretextTaskContract):
    task = OrderVerification


class TestFrameOrder(PretextTaskContract):
    task = FrameOrder


class TestNextSlice(PretextTaskContract):
    task = NextSlice


class TestNextFrame(PretextTaskContract):
    task = NextSlice
    channels = 4
    options: ClassVar = {"of": "frames", "ahead": 1}


def ramp(size, axis):
    """Crops that hold how far along an axis each voxel lies."""
    crops = make_crops(30, size)
    shape = [1, 1, *[-1 if other == axis else 1 for other in range(len(size))]]
    return crops.with_images(torch.arange(float(size[axis])).view(shape).expand(30, 1, *size).contiguous())


@pytest.mark.parametrize("direction", [False, True])
def test_slabs_stand_in_the_order_that_is_answered_apart_and_in_the_crop(direction, monkeypatch):
    monkeypatch.setattr(slabs, "standardise", lambda rows: rows)
    crops = ramp((16, 16, 40), 2)
    task = SliceOrder(SliceOrder.Options(direction=direction, gap=3), make_info(3))
    batch = task.make(crops, Draw(0, 0, crops.index, "x"))
    rows = batch.inputs.flatten(1)
    first, last = (found.view(30, 3) for found in (rows.amin(dim=1), rows.amax(dim=1)))
    order = first.argsort(dim=1).argsort(dim=1)
    for row in range(30):
        number = next(n for n, other in enumerate(task.orders.tolist()) if other == order[row].tolist())
        assert task.answers[number] == batch.target[row]
        ends = sorted(zip(first[row].tolist(), last[row].tolist(), strict=True))
        assert all(after[0] - before[1] > 3 for before, after in pairwise(ends))
    assert task.classes == (6 if direction else 3)


def test_half_of_the_triplets_are_in_order_and_the_answer_is_right(monkeypatch):
    monkeypatch.setattr(slabs, "standardise", lambda rows: rows)
    crops = ramp((16, 48), 1)
    task = OrderVerification(OrderVerification.Options(), make_info(2))
    asked = []
    for step in range(20):
        batch = task.make(crops, Draw(0, step, crops.index, "x"))
        middle = batch.inputs.flatten(1).mean(dim=1).view(-1, 3)
        right = ((middle[:, 1] - middle[:, 0]) * (middle[:, 2] - middle[:, 1]) > 0).long()
        assert torch.equal(right, batch.target)
        asked.append(batch.target)
    assert abs(torch.cat(asked).float().mean() - 0.5) < 3 * 0.5 / 600**0.5


def probe(task, make, steps=100):
    """Accuracy of a quadratic probe on means and spreads of the parts, and chance plus three sigma."""
    rows, targets = [], []
    for step in range(steps):
        crops, images = make(step)
        batch = task.make(crops.with_images(images), Draw(0, step, crops.index, "x"))
        inputs = batch.inputs.flatten(0, 1) if isinstance(task, FrameOrder) else batch.inputs
        flat = inputs.flatten(1)
        rows.append(torch.stack([flat.mean(dim=1), flat.std(dim=1)], dim=1).reshape(len(crops), -1))
        targets.append(batch.target)
    features, answers = torch.cat(rows).double(), torch.cat(targets)
    products = (features[:, :, None] * features[:, None]).flatten(1)
    features = torch.cat([features, products, torch.ones(len(features), 1)], dim=1)
    half, classes = len(features) // 2, int(answers.max()) + 1
    one_hot = torch.nn.functional.one_hot(answers[:half], classes).double()
    weights = torch.linalg.lstsq(features[:half], one_hot, driver="gelsd").solution
    accuracy = ((features[half:] @ weights).argmax(dim=1) == answers[half:]).float().mean()
    return float(accuracy), 1 / classes + 3 * ((1 / classes) * (1 - 1 / classes) / half) ** 0.5


TASKS = [
    (SliceOrder, {"direction": True}, (16, 36), 1),
    (OrderVerification, {}, (16, 48), 1),
    (FrameOrder, {}, (16, 16), 3),
]


@pytest.mark.parametrize(("cls", "options", "size", "channels"), TASKS)
def test_noise_with_a_drift_stays_at_chance_and_would_not_without_the_norm(cls, options, size, channels, monkeypatch):
    task = cls(cls.Options(**options), make_info(2, channels, stride=2))

    def drifting(step):
        crops = make_crops(8, size, channels)
        noise = Draw(3, step, crops.index, "noise").normal(channels, *size)
        across = torch.arange(channels).view(1, -1, 1, 1) if channels > 1 else torch.linspace(0, 3, size[1])
        return crops, noise + across**2

    accuracy, limit = probe(task, drifting)
    assert accuracy < limit
    module = slabs if cls is not FrameOrder else __import__("medssl_ordering.frame_order", fromlist=["x"])
    monkeypatch.setattr(module, "standardise", lambda rows: rows)
    accuracy, limit = probe(task, drifting)
    assert accuracy > limit


@pytest.mark.parametrize("of", ["slices", "frames"])
def test_what_comes_next_is_hidden_and_only_what_is_near_is_asked(of):
    crops = make_crops(6, (10, 12, 16), 5)
    task = NextSlice(NextSlice.Options(of=of, ahead=3.0 if of == "slices" else 1.0), make_info(3, 5))
    batch = task.make(crops, Draw(0, 0, crops.index, "x"))
    hidden, asked = batch.extra["hidden"], batch.weight > 0
    assert (asked & ~hidden).sum() == 0 and hidden.any() and not hidden.all()
    axis = 1 if of == "frames" else 4
    per_sample = asked.movedim(axis, 1).flatten(2).any(dim=2).sum(dim=1)
    assert (per_sample >= 1).all() and (per_sample <= (3 if of == "slices" else 1)).all()
    changed = torch.where(hidden, crops.images + 5, crops.images)
    again = task.make(crops.with_images(changed), Draw(0, 0, crops.index, "x"))
    torch.testing.assert_close(again.inputs, batch.inputs)
    torch.testing.assert_close(again.extra["last"], batch.extra["last"])


def test_what_cannot_be_sorted_is_refused():
    with pytest.raises(ConfigError, match="have one"):
        FrameOrder(FrameOrder.Options(), make_info(2, 1))
    with pytest.raises(ConfigError, match="have one"):
        NextSlice(NextSlice.Options(of="frames"), make_info(2, 1))
    with pytest.raises(NetworkError, match="no axis z"):
        SliceOrder(SliceOrder.Options(axis="z"), make_info(2))
    with pytest.raises(NetworkError, match="at least"):
        SliceOrder(SliceOrder.Options(), make_info(2, stride=8)).make(make_crops(2, (32, 32)), Draw(0, 0, [0, 1], "x"))
