"""Intensity operations against scipy's and their own definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from medssl.augment import (
    add_noise,
    add_normal_noise,
    bias_field,
    blur,
    contrast,
    curve,
    drop_boxes,
    fill_uniform,
    gamma,
    look_up,
    lower_resolution,
    shuffle_boxes,
    spread,
)
from medssl.contracts import Draw


@pytest.mark.parametrize("size", [(16, 21), (10, 12, 14)])
@pytest.mark.parametrize("sigma", [0.5, 1.3])
def test_blur_agrees_with_scipy_away_from_the_border(size: tuple[int, ...], sigma: float) -> None:
    image = torch.randn(1, 1, *size)
    mine = blur(image, torch.tensor([sigma]))[0, 0].numpy()
    theirs = ndimage.gaussian_filter(image[0, 0].double().numpy(), sigma, truncate=4)
    edge = int(4 * sigma) + 1
    if min(size) > 2 * edge:
        inner = tuple(slice(edge, -edge) for _ in size)
        np.testing.assert_allclose(mine[inner], theirs[inner], atol=2e-3)


def test_blur_keeps_a_constant_and_no_blur_keeps_all() -> None:
    constant = torch.full((2, 1, 6, 7), 3.0)
    torch.testing.assert_close(blur(constant, torch.tensor([0.8, 3.0])), constant)
    image = torch.randn(1, 1, 6, 7)
    assert torch.equal(blur(image, torch.zeros(1)), image)


def test_contrast_scales_about_the_mean() -> None:
    image = torch.randn(2, 3, 8, 8) + 5
    changed = contrast(image, torch.tensor([2.0, 0.5]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(spread(changed), spread(image) * torch.tensor([2.0, 0.5]).view(2, 1, 1, 1))
    moved = (changed - image).mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(moved, spread(image) * torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), atol=1e-4, rtol=1e-4)


def test_gamma_keeps_range_and_order() -> None:
    image = torch.randn(2, 1, 9, 9)
    changed = gamma(image, torch.tensor([0.5, 2.0]))
    assert torch.equal(changed.flatten(1).argsort(1), image.flatten(1).argsort(1))
    torch.testing.assert_close(changed.amax((2, 3)), image.amax((2, 3)))
    torch.testing.assert_close(gamma(image, torch.ones(2)), image, atol=1e-5, rtol=1e-5)
    constant = torch.full((1, 1, 4, 4), -2.0)
    assert torch.equal(gamma(constant, torch.tensor([0.7])), constant)


def test_noise_has_the_amount_asked_for() -> None:
    image = torch.randn(2, 1, 64, 64) * 4
    noisy = add_noise(image, torch.randn(2, 1, 64, 64), torch.tensor([0.0, 0.5]))
    assert torch.equal(noisy[0], image[0])
    assert float((noisy[1] - image[1]).std()) == pytest.approx(2.0, rel=0.1)


def test_noise_is_normal_and_each_samples_own() -> None:
    image = torch.randn(2, 1, 61, 60, 59)
    noisy = add_normal_noise(image, Draw(0, 3, [0, 1], "noise"), torch.tensor([1.0, 0.5]))
    assert torch.equal(noisy[1:], add_normal_noise(image[1:], Draw(0, 3, [1], "noise"), torch.tensor([0.5])))
    noise = (noisy - image) / spread(image) / torch.tensor([1.0, 0.5]).view(2, 1, 1, 1, 1)
    assert not torch.equal(noise[0], noise[1])
    for one in noise.flatten(1).double().numpy():
        assert stats.kstest(one, "norm").statistic < 2 / len(one) ** 0.5
        assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.01
        assert abs(stats.kurtosis(one)) < 0.05


def test_uniform_noise_is_even_and_a_function_of_its_seed() -> None:
    made, again, other = (torch.empty(70, 61, 59) for _ in range(3))
    fill_uniform(made, 5, -3.0, 7.0)
    fill_uniform(again[10:20, :, :], 5, -3.0, 7.0)
    fill_uniform(other, 6, -3.0, 7.0)
    assert torch.equal(again[10:20].flatten()[:30000], made.flatten()[:30000]) and not torch.equal(made, other)
    one = made.flatten().double().numpy()
    assert -3 <= one.min() < -2.99 and 6.99 < one.max() <= 7
    assert stats.kstest(one, "uniform", args=(-3, 10)).statistic < 2 / len(one) ** 0.5
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.01


@pytest.mark.parametrize("low", [-5.0, 1e4])
def test_a_look_up_takes_the_nearest_entry_and_never_one_beyond(low: float) -> None:
    values = low + torch.rand(80, 40, 30) * 0.01
    values[0, 0, :2] = torch.tensor([low, low + 0.01])
    first, last = (float(end) for end in values.aminmax())
    made = torch.full((80, 40, 90), torch.nan)
    look_up(values, torch.linspace(0, 1, 4096), first, last, made[..., ::3])
    # In double precision: near 10,000 a float32 tells apart ten values in this range, no more.
    expected = (values.double() - first) / (last - first)
    assert (made[..., ::3] - expected).abs().max() < 2 / 4096 and made[..., 1].isnan().all()
    assert made[0, 0, 0] == 0 and made[0, 0, 3] == 1
    look_up(torch.zeros(4, 4), torch.linspace(2, 3, 8), 0.0, 0.0, constant := torch.empty(4, 4))
    assert (constant == 2).all()


@pytest.mark.parametrize("size", [(33, 40), (18, 20, 22)])
def test_a_lower_resolution_keeps_what_is_smooth_and_loses_what_is_fine(size: tuple[int, ...]) -> None:
    dims = len(size)
    image = torch.randn(2, 1, *size)
    assert torch.equal(lower_resolution(image, torch.ones(2, dims)), image)
    axes = torch.meshgrid(*[torch.arange(side, dtype=torch.float32) for side in size], indexing="ij")
    ramp = (3 * axes[0] - axes[1]).expand(2, 1, *size)
    factor = torch.tensor([[3.0] * dims, [1.0, *[2.5] * (dims - 1)]])
    inner = (..., *[slice(6, -6)] * dims)
    torch.testing.assert_close(lower_resolution(ramp, factor)[inner], ramp[inner], atol=0.02, rtol=0)
    constant = torch.full_like(image, 2.0)
    torch.testing.assert_close(lower_resolution(constant, factor), constant)
    assert (spread(lower_resolution(image, factor)).flatten() < 0.6 * spread(image).flatten()).all()


def test_a_curve_goes_through_its_heights_and_keeps_the_range() -> None:
    image = torch.linspace(-1, 3, 401).view(1, 1, 1, -1)
    heights = torch.tensor([[0.0, 0.1, 0.7, 1.0]])
    changed = curve(image, heights)
    expected = np.interp((image.flatten() + 1) / 4, np.linspace(0, 1, 4), heights[0]) * 4 - 1
    np.testing.assert_allclose(changed.flatten(), expected, atol=1e-5)
    straight = torch.linspace(0, 1, 5).expand(2, 5)
    noise = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(curve(noise, straight), noise, atol=1e-5, rtol=1e-5)
    constant = torch.full((1, 1, 4, 4), 7.0)
    assert torch.equal(curve(constant, heights), constant)


def test_a_bias_field_is_a_smooth_gain_on_what_exceeds_the_darkest() -> None:
    image = torch.full((2, 2, 24, 20, 16), 5.0)
    image[..., 0, 0, 0] = 1.0
    points = torch.rand(2, 1, 5, 5, 5, generator=torch.Generator().manual_seed(0)) - 0.5
    gain = (bias_field(image, points) - 1) / 4
    assert 0.6 < gain[..., 1:, :, :].min() < 0.95 and 1.05 < gain.max() < 1.7
    assert gain[..., 1:, :, :].diff(dim=2).abs().max() < 0.15
    assert torch.equal(gain[:, 0], gain[:, 1])
    torch.testing.assert_close(bias_field(image, torch.zeros(2, 1, 5, 5, 5)), image)


def test_boxes_hide_what_is_in_them() -> None:
    image = torch.randn(2, 2, 9, 8)
    corner, size = torch.tensor([[[2, 3], [0, 0]], [[5, 5], [0, 0]]]), torch.tensor([[[4, 5], [1, 1]], [[0, 3], [0, 0]]])
    changed = drop_boxes(image, corner, size)
    hidden = torch.zeros(9, 8, dtype=torch.bool)
    hidden[2:6, 3:8], hidden[0, 0] = True, True
    assert torch.equal(changed[1], image[1])
    assert torch.equal(changed[0][:, ~hidden], image[0][:, ~hidden])
    torch.testing.assert_close(changed[0][:, hidden], image[0].mean((1, 2)).unsqueeze(1).expand(-1, 21))


def test_voxels_are_shuffled_within_their_boxes() -> None:
    image = torch.arange(2 * 2 * 9 * 8.0).view(2, 2, 9, 8)
    corner, order = torch.tensor([[[2, 3]], [[0, 0]]]), torch.tensor([[8, 7, 6, 5, 4, 3, 2, 1, 0], [*range(9)]])
    changed = shuffle_boxes(image, corner, 3, order)
    assert torch.equal(changed[1], image[1])
    assert torch.equal(changed[0, :, 2:5, 3:6], image[0, :, 2:5, 3:6].flip(1, 2))
    outside = torch.ones(9, 8, dtype=torch.bool)
    outside[2:5, 3:6] = False
    assert torch.equal(changed[0][:, outside], image[0][:, outside])
