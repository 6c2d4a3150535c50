"""Resampling against torch's and scipy's own, and its affine against coordinates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from medssl.augment import ViewOptions, draw_affine, identity, invert, is_identity, make_view, resample, resample_nearest, shown_by
from medssl.augment.spatial import _sample, about_centre, rotation
from medssl.contracts import Draw

SIZES = [(9, 12), (8, 8), (7, 9, 10), (6, 6, 6), (1, 5, 7)]


def coordinates(size: tuple[int, ...]) -> Tensor:
    """(1, D, *size): every voxel says where it is."""
    axes = torch.meshgrid(*[torch.arange(side, dtype=torch.float32) for side in size], indexing="ij")
    return torch.stack(axes)[None]


def affine_of(kind: str, size: tuple[int, ...], seed: int) -> Tensor:
    """An affine that takes each of the ways of `resample`."""
    generator = torch.Generator().manual_seed(seed)
    dims = len(size)
    scale = torch.diag_embed(0.8 + 0.4 * torch.rand(1, dims, generator=generator))
    flips = torch.diag_embed(1.0 - 2.0 * torch.randint(0, 2, (1, dims), generator=generator))
    angle = torch.rand(1, generator=generator) - 0.5
    turn = rotation(torch.randint(0, 3, (1,), generator=generator), angle, dims)
    general = turn @ rotation(torch.randint(0, 3, (1,), generator=generator), angle + 0.1, dims)
    matrix = {"identity": torch.eye(dims)[None], "flip": flips, "scale": scale @ flips, "rotate": turn @ scale, "general": general}[kind]
    affine = about_centre(matrix, size)
    if kind in ("scale", "rotate", "general"):
        affine[..., -1] += torch.rand(1, dims, generator=generator) - 0.5
    return affine


@settings(max_examples=80, deadline=None)
@given(kind=st.sampled_from(["identity", "flip", "scale", "rotate", "general"]), size=st.sampled_from(SIZES), seed=st.integers(0, 10_000))
def test_resampling_agrees_with_scipy(kind: str, size: tuple[int, ...], seed: int) -> None:
    affine = affine_of(kind, size, seed)
    image = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(seed))
    view = resample(image, affine)
    matrix, offset = affine[0, :, :-1].double().numpy(), affine[0, :, -1].double().numpy()
    for channel in range(2):
        expected = ndimage.affine_transform(image[0, channel].double().numpy(), matrix, offset, order=1, mode="nearest")
        np.testing.assert_allclose(view[0, channel].numpy(), expected, atol=2e-3)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(["identity", "flip", "scale", "rotate", "general"]), size=st.sampled_from(SIZES), seed=st.integers(0, 10_000))
def test_nearest_voxels_agree_with_scipy(kind: str, size: tuple[int, ...], seed: int) -> None:
    affine = affine_of(kind, size, seed)
    labels = torch.randint(0, 9, (1, 2, *size), generator=torch.Generator().manual_seed(seed))
    view = resample_nearest(labels, affine, -1)
    assert view.dtype == labels.dtype
    matrix, offset = affine[0, :, :-1].double().numpy(), affine[0, :, -1].double().numpy()
    where = np.tensordot(matrix, coordinates(size)[0].double().numpy(), 1) + offset.reshape(-1, *[1] * len(size))
    clear = (np.abs(where - np.floor(where) - 0.5) > 1e-3).all(axis=0)
    for channel in range(2):
        expected = ndimage.affine_transform(labels[0, channel].numpy(), matrix, offset, order=0, mode="grid-constant", cval=-1)
        np.testing.assert_array_equal(view[0, channel].numpy()[clear], expected[clear])


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(["flip", "scale", "rotate", "general"]), size=st.sampled_from(SIZES), seed=st.integers(0, 10_000))
def test_the_affine_says_where_each_voxel_came_from(kind: str, size: tuple[int, ...], seed: int) -> None:
    affine = affine_of(kind, size, seed)
    view = resample(coordinates(size), affine)[0]
    voxels = coordinates(size)[0].flatten(1)
    source = (affine[0, :, :-1] @ voxels + affine[0, :, -1:]).view(len(size), *size)
    limit = torch.tensor([side - 1 for side in size]).view(-1, *[1] * len(size))
    inside = ((source >= 0) & (source <= limit)).all(0)
    assert (view - source)[:, inside].abs().max() < 1e-3 if inside.any() else True


@pytest.mark.parametrize("kind", ["flip", "scale", "rotate", "general"])
@pytest.mark.parametrize("size", [(9, 12), (7, 9, 10)])
def test_each_way_gives_what_the_general_way_gives(kind: str, size: tuple[int, ...]) -> None:
    for seed in range(10):
        affine, image = affine_of(kind, size, seed), torch.randn(1, 3, *size)
        torch.testing.assert_close(resample(image, affine), _sample(image, affine), atol=1e-4, rtol=1e-4)


def test_a_flip_moves_numbers_and_changes_none() -> None:
    image = torch.randn(1, 1, 5, 6, 7)
    affine = about_centre(torch.diag_embed(torch.tensor([[-1.0, 1.0, -1.0]])), (5, 6, 7))
    assert torch.equal(resample(image, affine), image.flip(2, 4))


@settings(max_examples=40, deadline=None)
@given(size=st.sampled_from([(16, 16), (12, 20), (12, 12, 12), (10, 14, 12)]), step=st.integers(0, 1000))
def test_there_and_back_is_the_crop_where_it_is_shown(size: tuple[int, ...], step: int) -> None:
    options = ViewOptions(rotate=25, scale=1.2, shift=0.1)
    affine = draw_affine(size, options, Draw(0, step, [0], "views"))
    ramp = coordinates(size)
    back = resample(resample(ramp, affine), invert(affine))
    shown = shown_by(affine, size)
    assert shown.shape == (1, 1, *size) and shown.any()
    error = torch.where(shown, back - ramp, 0).abs()
    # A voxel at the border of the view is interpolated from one that was clamped; one voxel further in it is exact.
    inner = shown.float()
    for axis in range(2, inner.dim()):
        inner = torch.minimum(inner, torch.minimum(inner.roll(1, axis), inner.roll(-1, axis)))
    deep = torch.where(inner.bool(), error, 0)
    assert error.max() < 2.5 and deep.median() < 1e-3


def test_voxels_that_a_shift_moves_out_are_not_shown() -> None:
    affine = identity(1, 2)
    affine[0, 0, -1] = 3.0
    shown = shown_by(affine, (8, 5))[0, 0]
    assert not shown[:3].any() and shown[3:].all()
    assert shown_by(identity(2, 3), (4, 4, 4)).all()


def test_a_flip_shows_every_voxel() -> None:
    affine = about_centre(torch.diag_embed(torch.tensor([[-1.0, -1.0]])), (8, 5))
    assert shown_by(affine, (8, 5)).all()


def test_rotation_is_rigid_in_millimetres() -> None:
    options = ViewOptions(flip=0, rotate=90, scale=1, shift=0)
    spacing = torch.tensor([[1.0, 0.5, 4.0]]).expand(20, 3)
    affine = draw_affine((10, 20, 5), options, Draw(3, 0, range(20), "views"), spacing)
    scale = torch.diag_embed(spacing)
    rigid = scale @ affine[..., :-1] @ torch.linalg.inv(scale)
    torch.testing.assert_close(rigid @ rigid.mT, torch.eye(3).expand(20, 3, 3), atol=1e-5, rtol=1e-5)
    assert not is_identity(affine)


def test_gradients_pass_through_every_way() -> None:
    for kind in ("flip", "scale", "rotate", "general"):
        image = torch.randn(1, 1, 6, 6, 6, requires_grad=True)
        resample(image, affine_of(kind, (6, 6, 6), 1)).sum().backward()
        assert image.grad is not None and float(image.grad.sum()) == pytest.approx(216, rel=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (12, 14, 10)])
def test_a_view_is_a_function_of_the_draw_and_of_nothing_else(size: tuple[int, ...]) -> None:
    images = torch.randn(3, 2, *size)
    one, affine = make_view(images, ViewOptions(), Draw(0, 5, [0, 1, 2], "views"))
    torch.manual_seed(1)
    other, again = make_view(images, ViewOptions(), Draw(0, 5, [0, 1, 2], "views"))
    assert torch.equal(one, other) and torch.equal(affine, again)
    alone, _ = make_view(images[1:2], ViewOptions(), Draw(0, 5, [1], "views"))
    torch.testing.assert_close(alone, one[1:2], atol=1e-5, rtol=1e-5)
    assert not torch.equal(one, make_view(images, ViewOptions(), Draw(0, 6, [0, 1, 2], "views"))[0])


def test_ranges_are_kept() -> None:
    options = ViewOptions(flip=0, rotate=10, scale=1.1, shift=0.1)
    affines = draw_affine((20, 20), options, Draw(0, 0, range(200), "views"))
    scale = torch.linalg.det(affines[..., :-1]).sqrt()
    assert scale.min() >= 1 / 1.1 - 1e-5 and scale.max() <= 1.1 + 1e-5 and scale.std() > 0.01
    angle = torch.atan2(affines[:, 1, 0], affines[:, 0, 0]) * 180 / math.pi
    assert angle.abs().max() <= 10.001 and angle.std() > 3
    centre = affines[..., :-1] @ torch.full((2, 1), 9.5) + affines[..., -1:] - 9.5
    assert centre.abs().max() <= 2.001


def test_options_off_leave_the_crop_alone() -> None:
    still = ViewOptions(flip=0, rotate=0, scale=1, shift=0, contrast=0, gamma=1, noise=0, blur=0)
    images = torch.randn(2, 1, 9, 8, 7)
    view, affine = make_view(images, still, Draw(0, 0, [0, 1], "views"))
    assert is_identity(affine) and torch.equal(view, images)
