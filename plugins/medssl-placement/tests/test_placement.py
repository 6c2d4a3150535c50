"""Position, jigsaw and volume contrast keep the public contract, and nothing but content gives their answers away."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import ClassVar

import pytest
import torch
from medssl_placement import Jigsaw, Position, VolumeContrast, jigsaw

from medssl.contracts import Draw
from medssl.errors import NetworkError
from medssl.learn.ops import spread_permutations
from medssl.testing import PretextTaskContract, make_crops, make_info


class TestPosition(PretextTaskContract):
    task = Position


class TestPositionOfCrops(PretextTaskContract):
    task = Position
    options: ClassVar = {"of": "crop", "unit": "share"}


class TestJigsaw(PretextTaskContract):
    task = Jigsaw
    sizes: ClassVar = {2: (32, 32), 3: (24, 32, 24)}


class TestJigsawPlaces(PretextTaskContract):
    task = Jigsaw
    options: ClassVar = {"ask": "places", "jitter": 1}


class TestVolumeContrast(PretextTaskContract):
    task = VolumeContrast


@pytest.mark.parametrize("unit", ["mm", "share"])
@pytest.mark.parametrize("size", [(20, 30), (10, 14, 12)])
def test_the_corners_of_a_volume_lie_half_a_side_from_its_middle(size, unit):
    crops = make_crops(2, size)
    dims = len(size)
    spacing = torch.tensor([2.0, 3.0, 1.5][:dims])
    affine = torch.zeros(2, 3, dims + 1)
    affine[:, :dims, :dims] = torch.diag(spacing)
    extent = torch.zeros(2, 3)
    extent[:, :dims] = spacing * torch.tensor(size)
    crops = replace(crops, affine=affine, extent=extent)
    target = Position(Position.Options(unit=unit, scale=10.0), make_info(dims)).make(crops, Draw(0, 0, crops.index, "x")).target
    first = target[(0, slice(0, dims), *[0] * dims)]
    expected = -(extent[0, :dims] / 2 - spacing / 2) / (10.0 if unit == "mm" else extent[0, :dims] / 2)
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(target[(0, slice(0, dims), *[-1] * dims)], -expected)
    middle = Position(Position.Options(of="crop", unit=unit), make_info(dims)).make(crops, Draw(0, 0, crops.index, "x")).target
    torch.testing.assert_close(middle[:, :dims], torch.zeros(2, dims), atol=1e-5, rtol=0)


def test_permutations_differ_and_are_always_the_same():
    chosen = spread_permutations(9, 50)
    assert torch.equal(chosen, spread_permutations(9, 50))
    assert all(len(set(row)) == 9 for row in chosen.tolist())
    distances = [int((one != other).sum()) for one, other in combinations(chosen, 2)]
    assert min(distances) >= 6  # random ones come down to 2 or 3
    assert len(spread_permutations(4, 100)) == 24
    assert chosen[0].tolist() != list(range(9))


def test_cells_stand_where_the_answer_says(monkeypatch):
    monkeypatch.setattr(jigsaw, "standardise", lambda patches: patches)
    crops = make_crops(20, (24, 32, 24))
    axes = torch.stack(torch.meshgrid(*[torch.arange(float(side)) for side in crops.size], indexing="ij"))
    crops = crops.with_images(axes.expand(20, -1, -1, -1, -1).contiguous())
    task = Jigsaw(Jigsaw.Options(ask="places"), make_info(3, 3))
    batch = task.make(crops, Draw(0, 0, crops.index, "x"))
    middle = batch.inputs.flatten(2).mean(dim=2).unflatten(0, (20, 8))
    cell = (middle / (torch.tensor(crops.size) / 2)).long()
    assert torch.equal(cell @ torch.tensor([4, 2, 1]), batch.target)


def test_every_permutation_is_asked_for_as_often():
    crops = make_crops(4, (32, 32))
    task = Jigsaw(Jigsaw.Options(), make_info(2))
    targets = torch.cat([task.make(crops, Draw(0, step, crops.index, "x")).target for step in range(400)])
    counts, expected = torch.bincount(targets, minlength=24).float(), len(targets) / 24
    assert ((counts - expected).square() / expected).sum() < 49.7  # chi-squared, 23 degrees of freedom, p = 0.001


def probe(task, images: torch.Tensor, steps: int) -> tuple[float, float]:
    """Accuracy of a linear probe on the means and spreads of patches about where the first patch belongs, and chance plus three sigma."""
    crops = make_crops(images.shape[0], images.shape[2:]).with_images(images)
    rows, targets = [], []
    for step in range(steps):
        batch = task.make(crops, Draw(0, step, crops.index, "x"))
        flat = batch.inputs.flatten(1)
        rows.append(torch.stack([flat.mean(dim=1), flat.std(dim=1)], dim=1).reshape(len(crops), -1))
        targets.append(batch.target[:, 0])
    features, answers = torch.cat(rows).double(), torch.cat(targets)
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    half, classes = len(features) // 2, int(answers.max()) + 1
    one_hot = torch.nn.functional.one_hot(answers[:half], classes).double()
    weights = torch.linalg.lstsq(features[:half], one_hot, driver="gelsd").solution
    accuracy = ((features[half:] @ weights).argmax(dim=1) == answers[half:]).float().mean()
    chance = 1 / classes
    return float(accuracy), chance + 3 * (chance * (1 - chance) / half) ** 0.5


def bright_corner() -> torch.Tensor:
    """Noise that is brighter towards a corner, as under a surface coil."""
    ramp = torch.linspace(0, 2, 32)
    return torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(1)) + ramp[:, None] + 2 * ramp


def test_patch_statistics_tell_nothing_on_noise_and_would_without_the_norm(monkeypatch):
    task = Jigsaw(Jigsaw.Options(ask="places"), make_info(2))
    accuracy, limit = probe(task, bright_corner(), 150)
    assert accuracy < limit
    monkeypatch.setattr(jigsaw, "standardise", lambda patches: patches)
    accuracy, limit = probe(task, bright_corner(), 150)
    assert accuracy > 1.5 * limit


def test_crops_with_a_cell_of_air_carry_no_answer():
    crops = make_crops(4, (32, 32))
    crops.images[1, :, :16, :16] = -3.0
    batch = Jigsaw(Jigsaw.Options(), make_info(2)).make(crops, Draw(0, 0, crops.index, "x"))
    assert batch.answerable.tolist() == [True, False, True, True]


@pytest.mark.parametrize("cls", [Jigsaw, VolumeContrast])
def test_a_grid_that_is_too_fine_is_refused_with_the_crop_that_works(cls):
    task = cls(cls.Options(cells=4), make_info(2, stride=8))
    with pytest.raises(NetworkError, match=r"crop of at least \((\d+), \1\)") as told:
        task.make(make_crops(2, (32, 32)), Draw(0, 0, [0, 1], "x"))
    side = int(str(told.value).split("at least (")[-1].split(",")[0])
    assert task.make(make_crops(2, (side, side)), Draw(0, 0, [0, 1], "x")).inputs is not None


@pytest.mark.parametrize("size", [(32, 40), (16, 20, 24)])
def test_overlaps_are_those_of_the_boxes(size):
    crops = make_crops(3, size)
    axes = torch.stack(torch.meshgrid(*[torch.arange(float(side)) for side in size], indexing="ij"))
    task = VolumeContrast(VolumeContrast.Options(boxes=3), make_info(len(size), len(size), stride=2))
    from medssl_placement import volume_contrast

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volume_contrast, "standardise", lambda boxes: boxes)
        batch = task.make(crops.with_images(axes.expand(3, *axes.shape).contiguous()), Draw(0, 0, crops.index, "x"))
    boxes = batch.inputs.unflatten(0, (3, -1)).flatten(3)
    bases = len(boxes[0]) - 3
    for row in range(3):
        voxels = [set(map(tuple, box.T.tolist())) for box in boxes[row]]
        for number in range(3):
            shares = torch.tensor([len(voxels[bases + number] & base) / len(base) for base in voxels[:bases]])
            torch.testing.assert_close(batch.target[row, number], shares)
    # Boxes of a crop always lie within the bases, so all of a box is somewhere.
    torch.testing.assert_close(batch.target.sum(dim=2), torch.ones(3, 3))


def test_likeness_equal_to_the_overlap_costs_nothing():
    task = VolumeContrast(VolumeContrast.Options(boxes=1, width=4), make_info(2))
    crops = make_crops(2, (32, 32))
    batch = task.make(crops, Draw(0, 0, crops.index, "x"))
    # Bases along the axes: the cosines of a box with them are its coordinates.
    box = batch.target / batch.target.norm(dim=2, keepdim=True)
    prediction = torch.cat([torch.eye(4).expand(2, 4, 4), box], dim=1)
    other = replace(batch, target=box)
    assert task.loss(prediction, other).max() < 1e-5
    assert (task.loss(torch.ones_like(prediction), other) > 0.5).all()


def test_without_learning_a_box_is_as_like_each_base_box_as_boxes_are_on_average():
    task = VolumeContrast(VolumeContrast.Options(), make_info())
    crops = make_crops(4, (32, 32, 32))
    batch = task.make(crops, Draw(0, 0, crops.index, "t"))
    answer = task.trivial(batch)
    expected = (batch.target - 1 / 8).abs().flatten(1).mean(dim=1)
    torch.testing.assert_close(task.measure(answer, batch)["error"], expected)
    # Likeness aside, different base boxes cost nothing.
    alone = -(1 - (batch.target - 1 / 8).abs()).log().flatten(1).mean(dim=1)
    torch.testing.assert_close(task.loss(answer, batch), alone)
    assert VolumeContrast(VolumeContrast.Options(width=8), make_info()).trivial(batch) is None
