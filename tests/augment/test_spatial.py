"""Resampling against torch's and scipy's own, and its affine against coordinates."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from medssl.augment import (
    Look,
    ViewOptions,
    between_points,
    draw_affine,
    draw_warp,
    identity,
    invert,
    is_identity,
    make_view,
    points_for,
    resample,
    resample_nearest,
    shown_by,
    view_of,
)
from medssl.augment.spatial import _coordinates, _sample, about_centre, rotation
from medssl.config import check
from medssl.contracts import Draw
from medssl.errors import ConfigError
from medssl.testing import make_crops

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
        torch.testing.assert_close(resample(image, affine), _sample(image, _coordinates(affine, size)), atol=1e-4, rtol=1e-4)


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


@pytest.mark.parametrize("kind", ["scale", "rotate", "general"])
@pytest.mark.parametrize(("size", "seen"), [((9, 12), (14, 7)), ((18, 9, 10), (23, 12, 5)), ((5, 6, 40), (40, 6, 5))])
def test_a_change_of_spacing_is_part_of_the_same_interpolation(kind: str, size: tuple[int, ...], seen: tuple[int, ...]) -> None:
    ratio = torch.tensor([a / b for a, b in zip(size, seen, strict=True)])
    for seed in range(5):
        turn = affine_of(kind, size, seed)[..., :-1]
        affine = about_centre(turn @ torch.diag(ratio), size, seen)
        image = torch.randn(1, 2, *size)
        view, labels = resample(image, affine, seen), resample_nearest((image > 0).long(), affine, 0, seen)
        matrix, offset = affine[0, :, :-1].double().numpy(), affine[0, :, -1].double().numpy()
        expected = ndimage.affine_transform(image[0, 1].double().numpy(), matrix, offset, seen, order=1, mode="nearest")
        np.testing.assert_allclose(view[0, 1].numpy(), expected, atol=2e-3)
        assert labels.shape == view.shape
        middle = torch.tensor([[(side - 1) / 2] for side in seen])
        centre = affine[0, :, :-1] @ middle + affine[0, :, -1:]
        torch.testing.assert_close(centre[:, 0], torch.tensor([(side - 1) / 2 for side in size]))


@pytest.mark.parametrize("size", [(12, 10), (20, 12, 14)])
def test_a_displacement_is_added_to_where_the_affine_leads(size: tuple[int, ...]) -> None:
    affine, dims = affine_of("general", size, 3), len(size)
    displacement = between_points(4 * torch.rand(1, dims, *points_for(size, 6), generator=torch.Generator().manual_seed(0)) - 2, size)
    image = torch.randn(1, 2, *size)
    voxels = coordinates(size)[0].flatten(1)
    where = (affine[0, :, :-1] @ voxels + affine[0, :, -1:]).view(dims, *size) + displacement[0]
    expected = ndimage.map_coordinates(image[0, 1].double().numpy(), where.double().numpy(), order=1, mode="nearest")
    np.testing.assert_allclose(resample(image, affine, displacement=displacement)[0, 1].numpy(), expected, atol=2e-3)
    labels = torch.randint(0, 9, (1, 1, *size))
    nearest = resample_nearest(labels, affine, -1, displacement=displacement)
    picked = ndimage.map_coordinates(labels[0, 0].numpy(), where.double().numpy(), order=0, mode="grid-constant", cval=-1)
    clear = (np.abs(where.numpy() - np.floor(where.numpy()) - 0.5) > 1e-3).all(axis=0)
    np.testing.assert_array_equal(nearest[0, 0].numpy()[clear], picked[clear])


def test_large_volumes_are_sampled_as_exactly_as_torch_samples_them() -> None:
    """In slabs, as planes: what is rounded is a thousandth of what linear interpolation itself gets wrong."""
    size = (70, 90, 80)
    axes = torch.meshgrid(*[torch.linspace(0, 9, side) for side in size], indexing="ij")
    image = sum(torch.sin(axis * rate) for rate, axis in enumerate(axes, 2))[None, None]
    affine = affine_of("general", size, 4)
    matrix, offset = affine[0, :, :-1].double().numpy(), affine[0, :, -1].double().numpy()
    cubic = ndimage.affine_transform(image[0, 0].double().numpy(), matrix, offset, order=3, mode="nearest")
    error, torchs = (
        float(np.sqrt(np.mean((view[0, 0].numpy() - cubic) ** 2)))
        for view in (resample(image, affine), _sample(image, _coordinates(affine, size)))
    )
    assert error < 1.02 * torchs


def test_an_elastic_displacement_folds_nothing() -> None:
    step = 8
    for seed in range(20):
        points = torch.rand(1, 3, *points_for((24, 24, 24), step), generator=torch.Generator().manual_seed(seed)).round()
        moved = coordinates((24, 24, 24)) + between_points((2 * points - 1) * 0.4 * step, (24, 24, 24))
        rows = torch.stack([moved.diff(dim=axis + 2)[..., :23, :23, :23] for axis in range(3)], 1)
        assert torch.linalg.det(rows[0].permute(2, 3, 4, 0, 1)).min() > 0


@pytest.mark.parametrize("size", [(16, 18), (12, 14, 10)])
def test_every_change_is_a_function_of_the_draw_alone(size: tuple[int, ...]) -> None:
    look = {"rotate_about": "any", "stretch": 1.3, "shear": 0.2, "elastic": 3, "elastic_step": 8, "curve": 0.8, "bias": 0.5}
    options = ViewOptions.model_validate(look | {"low_resolution": 3, "dropout": 0.4, "invert": 0.3, "chance": 0.6})
    images = torch.randn(4, 2, *size)
    one, _ = make_view(images, options, Draw(0, 5, range(4), "views"))
    torch.manual_seed(1)
    other, _ = make_view(images, options, Draw(0, 5, range(4), "views"))
    alone, _ = make_view(images[2:3], options, Draw(0, 5, [2], "views"))
    assert torch.equal(one, other) and one.isfinite().all()
    torch.testing.assert_close(alone, one[2:3], atol=1e-5, rtol=1e-5)
    never, affine = make_view(images, options.model_copy(update={"chance": 0.0, "flip": 0.0, "invert": 0.0}), Draw(0, 5, range(4), "views"))
    assert is_identity(affine)
    torch.testing.assert_close(never, images, atol=1e-4, rtol=1e-4)


def test_any_rotation_turns_about_all_axes_and_stays_rigid() -> None:
    options = ViewOptions(flip=0, rotate=30, scale=1, shift=0, rotate_about="any")
    turns = draw_affine((10, 10, 10), options, Draw(3, 0, range(20), "views"))[..., :-1]
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3).expand(20, 3, 3), atol=1e-5, rtol=1e-5)
    assert (turns - torch.eye(3)).abs().gt(1e-3).all(dim=0).all()


def test_labels_and_body_go_where_an_elastic_view_goes() -> None:
    crops = make_crops(3, (20, 16, 18))
    axes = coordinates(crops.size)
    crops = replace(crops, images=axes[:, :1].expand(3, -1, -1, -1, -1).contiguous(), labels=axes[:, :1].expand(3, -1, -1, -1, -1).long())
    crops = replace(crops, body=crops.labels % 2 == 0)
    look = Look(contrast=0, gamma=1, noise=0, blur=0, elastic=4, elastic_step=10)
    view, affine = view_of(crops, look, Draw(0, 0, range(3), "views"))
    warp = draw_warp(crops.size, look, Draw(0, 0, range(3), "views").fork("affine"), crops.spacing)
    assert torch.equal(affine, warp.affine) and warp.displacement is not None and warp.displacement.abs().max() > 1
    assert view.labels is not None and view.body is not None
    known = view.labels >= 0
    assert known.any() and not known.all()
    assert (view.images - view.labels)[known].abs().max() < 1
    assert torch.equal(view.body, known & (view.labels % 2 == 0))


@pytest.mark.parametrize("wrong", [{"elastic": 10, "elastic_step": 20}, {"shear": 2}, {"low_resolution": 0.5}])
def test_changes_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        check(ViewOptions, wrong)
