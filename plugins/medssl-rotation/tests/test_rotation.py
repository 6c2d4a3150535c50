"""Rotation keeps the public contract, turns as numpy and MONAI do, and asks of noise what nobody can know."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from medssl_rotation import Rotation
from medssl_rotation.rotation import _turned_one, rotations, turned

from medssl.contracts import Draw
from medssl.errors import NetworkError
from medssl.testing import PretextTaskContract, make_crops, make_info


class TestRotation(PretextTaskContract):
    task = Rotation


class TestAllRotations(PretextTaskContract):
    task = Rotation
    options: ClassVar = {"rotations": 24, "inside": 0.0}


@pytest.mark.parametrize(("dims", "count", "classes"), [(2, 10, 4), (3, 10, 10), (3, 24, 24)])
def test_rotations_are_a_group_of_different_ones(dims, count, classes):
    found = rotations(dims, count)
    assert len({tuple(matrix.flatten().tolist()) for matrix in found}) == classes
    assert torch.equal(found[0], torch.eye(dims, dtype=torch.int64))


@pytest.mark.parametrize("axes", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarters_are_numpys(axes, quarters):
    cube = torch.randn(2, 5, 5, 5)
    expected = torch.from_numpy(np.rot90(cube.numpy(), quarters, axes=[axis + 1 for axis in axes]).copy())
    assert any(torch.equal(_turned_one(cube, matrix), expected) for matrix in rotations(3, 10).tolist())


@pytest.mark.parametrize("dims", [2, 3])
def test_both_ways_turn_alike(dims, monkeypatch):
    matrices = rotations(dims, 24)
    cubes = torch.randn(len(matrices), 2, *[6] * dims)
    here = turned(cubes, matrices)

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    monkeypatch.setattr(torch, "arange", lambda *args, device=None, **kwargs: torch.tensor(list(range(*args))))
    there = turned(cubes.as_subclass(Elsewhere), matrices)
    assert torch.equal(there.as_subclass(torch.Tensor), here)


def test_thick_slices_and_air_carry_no_answer():
    crops = make_crops(3, (32, 32, 32))
    affine = crops.affine.clone()
    affine[1, 2, 2] = 3.0
    crops = replace(crops, affine=affine, inside=torch.tensor([1.0, 1.0, 0.1]))
    batch = Rotation(Rotation.Options(), make_info(3)).make(crops, Draw(0, 0, crops.index, "x"))
    assert batch.answerable.tolist() == [True, False, False]


def test_a_crop_without_a_cube_is_refused():
    with pytest.raises(NetworkError, match="at least 8"):
        Rotation(Rotation.Options(), make_info(2)).make(make_crops(2, (32, 6)), Draw(0, 0, [0, 1], "x"))


def test_noise_cannot_be_told_from_turned_noise():
    task = Rotation(Rotation.Options(), make_info(2))
    crops = make_crops(64, (16, 16))
    features, targets = [], []
    for step in range(12):
        draw = Draw(1, step, crops.index, "x")
        batch = task.make(crops.with_images(draw.fork("images").normal(1, 16, 16)), draw)
        halves = [batch.inputs[..., :8, :], batch.inputs[..., 8:, :], batch.inputs[..., :8], batch.inputs[..., 8:]]
        features.append(torch.stack([half.flatten(1).mean(dim=1) for half in halves], dim=1))
        targets.append(batch.target)
    rows, answers = torch.cat([torch.cat(features), torch.ones(768, 1)], dim=1).double(), torch.cat(targets)
    weights = torch.linalg.lstsq(rows[:384], torch.nn.functional.one_hot(answers[:384], 4).double(), driver="gelsd").solution
    accuracy = ((rows[384:] @ weights).argmax(dim=1) == answers[384:]).double().mean()
    assert accuracy < 0.25 + 3 * (0.25 * 0.75 / 384) ** 0.5
