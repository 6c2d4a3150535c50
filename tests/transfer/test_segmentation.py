"""Segmentation as a term: its loss is MONAI's where everything is labelled, voxels without a label count for nothing, labels follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from medssl.augment import ViewOptions, blur
from medssl.config import check
from medssl.contracts import Crops, Draw, PretextBatch
from medssl.errors import ConfigError, DataError
from medssl.learn import Objective, freeze_unreached
from medssl.learn.terms import BuiltTerm
from medssl.networks import as_spec
from medssl.testing import PretextTaskContract, make_crops, make_info, select
from medssl.transfer.options import FinetuneConfig
from medssl.transfer.segmentation import AugmentOptions, Segmentation, change_intensities, draw_flips, flip


def labelled(dims: int = 3, batch: int = 6, size: int = 8) -> Crops:
    crops = make_crops(batch, (size,) * dims)
    return replace(crops, labels=(crops.images > 0.5).long() + (crops.images > 1.2).long())


def build(dims: int = 3, batch_dice: bool = True, **augment: Any) -> Segmentation:
    return Segmentation(Segmentation.Options(augment=AugmentOptions(**augment), batch_dice=batch_dice), make_info(dims))


class TestSegmentation(PretextTaskContract):
    """Without augmentation it asks everyone the same."""

    task = Segmentation
    options = {"augment": {"scale": 0.1}}  # noqa: RUF012

    def crops(self, dims: int, seed: int = 0) -> Crops:
        crops = super().crops(dims, seed)
        return replace(crops, labels=(crops.images > 0.5).long())

    def objective(self, dims: int) -> Objective:
        objective = super().objective(dims)
        spec = objective.spec.model_copy(update={"out_channels": 2})
        term = BuiltTerm("segmentation", self.build(dims), 1.0)
        return Objective(spec.build(seed=0), spec, [term], [], ViewOptions(), 0)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_the_loss_is_monais_where_every_voxel_has_a_label(dims: int, batch_dice: bool) -> None:
    crops, task = labelled(dims), build(dims, batch_dice)
    logits = torch.randn(len(crops), 3, *crops.size, generator=torch.Generator().manual_seed(1), requires_grad=True)
    ours = task.loss(logits, PretextBatch(crops.images, crops.labels)).mean()
    peer = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=batch_dice)(logits, crops.labels)
    torch.testing.assert_close(ours, peer)
    (mine,), (theirs,) = torch.autograd.grad(ours, logits), torch.autograd.grad(peer, logits)
    torch.testing.assert_close(mine, theirs)


def test_what_has_no_label_counts_for_nothing() -> None:
    crops, task = labelled(batch=4), build(scale=0, shift=0, noise=0)
    assert crops.labels is not None
    logits = torch.randn(4, 3, *crops.size, generator=torch.Generator().manual_seed(1))
    expected = task.loss(logits[:2], PretextBatch(None, crops.labels[:2]))
    unlabelled = torch.cat([crops.labels[:2], torch.full_like(crops.labels[2:], -1)])
    batch = task.make(replace(crops, labels=unlabelled), Draw(0, 0, crops.index, "segmentation"))
    assert batch.answerable is not None and batch.answerable.tolist() == [True, True, False, False]
    torch.testing.assert_close(task.loss(logits, batch)[:2], expected)
    partly = crops.labels.clone()
    partly[..., :3] = -1
    shifted = logits.clone()
    shifted[..., :3] += 100 * torch.randn(4, 3, 8, 8, 3)
    one, other = (task.loss(values, PretextBatch(None, partly)) for values in (logits, shifted))
    torch.testing.assert_close(one, other)


def test_perfect_logits_cost_nothing_and_uniform_ones_do() -> None:
    crops, task = labelled(), build()
    assert crops.labels is not None
    right = nn.functional.one_hot(crops.labels[:, 0], 3).movedim(-1, 1).float()
    batch = PretextBatch(None, crops.labels)
    assert task.loss(right * 100, batch).max() < 1e-3
    assert task.loss(right * 0, batch).min() > 0.5


@pytest.mark.parametrize("dims", [2, 3])
def test_labels_follow_flips_and_answers_are_brought_back(dims: int) -> None:
    crops = labelled(dims)
    task = build(dims, flip=tuple(range(dims)), scale=0, shift=0, noise=0)
    batch = task.make(crops, Draw(0, 0, crops.index, "segmentation"))
    assert batch.inputs is not None and batch.restore is not None
    assert torch.equal((batch.inputs > 0.5).long() + (batch.inputs > 1.2).long(), batch.target)
    assert not torch.equal(batch.inputs, crops.images)
    assert torch.equal(batch.restore(batch.inputs), crops.images)


def test_intensities_change_and_inputs_do_not() -> None:
    crops = make_crops(6, (5, 5, 5))
    before = crops.images.clone()
    changed = change_intensities(crops.images, AugmentOptions(), Draw(0, 0, range(6), "t"))
    assert torch.equal(crops.images, before)
    assert (changed - crops.images).abs().flatten(1).amax(1).min() > 0
    plain = change_intensities(crops.images, AugmentOptions(scale=0, shift=0, noise=0), Draw(0, 0, range(6), "t"))
    assert torch.equal(plain, crops.images)


def test_a_crop_does_not_depend_on_its_neighbours() -> None:
    images, options = make_crops(6, (5, 5, 5)).images, AugmentOptions(flip=(0, 1, 2))

    def changed(rows: list[int]) -> Tensor:
        draw = Draw(3, 7, rows, "t")
        return change_intensities(flip(images[rows], draw_flips(options, draw, 3)), options, draw)

    torch.testing.assert_close(changed(list(range(6)))[4:5], changed([4]))


def test_crops_without_labels_are_one_message() -> None:
    crops = select(labelled(), [0, 1])
    with pytest.raises(DataError, match=r"needs crops with labels.*data\.dataset"):
        build().make(replace(crops, labels=None), Draw(0, 0, crops.index, "segmentation"))


def test_it_trains_beside_a_network_whose_encoder_nobody_knows() -> None:
    class Strange(nn.Module):
        def __init__(self, out_channels: int = 2) -> None:
            super().__init__()
            self.layer = nn.Conv3d(1, out_channels, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(images)

    spec = as_spec(Strange).model_copy(update={"out_channels": 3})
    term = BuiltTerm("segmentation", build(), 1.0)
    objective = Objective(spec.build(seed=0), spec, [term], [], ViewOptions(), 0)
    assert freeze_unreached(objective, labelled()) == []
    loss = objective.run(labelled(), 0)["loss"]
    loss.backward()
    assert all(parameter.grad is not None for parameter in objective.network.parameters())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("elastic", [0, 2])
def test_labels_go_where_the_look_moves_voxels(dims: int, elastic: float) -> None:
    crops = labelled(dims, size=20)
    numbers = torch.arange(20.0).view(-1, *[1] * (dims - 1)).expand_as(crops.images).contiguous()
    crops = replace(crops, images=numbers, labels=numbers.long())
    look = {"rotate": 25, "scale": 1.2, "shift": 0.1, "elastic": elastic, "elastic_step": 8}
    batch = build(dims, scale=0, shift=0, noise=0, look=look).make(crops, Draw(0, 0, range(len(crops)), "t"))
    known = batch.target >= 0
    assert batch.inputs is not None and not torch.equal(batch.inputs, crops.images)
    assert known.any() and not known.all()
    assert (batch.inputs - batch.target)[known].abs().max() < 1
    still = build(dims, scale=0, shift=0, noise=0, look={"gamma": 1.5}).make(crops, Draw(0, 0, range(len(crops)), "t"))
    assert torch.equal(still.target, crops.labels)


def test_a_look_that_moves_voxels_is_taken_back() -> None:
    crops = labelled(3, size=24)
    smooth = blur(crops.images, torch.full((len(crops),), 2.0))
    batch = build(scale=0, shift=0, noise=0, look={"rotate": 10}).make(replace(crops, images=smooth), Draw(0, 0, range(len(crops)), "t"))
    assert batch.inputs is not None and batch.restore is not None
    inner = (..., *[slice(5, -5)] * 3)
    back, moved = (((one - smooth)[inner] ** 2).mean() for one in (batch.restore(batch.inputs), batch.inputs))
    assert back < 0.1 * moved


def test_what_moves_voxels_is_refused_beside_other_terms() -> None:
    given = {"network": "SegResNet", "data": {"dataset": "d", "size": [32, 32, 32]}, "tasks": [{"name": "inpainting"}]}
    check(FinetuneConfig, given | {"augment": {"look": {"gamma": 1.5, "elastic": 0}}})
    for look in ({"elastic": 2}, {"rotate": 5}):
        with pytest.raises(ConfigError, match="under `views:`"):
            check(FinetuneConfig, given | {"augment": {"look": look}})
    elastic = {"_target_": "monai.transforms.Rand2DElastic", "spacing": [8, 8], "magnitude_range": [1, 2]}
    with pytest.raises(ConfigError, match=r"take look\.elastic"):
        check(FinetuneConfig, given | {"augment": {"look": {"transforms": [elastic]}}})
