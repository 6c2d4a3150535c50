"""MONAI transforms as views: seeded, sample by sample, with an affine that is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai import transforms

from medssl.augment import ViewOptions, is_affine, is_identity, make_view, resample, transformed
from medssl.config import check
from medssl.contracts import Draw
from medssl.errors import ConfigError, DataError

NOISE = {"_target_": "monai.transforms.RandGaussianNoise", "prob": 1.0}


def views(*transforms: dict[str, object]) -> ViewOptions:
    return ViewOptions(transforms=tuple(transforms))


@pytest.mark.parametrize("size", [(12, 10), (8, 9, 10)])
def test_noise_is_seeded_by_the_draw_alone_and_differs_between_samples(size: tuple[int, ...]) -> None:
    images = torch.zeros(3, 1, *size)
    one, affine = make_view(images, views(NOISE), Draw(0, 0, [0, 1, 2], "views"))
    torch.manual_seed(99)
    again, _ = make_view(images, views(NOISE), Draw(0, 0, [0, 1, 2], "views"))
    alone, _ = make_view(images[:1], views(NOISE), Draw(0, 0, [2], "views"))
    assert type(one) is torch.Tensor and torch.equal(one, again) and torch.equal(alone[0], one[2])
    assert not torch.equal(one[0], one[1]) and is_identity(affine)
    assert not images.any()


@pytest.mark.parametrize(
    "transform",
    [
        {"_target_": "monai.transforms.RandFlip", "prob": 1.0, "spatial_axis": 0},
        {"_target_": "monai.transforms.RandAxisFlip", "prob": 1.0},
        {"_target_": "monai.transforms.RandRotate", "prob": 1.0, "range_x": 0.4, "padding_mode": "border", "align_corners": True},
        {"_target_": "monai.transforms.RandZoom", "prob": 1.0, "min_zoom": 1.1, "max_zoom": 1.4, "padding_mode": "edge", "mode": "linear"},
        {
            "_target_": "monai.transforms.RandAffine",
            "prob": 1.0,
            "rotate_range": [0.3, 0.2, 0.1],
            "scale_range": [0.1, 0.1, 0.1],
            "translate_range": [1, 2, 1],
            "padding_mode": "border",
        },
        {"_target_": "monai.transforms.RandFlipd", "prob": 1.0, "spatial_axis": 1},
    ],
    ids=lambda transform: str(transform["_target_"]).rpartition(".")[2],
)
@pytest.mark.parametrize("size", [(24, 24), (16, 20, 18)])
def test_the_affine_of_the_metatensor_is_where_voxels_came_from(transform: dict[str, object], size: tuple[int, ...]) -> None:
    axes = torch.meshgrid(*[torch.linspace(0, 3, side) for side in size], indexing="ij")
    smooth = torch.stack([sum(torch.sin(axis * (rate + channel)) for rate, axis in enumerate(axes, 1)) for channel in range(2)])
    images = torch.stack([smooth, smooth * 2])
    linear = {2: "bilinear", 3: "trilinear"}[len(size)]
    transform = {key: linear if value == "linear" else value for key, value in transform.items()}
    view, affine = make_view(images, views(transform), Draw(0, 0, [0, 1], "views"))
    assert affine.shape == (2, len(size), len(size) + 1) and not is_identity(affine)
    mine = resample(images, affine)
    inner = (..., *[slice(3, -3)] * len(size))
    error = (view - mine)[inner].abs().mean() / images.abs().mean()
    unmoved = (view - images)[inner].abs().mean() / images.abs().mean()
    assert error < 0.02 and error < 0.2 * unmoved


def test_a_chain_of_transforms_composes() -> None:
    both = views({"_target_": "monai.transforms.Flip", "spatial_axis": 0}, {"_target_": "monai.transforms.Flip", "spatial_axis": 1})
    images = torch.randn(2, 1, 6, 8)
    view, affine = make_view(images, both, Draw(0, 0, [0, 1], "views"))
    assert torch.equal(view, images.flip(2, 3))
    torch.testing.assert_close(resample(images, affine), view)


@pytest.mark.parametrize(
    ("definition", "says"),
    [
        ({"prob": 1.0}, "_target_"),
        ({"_target_": "RandGaussianNoise"}, "import path"),
        ({"_target_": "monai.transforms.RandGausianNoise"}, "there is no"),
        ({"_target_": "os.system"}, "not a MONAI transform"),
        ({"_target_": "monai.transforms.RandGaussianNoise", "chance": 1}, "cannot be built"),
    ],
)
def test_a_wrong_definition_is_one_message(definition: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check(ViewOptions, {"transforms": [definition]}, "views")


def test_a_transform_that_changes_the_size_is_refused() -> None:
    options = views({"_target_": "monai.transforms.CenterSpatialCrop", "roi_size": [4, 4]})
    with pytest.raises(DataError, match="keep channels and size"):
        make_view(torch.zeros(1, 1, 8, 8), options, Draw(0, 0, [0], "views"))


def test_elastic_transforms_are_known_to_have_no_affine() -> None:
    assert is_affine([NOISE, {"_target_": "monai.transforms.RandAffine"}])
    assert not is_affine([{"_target_": "monai.transforms.Rand3DElastic"}])
    assert not is_affine([{"_target_": "monai.transforms.RandGridDistortiond"}])


def array_and_dictionary() -> list[Any]:
    return [
        transforms.RandGaussianNoise(prob=1.0),
        transforms.RandGaussianNoised("picture", prob=1.0),
        transforms.Compose([transforms.RandGaussianNoise(prob=1.0), transforms.RandFlip(prob=0.5)]),
        transforms.Compose([transforms.RandGaussianNoised("image", prob=1.0), transforms.RandGibbsNoised("image", prob=1.0)]),
        transforms.OneOf([transforms.RandGaussianNoise(prob=1.0), transforms.RandGibbsNoise(prob=1.0)]),
        [transforms.RandAdjustContrast(prob=1.0), transforms.RandCoarseDropoutd("image", holes=2, spatial_size=3, prob=1.0)],
        transforms.RandGridDistortion(prob=1.0),
    ]


@pytest.mark.parametrize("number", range(7))
def test_any_transform_corrupts_by_the_draw_alone(number: int) -> None:
    images = torch.rand(3, 1, 12, 10, 8)
    kept, state = images.clone(), np.random.get_state()[1].copy()  # noqa: NPY002
    one = transformed(images, array_and_dictionary()[number], Draw(0, 0, [0, 1, 2], "task"))
    alone = transformed(images[2:], array_and_dictionary()[number], Draw(0, 0, [2], "task"))
    assert type(one) is torch.Tensor and one.dtype == torch.float32 and one.shape == images.shape
    assert torch.equal(alone[0], one[2]) and not torch.equal(one, images)
    assert torch.equal(images, kept)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_a_corruption_that_cuts_is_refused() -> None:
    with pytest.raises(DataError, match=r"into \(1, 4, 4\)\. They must keep channels and size"):
        transformed(torch.rand(2, 1, 8, 8), transforms.CenterSpatialCrop([4, 4]), Draw(0, 0, [0, 1], "task"))
