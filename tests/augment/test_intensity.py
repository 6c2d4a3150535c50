"""Intensity operations against scipy's and their own definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from medssl.augment import add_noise, blur, contrast, gamma, spread


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
