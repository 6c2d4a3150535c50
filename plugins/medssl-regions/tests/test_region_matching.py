"""Region matching keeps the public contract, moves its regions with the query, and learns what is where."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from medssl_regions import RegionMatching
from medssl_regions.makers import near_and_alike, of_label_maps
from pydantic import ValidationError
from torch.nn import functional as F

from medssl.contracts import Draw
from medssl.errors import ConfigError, DataError
from medssl.learn import build_objective
from medssl.learn.ops import onto_grid
from medssl.testing import PretextTaskContract, make_crops, make_info


class TestRegionMatching(PretextTaskContract):
    task = RegionMatching


class TestTwoChannels(PretextTaskContract):
    task = RegionMatching
    channels = 2
    options: ClassVar = {"count": 3, "radius": (3, 8), "look": {"flip": 0.5, "rotate": 90, "shift": 0.2}}


def question(size=(24, 28), channels=1, batch=6, **options):
    task = RegionMatching(RegionMatching.Options(**options), make_info(len(size), channels))
    crops = make_crops(batch, size, channels)
    return task, crops, task.make(crops, Draw(0, 0, crops.index, "region-matching"))


def perfect(batch):
    """The logits of one who knows."""
    return (batch.target - 0.5) * 40


@pytest.mark.parametrize("size", [(24, 28), (16, 20, 18)])
def test_knowing_the_regions_costs_nothing_and_the_trivial_answer_does(size):
    task, _, batch = question(size, look={"rotate": 0.0, "scale": 1.0, "shift": 0.0, "flip": 0.5})
    assert (task.loss(perfect(batch), batch) < 0.05).all()
    torch.testing.assert_close(task.measure(perfect(batch), batch)["dice"], torch.ones(len(batch.target)))
    assert (task.loss(task.trivial(batch), batch) > 0.5).all()


def test_regions_are_near_their_seed_and_like_it():
    images = make_crops(4, (40, 40)).images
    crops = make_crops(4, (40, 40))
    regions = near_and_alike(images, 8, (4.0, 6.0), (0.2, 0.5), Draw(0, 0, crops.index, "x"))
    assert regions.flatten(2).any(dim=2).all()
    for row in regions.flatten(0, 1):
        where = row.nonzero().float()
        assert (where.amax(dim=0) - where.amin(dim=0)).max() <= 12


def test_no_seed_lies_in_air():
    images = make_crops(4, (40, 40)).images.abs() + 3
    images[..., :30] = 0.0
    regions = near_and_alike(images, 8, (3.0, 3.0), (5.0, 5.0), Draw(0, 0, make_crops(4).index, "x"))
    share = regions[..., :30].flatten(2).sum(dim=2) / regions.flatten(2).sum(dim=2)
    # A ball around a seed at the border reaches into the air, one around a seed in the air lies there whole.
    assert share.max() < 1 and share.mean() < 0.25


def test_a_label_map_gives_whole_labels_and_never_the_background():
    maps = torch.zeros((2, 1, 16, 16), dtype=torch.int64)
    maps[..., 2:9, 2:9], maps[..., 10:14, 3:12] = 3, 7
    regions = of_label_maps(maps, 6, Draw(0, 0, [0, 1], "x"))
    for region in regions.flatten(0, 1):
        assert not region.any() or any(torch.equal(region, maps[0, 0] == value) for value in (3, 7))
    assert regions.flatten(2).any(dim=2).float().mean() > 0.8


def test_voxels_beyond_the_crop_do_not_count():
    task, _, batch = question(look={"shift": 0.4, "rotate": 0.0, "scale": 1.0, "flip": 0.0})
    assert (batch.weight == 0).any()
    answer = torch.randn_like(batch.target)
    other = torch.where(batch.weight > 0, answer, -answer)
    torch.testing.assert_close(task.loss(answer, batch), task.loss(other, batch))


def test_the_loss_is_torchs_and_monais_own():
    losses = pytest.importorskip("monai.losses", reason="MONAI is needed for its Dice loss")
    task, _, batch = question(look={"rotate": 0.0, "scale": 1.0, "shift": 0.0, "flip": 0.5}, count=3)
    answer = torch.randn_like(batch.target)
    dice = losses.DiceLoss(sigmoid=True, reduction="none", smooth_nr=1.0, smooth_dr=1.0)
    for row in range(len(answer)):
        kept = batch.target[row].flatten(1).sum(dim=1) > 4
        entropy = F.binary_cross_entropy_with_logits(
            answer[row], batch.target[row], pos_weight=torch.tensor(3.0), reduction="none"
        ).flatten(1)
        expected = entropy.mean(dim=1) + dice(answer[row : row + 1], batch.target[row : row + 1]).flatten()
        torch.testing.assert_close(task.loss(answer, batch)[row], expected[kept].mean())


def test_masks_of_the_store_are_regions_and_are_not_shown():
    crops = make_crops(3, (24, 24), 2)
    masks = torch.zeros(3, 1, 24, 24)
    masks[..., 4:12, 4:12], masks[..., 14:20, 6:20] = 1.0, 2.0
    crops = replace(
        crops.with_images(torch.cat([crops.images[:, :1], (masks - 0.7) / 1.3], dim=1)),
        channels=("T1", "sam"),
        rescale=torch.tensor([[1.0, 0.0], [1.3, 0.7]]).expand(3, 2, 2),
    )
    options = {"regions": "masks", "masks": "sam", "look": {"flip": 0.0, "rotate": 0.0, "scale": 1.0, "shift": 0.0, "noise": 0.0}}
    task = RegionMatching(RegionMatching.Options(**options), make_info(2, 2))
    batch = task.make(crops, Draw(0, 0, crops.index, "x"))
    assert batch.inputs.shape[1] == task.input_channels(2) == 1
    for region in batch.target.flatten(0, 1):
        assert not region.any() or any(torch.equal(region, (masks[0, 0] == value).float()) for value in (1, 2))
    build_objective(
        {"name": "UNet", "spatial_dims": 2, "in_channels": 2, "options": {"channels": [4, 8, 8], "strides": [2, 2]}},
        [{"name": "region-matching", **options}],
    ).run(crops, 0)
    with pytest.raises(DataError, match="no channel is called 'sam'"):
        task.make(make_crops(3, (24, 24), 2), Draw(0, 0, crops.index, "x"))


def test_supervoxels():
    pytest.importorskip("skimage", reason="scikit-image is an extra")
    _, _, batch = question(regions="supervoxels", piece=60)
    sizes = batch.extra["regions"].flatten(2).sum(dim=2)
    assert (sizes > 4).all() and 20 < sizes.median() < 180


@pytest.mark.parametrize(
    ("options", "told"),
    [({"radius": (9, 3)}, "radius"), ({"regions": "masks"}, "masks: NAME"), ({"masks": "sam"}, "masks: NAME"),
     ({"look": {"transforms": [{"_target_": "monai.transforms.RandGaussianNoise"}]}}, "look.transforms")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options, told):
    with pytest.raises(ValidationError, match=told):
        RegionMatching.Options(**options)


def test_a_part_of_the_look_leaves_the_rest_as_it_is():
    assert RegionMatching.Options(look={"rotate": 40}).look.flip == 0.0


def test_masks_need_another_channel():
    with pytest.raises(ConfigError, match="the images have one"):
        RegionMatching(RegionMatching.Options(regions="masks", masks="sam"), make_info(2, 1))


def discs(count: int, step: int) -> torch.Tensor:
    """Images with a bright disc and a dark one, somewhere, in noise."""
    draw = Draw(7, step, list(range(count)), "discs")
    at = draw.integers(8, 24, 2, 2)
    grid = torch.stack(torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij"))
    inside = (grid - at[..., None, None]).square().sum(dim=2) < 36
    return (inside[:, 0].float() - inside[:, 1].float()).unsqueeze(1) * 2 + 0.3 * draw.normal(1, 32, 32)


def test_it_learns_to_find_regions_and_a_prototype_of_one_image_segments_others():
    network = {"name": "UNet", "spatial_dims": 2, "options": {"channels": [8, 16, 32], "strides": [2, 2]}}
    objective = build_objective(network, [{"name": "region-matching", "radius": [4, 8], "look": {"invert": 0.0}}], seed=0)
    optimizer = torch.optim.Adam(objective.parameters(), 5e-3)
    found = []
    for step in range(120):
        crops = make_crops(8, (32, 32)).with_images(discs(8, step))
        terms = objective.run(crops, step)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        objective.commit()
        found.append(float(terms["region-matching/dice"]))
    assert sum(found[-20:]) / 20 > 0.5 > sum(found[:5]) / 5 + 0.1
    images = discs(8, 1000)
    with torch.no_grad():
        maps = objective._trunk(images, {"feature_map"}, None)["feature_map"]
        embedded = F.normalize(objective.tasks["region-matching"].matcher.embed(maps), dim=1)
    truth = onto_grid((images > 1.2).float(), embedded.shape[2:]) > 0.5
    prototype = F.normalize((embedded[0] * truth[0]).flatten(1).sum(dim=1), dim=0)
    guess = torch.einsum("c,bcxy->bxy", prototype, embedded[1:]) > 0.6
    dice = 2 * (guess & truth[1:, 0]).sum() / (guess.sum() + truth[1:, 0].sum())
    assert dice > 0.5, float(dice)
