"""Inpainting keeps the public contract, hides what it says, and counts what it hides."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medssl_inpainting import Inpainting
from pydantic import ValidationError
from torch.nn import functional as F

from medssl.contracts import Draw, PretextBatch
from medssl.testing import PretextTaskContract, make_crops, make_info


class TestInpainting(PretextTaskContract):
    task = Inpainting


class TestRangeNoiseHuberTwoChannels(PretextTaskContract):
    task = Inpainting
    channels = 2
    options: ClassVar = {"ratio": (0.3, 0.7), "block": 5, "fill": "noise", "distance": "huber", "visible_weight": 0.1}


SIZES = [(16, 20), (9, 12, 11)]


def question(options: dict, size=(16, 20), channels=1, batch=3, step=0):
    task = Inpainting(Inpainting.Options(**options), make_info(len(size), channels))
    crops = make_crops(batch, size, channels)
    return task, crops, task.make(crops, Draw(0, step, crops.index, "inpainting"))


@settings(max_examples=25, deadline=None)
@given(
    fill=st.sampled_from(["mean", "zero", "noise"]),
    block=st.integers(2, 9),
    step=st.integers(0, 50),
    size=st.sampled_from([(16, 20), (9, 12, 11)]),
)
def test_only_hidden_voxels_change(fill, block, step, size):
    _, crops, batch = question({"fill": fill, "block": block}, size, channels=2, step=step)
    hidden = batch.extra["hidden"].expand_as(crops.images)
    assert torch.equal(batch.inputs[~hidden], crops.images[~hidden])
    assert hidden.any() and not hidden.all()
    assert (batch.inputs[hidden] != crops.images[hidden]).float().mean() > 0.9


def test_a_fill_tells_nothing_of_what_it_hides():
    task = Inpainting(Inpainting.Options(fill="mean"), make_info(2))
    crops = make_crops(2, (32, 32))
    draw = [Draw(0, 0, crops.index, "inpainting") for _ in range(2)]
    one = task.make(crops, draw[0])
    hidden = one.extra["hidden"]
    other = task.make(crops.with_images(torch.where(hidden, crops.images + 5, crops.images)), draw[1])
    assert torch.equal(one.inputs, other.inputs)


@pytest.mark.parametrize(("distance", "oracle"), [("l2", F.mse_loss), ("l1", F.l1_loss), ("huber", F.huber_loss)])
def test_the_loss_is_torchs_own_over_the_hidden_voxels(distance, oracle):
    task, crops, batch = question({"distance": distance})
    prediction = torch.randn_like(crops.images) * 2
    for row in range(3):
        hidden = batch.extra["hidden"][row]
        expected = oracle(prediction[row][hidden], crops.images[row][hidden])
        torch.testing.assert_close(task.loss(prediction, batch)[row], expected)


def test_visible_voxels_count_only_when_asked():
    for weight, counts in ((0.0, False), (0.5, True)):
        task, crops, batch = question({"visible_weight": weight})
        right = crops.images.clone()
        wrong = torch.where(batch.extra["hidden"], right, right + 1)
        assert bool((task.loss(wrong, batch) > 0).all()) is counts


@pytest.mark.parametrize("visible_weight", [0.0, 0.999, 1.0])
def test_the_trivial_answer_is_the_mean_of_what_is_seen(visible_weight):
    task, crops, batch = question({"visible_weight": visible_weight})
    trivial = task.trivial(batch)
    for row in range(3):
        seen = ~batch.extra["hidden"][row]
        torch.testing.assert_close(trivial[row].unique().squeeze(), crops.images[row][seen].mean(), atol=1e-5, rtol=1e-5)
    assert (task.loss(trivial, batch) < task.loss(trivial + 1, batch)).all()


@pytest.mark.parametrize("visible_weight", [0.0, 1.0])
def test_pictures_show_the_answer_in_the_hidden_blocks_alone(visible_weight):
    task, crops, batch = question({"visible_weight": visible_weight})
    shown = task.picture(torch.full_like(crops.images, 7.0), batch)["prediction"]
    assert torch.equal((shown == 7.0), batch.extra["hidden"].expand_as(shown))


def test_a_finished_batch_needs_no_inputs():
    task, crops, batch = question({})
    bare = PretextBatch(inputs=None, target=batch.target, weight=batch.weight, extra=batch.extra)
    assert torch.equal(task.loss(crops.images * 0, bare), task.loss(crops.images * 0, batch))


@pytest.mark.parametrize("ratio", [0, 1, 1.5, (0.7, 0.3), (0, 0.5)])
def test_a_ratio_that_hides_nothing_or_all_is_refused(ratio):
    with pytest.raises(ValidationError, match="ratio"):
        Inpainting.Options(ratio=ratio)
