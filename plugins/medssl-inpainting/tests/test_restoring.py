"""Context encoder, restoration and masked autoencoder keep the public contract, and hide and damage what they say."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from medssl_inpainting import ContextEncoder, MaskedAutoencoder, Restoration
from medssl_inpainting.masked_autoencoder import image_of, patches
from medssl_inpainting.restoration import bent, shuffled

from medssl.contracts import Draw
from medssl.errors import NetworkError
from medssl.testing import PretextTaskContract, make_crops, make_info


class TestContextEncoder(PretextTaskContract):
    task = ContextEncoder


class TestJudgedHoles(PretextTaskContract):
    task = ContextEncoder
    channels = 2
    options: ClassVar = {"holes": 3, "side": 0.3, "adversarial": 0.01}


class TestRestoration(PretextTaskContract):
    task = Restoration


class TestMaskedAutoencoder(PretextTaskContract):
    task = MaskedAutoencoder


DRAW = [0, 1, 2, 3]


@pytest.mark.parametrize("size", [(32, 24), (12, 16, 20)])
def test_a_hole_is_a_box_of_its_size_with_a_band_inside(size):
    crops = make_crops(4, size)
    batch = ContextEncoder(ContextEncoder.Options(overlap=2), make_info(len(size))).make(crops, Draw(0, 0, DRAW, "x"))
    for row in range(4):
        where = batch.extra["hidden"][row, 0].nonzero()
        sides = where.amax(dim=0) - where.amin(dim=0) + 1
        assert sides.tolist() == [side // 2 for side in size] and len(where) == sides.prod()
        heavy = (batch.weight[row, 0] == 10).sum()
        assert heavy == sides.prod() - (sides - 4).clamp_min(0).prod()
    changed = crops.with_images(torch.where(batch.extra["hidden"], crops.images + 5, crops.images))
    again = ContextEncoder(ContextEncoder.Options(overlap=2), make_info(len(size))).make(changed, Draw(0, 0, DRAW, "x"))
    torch.testing.assert_close(again.inputs, batch.inputs)


def test_the_network_gets_the_judges_gradient_turned_round():
    task = ContextEncoder(ContextEncoder.Options(adversarial=0.5), make_info(2))
    crops = make_crops(2, (16, 16))
    batch = task.make(crops, Draw(0, 0, [0, 1], "x"))
    answer = batch.target.clone().requires_grad_()  # the squared error is 0 here, so the gradient is the judge's alone
    (turned,) = torch.autograd.grad(task.loss(answer, batch).sum(), answer)
    plain = torch.where(batch.extra["hidden"], answer, batch.target)
    (straight,) = torch.autograd.grad(torch.nn.functional.softplus(task.judge(plain)).flatten(1).mean(dim=1).sum(), answer)
    torch.testing.assert_close(turned, -0.5 * straight)
    assert straight.abs().sum() > 0


@pytest.mark.parametrize("falling", [0.0, 1.0])
def test_curves_are_monotone_from_corner_to_corner(falling):
    curve = bent(falling, Draw(0, 0, DRAW, "x"))
    steps = curve.diff(dim=1)
    assert (steps <= 1e-6).all() if falling else (steps >= -1e-6).all()
    ends = torch.tensor([1.0, 0.0]) if falling else torch.tensor([0.0, 1.0])
    torch.testing.assert_close(curve[:, [0, -1]], ends.expand(4, 2), atol=1e-4, rtol=0)
    assert (curve[0] - curve[1]).abs().max() > 0.05


def test_a_curve_keeps_the_order_of_values_and_their_range():
    images = torch.randn(4, 2, 20, 21, 22) * 300 - 500
    crops = make_crops(4, (20, 21, 22), channels=2).with_images(images)
    task = Restoration(Restoration.Options(curve=1, falling=0, shuffle=0, paint=0), make_info(3, channels=2))
    made = task.make(crops, Draw(0, 0, DRAW, "x")).inputs
    for before, after in zip(images.flatten(0, 1).flatten(1), made.flatten(0, 1).flatten(1), strict=True):
        # One of 4,096 levels counts as the other where they lie closer than that.
        steps = after[before.argsort()].diff()
        assert steps.min() >= 0
        torch.testing.assert_close(torch.stack(after.aminmax()), torch.stack(before.aminmax()))
    assert (made - images).abs().max() > 10


@pytest.mark.parametrize("size", [(30, 22), (20, 22, 24)])
def test_shuffling_permutes_within_blocks(size):
    axes = torch.stack(torch.meshgrid(*[torch.arange(float(side)) for side in size], indexing="ij"))
    shares = []
    for seed in range(20):
        moved = shuffled(axes, 5, seed)
        assert torch.equal(torch.unique(moved.flatten(1), dim=1), torch.unique(axes.flatten(1), dim=1)), "a voxel came twice or was lost"
        away = (moved - axes).abs()
        assert away.max() < 5
        shares.append((away > 0).any(dim=0).float().mean())
    assert 0.2 < torch.stack(shares).mean() < 0.5, "half of the blocks, but for those that would not fit"
    assert not torch.equal(shuffled(axes, 5, 1), shuffled(axes, 5, 2))


def test_blocks_are_shuffled_differently():
    image = torch.arange(64.0**2).view(1, 64, 64)
    moved = shuffled(image, 2, 0) - image
    kinds = {tuple(block.tolist()) for block in moved.view(-1, 2).unique(dim=0)}
    assert len(kinds) > 4


def test_only_blocks_that_are_shown_are_shuffled():
    image = torch.arange(40.0**3).view(1, 40, 40, 40)
    box = (slice(3, 15), slice(20, 33), slice(0, 9))
    every, some = shuffled(image, 8, 7), shuffled(image, 8, 7, [box])
    assert (every != image)[0][box].any()
    differ = (every != image)[0][box] != (some != image)[0][box]
    assert differ.float().mean() < 0.02, "but for voxels that a permutation leaves"
    assert (some != image).sum() < (every != image).sum()


def test_nothing_is_done_where_no_chance_is_given():
    crops = make_crops(4, (16, 16))
    batch = Restoration(Restoration.Options(curve=0, shuffle=0, paint=0), make_info(2)).make(crops, Draw(0, 0, DRAW, "x"))
    torch.testing.assert_close(batch.inputs, crops.images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("inner", "share"), [(0.0, (0.6, 0.8)), (1.0, (0.03, 0.05))])
def test_painting_is_inside_or_outside_of_boxes(inner, share):
    crops = make_crops(40, (24, 24, 24))
    task = Restoration(Restoration.Options(curve=0, shuffle=0, paint=1, inner=inner), make_info(3))
    made = task.make(crops, Draw(0, 0, range(40), "x")).inputs
    painted = made != crops.images
    assert share[0] < painted.float().mean() < share[1]
    for image, before, where in zip(made, crops.images, painted, strict=True):
        low, high = before.aminmax()
        noise = (image[where] - low) / (high - low)
        assert noise.min() >= -1e-6 and noise.max() <= 1 + 1e-6 and abs(noise.mean() - 0.5) < 0.08
        assert abs(noise.std() - 12**-0.5) < 0.05


def test_a_sample_is_damaged_alike_in_any_batch():
    crops = make_crops(4, (24, 26, 28), channels=2)
    task = Restoration(Restoration.Options(), make_info(3, channels=2))
    whole = task.make(crops, Draw(0, 5, DRAW, "x")).inputs
    single = make_crops(1, (24, 26, 28), channels=2)
    alone = torch.cat([task.make(single.with_images(crops.images[[row]]), Draw(0, 5, [row], "x")).inputs for row in DRAW])
    assert torch.equal(whole, alone)
    assert not torch.equal(whole, task.make(crops, Draw(0, 6, DRAW, "x")).inputs)


def test_patches_are_those_of_the_tokens():
    images = torch.arange(2 * 8 * 12.0).view(1, 2, 8, 12)
    found = patches(images, (4, 4))
    assert torch.equal(found[0, 4].view(2, 4, 4), images[0, :, 4:8, 4:8])


@pytest.mark.parametrize(("size", "sides"), [((8, 12), (4, 2)), ((4, 6, 8), (2, 3, 4))])
def test_patches_make_the_image_that_they_were_cut_from(size, sides):
    images = torch.randn(2, 3, *size)
    assert torch.equal(image_of(patches(images, sides), images, sides), images)


@pytest.mark.parametrize("normalise", [False, True])
def test_the_picture_fills_hidden_patches_alone(normalise):
    crops = make_crops(2, (16, 16))
    task = MaskedAutoencoder(MaskedAutoencoder.Options(normalise=normalise), make_info(2, crop=(16, 16), tokens=True))
    batch = task.make(crops, Draw(0, 0, crops.index, "x"))
    shown = task.picture(batch.target, batch)
    torch.testing.assert_close(shown["prediction"], crops.images, atol=1e-5, rtol=0)
    assert torch.equal(shown["target"], crops.images)
    seen = image_of(1 - batch.weight.expand_as(batch.target), crops.images, (4, 4)) > 0
    assert torch.equal(shown["input"][seen], crops.images[seen]) and not torch.equal(shown["input"], crops.images)


def test_encoders_without_tokens_are_refused():
    with pytest.raises(NetworkError, match="ViT or UNETR"):
        MaskedAutoencoder(MaskedAutoencoder.Options(), make_info(2))
