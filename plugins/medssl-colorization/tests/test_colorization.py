"""Colorization and cross-modality keep the public contract, and hide what they ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from medssl_colorization import Colorization, CrossModality
from medssl_colorization.lab import bins_of, lab_of, middles_of, rgb_of

from medssl.contracts import Draw
from medssl.errors import ConfigError, DataError
from medssl.testing import PretextTaskContract, make_crops, make_info


class TestColorization(PretextTaskContract):
    task = Colorization


class TestCrossModality(PretextTaskContract):
    task = CrossModality


class TestToOneChannel(PretextTaskContract):
    task = CrossModality
    channels = 2
    random = False
    options: ClassVar = {"target": "channel 1", "distance": "l2"}


def coloured(rgb):
    """Crops whose files held `rgb` (B, 3, *size) in 0 .. 255."""
    crops = make_crops(len(rgb), rgb.shape[2:], 3)
    return replace(crops.with_images((rgb - 40) / 100), rescale=torch.tensor([100.0, 40.0]).expand(len(rgb), 3, 2))


def test_lab_is_scikit_images():
    color = pytest.importorskip("skimage.color", reason="scikit-image is what colours are compared with")
    rgb = torch.rand(2, 3, 8, 9)
    expected = torch.stack([torch.from_numpy(color.rgb2lab(image.movedim(0, -1).numpy())).movedim(-1, 0) for image in rgb])
    torch.testing.assert_close(lab_of(rgb), expected.float(), atol=0.02, rtol=0)


def test_lab_of_known_colours():
    rgb = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]]).view(4, 3, 1, 1)
    expected = torch.tensor([[100.0, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]])
    torch.testing.assert_close(lab_of(rgb).view(4, 3), expected, atol=0.05, rtol=0)


def test_colours_come_back_and_lie_in_the_bins_that_they_are_drawn_from():
    rgb = torch.rand(2, 3, 8, 9)
    lab = lab_of(rgb)
    torch.testing.assert_close(rgb_of(lab), rgb, atol=2e-3, rtol=0)
    bins = bins_of(lab[:, 1:], 10.0)
    middles = middles_of(bins, 10.0)
    assert torch.equal(bins_of(middles, 10.0), bins) and (middles - lab[:, 1:]).abs().max() <= 5.01


def test_the_network_sees_luminance_alone_and_black_is_not_asked_about():
    rgb = torch.rand(3, 3, 16, 16) * 200 + 40
    rgb[..., :8] = 0.0
    crops = coloured(rgb)
    task = Colorization(Colorization.Options(), make_info(2, 3))
    batch = task.make(crops, Draw(0, 0, crops.index, "x"))
    assert batch.inputs.shape == (3, 1, 16, 16)
    assert (batch.weight[..., :8] == 0).all() and (batch.weight[..., 8:] == 1).all()
    torch.testing.assert_close(batch.inputs, lab_of(rgb / 255)[:, :1] / 50 - 1, atol=1e-4, rtol=0)


def test_rare_colours_count_more():
    rgb = torch.zeros(1, 3, 10, 10)
    rgb[:, 0], rgb[:, 2, 0, 0] = 200.0, 255.0
    rgb[:, 0, 0, 0] = 0.0
    crops = coloured(rgb)
    task = Colorization(Colorization.Options(uniform=0.1), make_info(2, 3))
    batch = task.make(crops, Draw(0, 0, crops.index, "x"))
    for _ in range(100):
        task.commit(torch.zeros(0), batch)
    torch.testing.assert_close(task.share.sum(), torch.tensor(1.0))
    right = torch.nn.functional.one_hot(batch.target[:, 0], task.colours).movedim(-1, 1) * 20.0
    common, rare = right.clone(), right.clone()
    rare[..., 0, 0] = 0
    common[..., 5, 5] = 0
    assert task.loss(rare, batch) > 5 * task.loss(common, batch) > 0


def test_the_hidden_channel_is_not_shown_and_background_does_not_count():
    crops = make_crops(8, (16, 16), 3)
    crops.images[..., :4] = -9.0
    task = CrossModality(CrossModality.Options(), make_info(2, 3))
    batch = task.make(crops, Draw(0, 0, crops.index, "x"))
    hidden = batch.extra["hidden"]
    assert (hidden.flatten(1).sum(dim=1) == 1).all() and len(set(hidden.flatten(1).float().argmax(dim=1).tolist())) > 1
    assert (batch.inputs[hidden.expand_as(batch.inputs)] == 0).all()
    assert (batch.weight[..., :4] == 0).all() and batch.weight.sum() > 0.9 * 8 * 16 * 12
    wrong = torch.where(hidden, batch.target, batch.target + 7)
    assert (task.loss(wrong, batch) == 0).all()


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="red, green and blue"):
        Colorization(Colorization.Options(), make_info(2, 1))
    with pytest.raises(ConfigError, match="have one"):
        CrossModality(CrossModality.Options(), make_info(2, 1))
    with pytest.raises(DataError, match="no channel is called 'T2'"):
        CrossModality(CrossModality.Options(target="T2"), make_info(2, 2)).make(make_crops(2, (8, 8), 2), Draw(0, 0, [0, 1], "x"))


def test_bins_cover_all_colours():
    corners = torch.tensor([[-200.0, 0.0, 200.0], [-200.0, 0.0, 200.0]]).view(1, 2, 1, 3)
    assert bins_of(corners, 10.0).flatten().tolist() == [0, 11 * 22 + 11, 22 * 22 - 1]
