"""Shared tensor operations: masks, cuts, standardisation, pooling."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.contracts import Draw
from medssl.errors import DataError
from medssl.learn.ops import accuracy, block_mask, by_part, cut, filled, masked_mean, pool, standardise, take, visible_mean

SIZES = st.sampled_from([(16, 16), (13, 20), (7, 30), (12, 9, 16), (8, 8, 8), (5, 17, 11)])


@settings(max_examples=100, deadline=None)
@given(size=SIZES, block=st.integers(1, 9), ratio=st.floats(0.05, 0.95), step=st.integers(0, 10_000))
def test_masks_are_whole_blocks_on_one_grid_and_never_all_or_nothing(size, block, ratio, step):
    if all(side <= block for side in size):
        return
    mask = block_mask(Draw(0, step, [3, 4], "m"), size, block, ratio, ratio)
    assert mask.shape == (2, 1, *size) and mask.dtype == torch.bool
    for sample in mask[:, 0]:
        assert sample.any() and not sample.all()
        starts = []
        for axis in range(len(size)):
            lines = sample.movedim(axis, 0).flatten(1)
            changes = (lines[1:] != lines[:-1]).any(1).nonzero().flatten() + 1
            starts.append({int(place) % block for place in changes})
        assert all(len(found) <= 1 for found in starts)


@settings(max_examples=50, deadline=None)
@given(block=st.integers(1, 8), low=st.floats(0.1, 0.9), width=st.floats(0, 0.3), step=st.integers(0, 1000))
def test_the_share_of_hidden_blocks_is_the_one_asked_for(block, low, width, step):
    size, high = (32, 32), min(0.95, low + width)
    mask = block_mask(Draw(0, step, range(4), "m"), size, block, low, high)
    for sample in mask[:, 0]:
        edges = [(sample != sample.roll(1, axis)).any(1 - axis).nonzero().flatten() for axis in (0, 1)]
        start = [next((int(e) % block for e in found if e > 0), 0) for found in edges]
        ids = [(torch.arange(32) - first) // block for first in start]
        grid = torch.stack(torch.meshgrid(ids[0] - ids[0].min(), ids[1] - ids[1].min(), indexing="ij"))
        cells = grid.flatten(1).T.unique(dim=0)
        hidden = sum(bool(sample[(grid[0] == a) & (grid[1] == b)].all()) for a, b in cells.tolist())
        assert low * len(cells) - 1 <= hidden <= high * len(cells) + 1


def test_masks_start_anywhere_and_differ_between_samples_and_steps():
    masks = torch.cat([block_mask(Draw(0, step, range(8), "m"), (24, 24), 6, 0.5, 0.5) for step in range(20)])
    assert len(masks.flatten(1).unique(dim=0)) == len(masks)
    share = masks.float().mean(0)[0]
    assert share.min() > 0.3 and share.max() < 0.7
    borders = (masks[:, :, 1:] != masks[:, :, :-1]).any(3).float().mean(0)[0]
    assert borders.max() < 3 * borders.mean()


def test_a_block_as_large_as_the_crop_is_refused():
    with pytest.raises(DataError, match="smaller block"):
        block_mask(Draw(0, 0, [0], "m"), (8, 8), 8, 0.5, 0.5)
    assert block_mask(Draw(0, 0, [0], "m"), (8, 9), 8, 0.5, 0.5).any()


def test_a_mask_of_one_sample_is_its_mask_in_a_batch():
    together = block_mask(Draw(0, 0, [5, 6, 7], "m"), (16, 16), 4, 0.3, 0.7)
    assert torch.equal(block_mask(Draw(0, 0, [6], "m"), (16, 16), 4, 0.3, 0.7)[0], together[1])


@settings(max_examples=40, deadline=None)
@given(size=SIZES, seed=st.integers(0, 1000))
def test_cut_is_a_slice(size, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 2, *size, generator=generator)
    sides = [int(torch.randint(1, side + 1, (1,), generator=generator)) for side in size]
    room = [whole - side + 1 for whole, side in zip(size, sides, strict=True)]
    corner = torch.stack([torch.randint(0, free, (3,), generator=generator) for free in room], 1)
    boxes = cut(images, corner, sides)
    for row in range(3):
        where = tuple(slice(int(c), int(c) + side) for c, side in zip(corner[row], sides, strict=True))
        assert torch.equal(boxes[row], images[(row, slice(None), *where)])


def test_take_is_the_outer_product_of_indices():
    images = torch.randn(2, 1, 4, 5)
    rows, columns = torch.tensor([[3, 0, 0], [1, 1, 2]]), torch.tensor([[4, 4], [0, 3]])
    taken = take(images, [rows, columns])
    for sample in range(2):
        assert torch.equal(taken[sample, 0], images[sample, 0][rows[sample]][:, columns[sample]])


def test_standardise_is_by_channel_and_leaves_constants_at_zero():
    images = torch.randn(3, 2, 6, 7) * torch.tensor([1.0, 50.0]).view(1, 2, 1, 1) + 9
    images[2, 1] = 4.0
    result = standardise(images)
    torch.testing.assert_close(result.mean((2, 3)), torch.zeros(3, 2), atol=1e-4, rtol=0)
    assert result[2, 1].abs().max() == 0
    torch.testing.assert_close(result[:2].std((2, 3), correction=0), torch.ones(2, 2))


def test_masked_mean_counts_what_is_weighed():
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]], requires_grad=True)
    weight = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
    mean = masked_mean(values, weight)
    assert mean.tolist() == [2.0, 0.0]
    mean.sum().backward()
    assert values.grad is not None and torch.isfinite(values.grad).all() and values.grad[1].abs().sum() == 0
    assert masked_mean(values).tolist() == [2.5, 6.5]


def test_pooling_by_part():
    grid = torch.arange(24.0).view(6, 2, 2)
    assert by_part(pool(grid), 3).shape == (2, 3, 2)
    assert torch.equal(by_part(pool(grid), 3)[1, 0], pool(grid)[3])


def test_the_visible_mean_is_that_of_what_is_not_hidden_and_0_where_all_is():
    images, hidden = torch.randn(3, 2, 6, 7), torch.rand(3, 1, 6, 7) > 0.4
    hidden[2] = True
    mean = visible_mean(images, hidden)
    assert mean.shape == (3, 2, 1, 1) and (mean[2] == 0).all()
    for row in range(2):
        torch.testing.assert_close(mean[row].flatten(), images[row][:, ~hidden[row, 0]].mean(dim=1))


def test_a_part_is_filled_where_one_channel_differs_enough():
    images = torch.stack([torch.randn(8, 8), torch.zeros(8, 8)]).unsqueeze(0)
    parts = torch.stack([images[..., :4], images[..., :4] * 0.01, torch.full((1, 2, 8, 4), 9.0), images.flip(1)[..., 4:]], dim=1)
    assert filled(parts, images, 0.1).tolist() == [[True, False, False, True]]


def test_equal_logits_are_as_right_as_guessing():
    prediction = torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    assert accuracy(prediction, torch.tensor([1, 0, 2, 1])).tolist() == pytest.approx([1.0, 0.5, 1 / 3, 0.0])
    assert accuracy(prediction.view(2, 2, 3), torch.tensor([[1, 0], [2, 1]])).tolist() == pytest.approx([0.75, 1 / 6])
