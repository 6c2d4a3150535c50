"""The changes of training crops: a function of (seed, step, place) alone, labels follow flips; the loss can be minimised."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from medssl.contracts import Draw
from medssl.testing import make_crops
from medssl.transfer.objective import SegmentationLoss, augment
from medssl.transfer.options import AugmentOptions


def crops(dims: int = 3, batch: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(batch, 1, *[5] * dims, generator=torch.Generator().manual_seed(0))
    return images, (images > 0.5).long()


@pytest.mark.parametrize("dims", [2, 3])
def test_labels_follow_flips(dims: int) -> None:
    images, labels = crops(dims)
    options = AugmentOptions(flip=tuple(range(dims)), scale=0, shift=0, noise=0)
    flipped, moved = augment(images, labels, options, Draw(0, 0, range(6), "t"))
    assert torch.equal((flipped > 0.5).long(), moved)
    assert not torch.equal(flipped, images)
    assert torch.equal(flipped.flatten(1).sort().values, images.flatten(1).sort().values)


def test_intensities_change_and_labels_do_not() -> None:
    images, labels = crops()
    before = images.clone()
    changed, same = augment(images, labels, AugmentOptions(), Draw(0, 0, range(6), "t"))
    assert torch.equal(same, labels)
    assert torch.equal(images, before)
    assert (changed - images).abs().flatten(1).amax(1).min() > 0
    plain, _ = augment(images, labels, AugmentOptions(scale=0, shift=0, noise=0), Draw(0, 0, range(6), "t"))
    assert torch.equal(plain, images)


def test_a_crop_does_not_depend_on_its_neighbours() -> None:
    images, labels = crops()
    options = AugmentOptions(flip=(0, 1, 2))
    together = augment(images, labels, options, Draw(3, 7, range(6), "t"))
    alone = augment(images[4:5], labels[4:5], options, Draw(3, 7, [4], "t"))
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[4:5], one)


def test_perfect_logits_cost_nothing_and_uniform_ones_do() -> None:
    images, labels = crops()
    options = AugmentOptions(scale=0, shift=0, noise=0)

    class Oracle(nn.Module):
        def __init__(self, gain: float) -> None:
            super().__init__()
            self.gain = gain

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.cat([inputs <= 0.5, inputs > 0.5], 1) * self.gain

    batch = replace(make_crops(6, (5, 5, 5)), images=images, labels=labels)
    assert SegmentationLoss(Oracle(100.0), options, 0)(batch, 0)["loss"] < 1e-3
    assert SegmentationLoss(Oracle(0.0), options, 0)(batch, 0)["loss"] > 0.5
