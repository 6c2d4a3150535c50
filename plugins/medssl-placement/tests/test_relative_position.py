"""Relative position keeps the public contract, and nothing but content gives the answer away."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medssl_placement import RelativePosition, relative_position

from medssl.contracts import Draw, NetworkInfo
from medssl.errors import NetworkError
from medssl.learn import build_objective, freeze_unreached, trivial
from medssl.plugins import Plugins
from medssl.testing import PretextTaskContract, make_crops, make_info, select


class TestRelativePosition(PretextTaskContract):
    task = RelativePosition


class TestFixedPatchTwoChannels(PretextTaskContract):
    task = RelativePosition
    channels = 2
    options: ClassVar = {"patch": 9, "gap": 1, "jitter": 1, "empty": 0.0}


def task_for(dims: int, stride: int = 4, **options) -> RelativePosition:
    return RelativePosition(RelativePosition.Options(**options), make_info(dims, stride=stride))


def coordinates(batch: int, size: tuple[int, ...]):
    """Crops whose channels are the coordinates of each voxel."""
    crops = make_crops(batch, size, len(size))
    axes = torch.meshgrid(*[torch.arange(side, dtype=torch.float32) for side in size], indexing="ij")
    return crops.with_images(torch.stack(axes).expand(batch, -1, *[-1] * len(size)).contiguous())


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from([(32, 32), (40, 25), (24, 32, 24), (21, 33, 26)]),
    gap=st.integers(0, 4),
    jitter=st.integers(0, 2),
    step=st.integers(0, 100),
)
def test_patches_lie_in_the_crop_apart_and_where_the_answer_says(size, gap, jitter, step):
    dims, batch = len(size), 6
    task = task_for(dims, stride=2, gap=gap, jitter=jitter, empty=0)
    patch = torch.tensor(task.patch_size(size))
    crops = coordinates(batch, size)
    draw = Draw(1, step, crops.index, "relative-position")
    target = draw.integers(0, len(task.directions))
    direction = task.directions[target]
    first, second = task._corners(size, tuple(patch.tolist()), direction, draw)
    for corner in (first, second):
        assert (corner >= 0).all() and (corner + patch <= torch.tensor(size)).all()
    offset = second - first
    moved = direction != 0
    assert torch.equal(offset.sign()[moved], direction[moved])
    apart = offset.abs()[moved] - patch.expand_as(offset)[moved]
    assert (apart >= gap).all() and (apart <= gap + 2 * jitter).all()
    assert (offset.abs()[~moved] <= jitter).all()


def test_parts_are_the_patches_of_the_crop(monkeypatch):
    monkeypatch.setattr(relative_position, "standardise", lambda patch: patch)
    task = task_for(3)
    crops = coordinates(50, (24, 32, 24))
    batch = task.make(crops, Draw(0, 0, crops.index, "relative-position"))
    first, second = (batch.inputs[part::2].flatten(2).mean(dim=2) for part in (0, 1))
    direction = task.directions[batch.target]
    moved = direction != 0
    assert torch.equal((second - first).sign()[moved].long(), direction[moved])
    assert batch.answerable is not None and batch.answerable.all()


def test_all_directions_are_asked_equally_often():
    crops = make_crops(4, (32, 32))
    task = task_for(2)
    targets = torch.cat([task.make(crops, Draw(0, step, crops.index, "relative-position")).target for step in range(400)])
    counts = torch.bincount(targets, minlength=8).float()
    expected = len(targets) / 8
    assert ((counts - expected).square() / expected).sum() < 24.3  # chi-squared, 7 degrees of freedom, p = 0.001


def probe(task: RelativePosition, images: torch.Tensor, steps: int) -> tuple[float, float]:
    """Accuracy of a linear probe on patch means and spreads, on questions it was not fitted on, and three sigma above chance."""
    crops = make_crops(images.shape[0], images.shape[2:]).with_images(images)
    rows, targets = [], []
    for step in range(steps):
        batch = task.make(crops, Draw(0, step, crops.index, "relative-position"))
        flat = batch.inputs.flatten(1)
        rows.append(torch.stack([flat.mean(dim=1), flat.std(dim=1)], dim=1).reshape(len(crops), 4))
        targets.append(batch.target)
    features, answers = torch.cat(rows), torch.cat(targets)
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    half = len(features) // 2
    weights = torch.linalg.lstsq(features[:half].double(), torch.nn.functional.one_hot(answers[:half]).double(), driver="gelsd").solution
    accuracy = float(((features[half:].double() @ weights).argmax(dim=1) == answers[half:]).float().mean())
    chance = 1 / len(task.directions)
    return accuracy, chance + 3 * (chance * (1 - chance) / half) ** 0.5


@pytest.mark.parametrize("size", [(32, 32), (24, 24, 24)])
def test_on_noise_a_probe_on_patch_means_stays_at_chance(size):
    noise = torch.randn(16, 1, *size, generator=torch.Generator().manual_seed(3))
    accuracy, bound = probe(task_for(len(size)), noise, 60)
    assert accuracy < bound


def test_a_bias_field_gives_the_answer_away_only_without_normalisation(monkeypatch):
    noise = torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    biased = noise + torch.linspace(0, 20, 32)[:, None] + torch.linspace(0, 50, 32)[None, :]
    accuracy, bound = probe(task_for(2), biased, 60)
    assert accuracy < bound
    monkeypatch.setattr(relative_position, "standardise", lambda patch: patch)
    accuracy, bound = probe(task_for(2), biased, 60)
    assert accuracy > bound + 0.1


def test_air_carries_no_answer():
    crops = make_crops(4, (32, 32))
    air = crops.images.clone()
    air[2] = -1.5 + 0.001 * torch.randn(1, 32, 32)
    air[2, :, 0, 0] = 3.0
    air[3, :, :, 16:] = 0.0
    shown = crops.with_images(air)
    task = task_for(2)
    batches = [task.make(shown, Draw(0, step, shown.index, "relative-position")) for step in range(40)]
    answerable = torch.stack([batch.answerable for batch in batches])
    assert answerable[:, :2].all() and not answerable[:, 2].any()
    assert 0 < answerable[:, 3].float().mean() < 1


def test_air_does_not_dilute_the_loss():
    crops = make_crops(4, (32, 32))
    air = crops.images.clone()
    air[2:] = 0.0
    network = {"name": "UNet", "spatial_dims": 2, "options": {"channels": [4, 8, 8], "strides": [2, 2]}}
    objective = build_objective(network, ["relative-position"], plugins=Plugins.load())
    with_air, without = objective.run(crops.with_images(air), 0), objective.run(select(crops, [0, 1]), 0)
    torch.testing.assert_close(with_air["relative-position"], without["relative-position"])
    assert float(with_air["relative-position/answerable"]) == 0.5
    assert trivial(objective, crops.with_images(air), 0)["relative-position"] == pytest.approx(2.0794, abs=1e-3)
    assert trivial(objective, crops.with_images(air), 0)["relative-position/accuracy"] == pytest.approx(1 / 8)


def test_a_crop_too_small_for_the_network_is_refused_with_the_size_that_works():
    task = RelativePosition(RelativePosition.Options(), NetworkInfo(3, 1, 16, 0, (16, 16, 8)))
    with pytest.raises(NetworkError, match=r"at least \(70, 70, 38\)"):
        task.make(make_crops(2, (48, 48, 48)), Draw(0, 0, [0, 1], "relative-position"))
    assert task.patch_size((70, 70, 38)) == (32, 32, 16)
    with pytest.raises(NetworkError, match="need a crop of 70"):
        task_for(2, patch=32).patch_size((69, 80))


def test_jitter_never_moves_a_patch_to_where_another_answer_is_right():
    with pytest.raises(NetworkError, match="more than half a patch"):
        task_for(2, patch=8, gap=0, jitter=6).patch_size((64, 64))
    assert task_for(2, patch=8, gap=0, jitter=4).patch_size((64, 64)) == (8, 8)


def test_from_a_configuration_it_trains_the_encoder_alone():
    network = {"name": "UNet", "spatial_dims": 2, "options": {"channels": [4, 8, 8], "strides": [2, 2]}}
    objective = build_objective(network, [{"name": "relative-position", "gap": 1}], plugins=Plugins.load())
    unreached = freeze_unreached(objective, make_crops(3, (32, 32)))
    assert any(name.startswith("network.model.2") for name in unreached)
    assert not any(name.startswith(("network.model.0", "heads.")) for name in unreached)
