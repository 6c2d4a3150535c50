"""Crops of so many mm: the same part of the body whatever the grid, its values interpolated where its affine says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from medssl.config import check
from medssl.errors import ConfigError
from medssl.volumes import (
    CropLoader,
    CropOptions,
    CropPlan,
    DataOptions,
    Incoming,
    IntensityRule,
    LabelledOptions,
    Preparation,
    Store,
    crop_at,
    write_store,
)

GRIDS = [((40, 36, 12), (1.0, 1.0, 3.5)), ((60, 50, 40), (0.6, 0.7, 1.0)), ((20, 24, 16), (2.0, 2.0, 2.0))]


def ramp(shape: tuple[int, ...], spacing: tuple[float, ...]) -> NDArray[np.float32]:
    """Values that are straight in mm from the first voxel's centre."""
    x, y, z = (side * np.arange(n) for n, side in zip(shape, spacing, strict=True))
    return (3 * x[:, None, None] + 5 * y[None, :, None] - 7 * z[None, None, :]).astype(np.float32)


@pytest.fixture(scope="module")
def ramps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ramps") / "s"

    def item(number: int, shape: tuple[int, ...], spacing: tuple[float, ...]) -> Incoming:
        array, affine = ramp(shape, spacing), np.diag([*spacing, 1.0])
        labels = (np.add.outer(np.add.outer(*map(np.arange, shape[:2])), np.arange(shape[2])) % 5).astype(np.uint8)
        return Incoming(f"v{number}", f"p{number}", f"s{number}", "MR", lambda: (array, affine), labels=lambda: labels)

    preparation = Preparation(modalities={}, other=IntensityRule(kind="raw"))
    write_store([item(number, *grid) for number, grid in enumerate(GRIDS)], folder, preparation=preparation, workers=1)
    return folder


def millimetres(affine: NDArray[Any], size: tuple[int, ...]) -> list[NDArray[np.float64]]:
    return [affine[axis, axis] * np.arange(side) + affine[axis, -1] for axis, side in enumerate(size)]


@pytest.mark.parametrize("size", [(12, 12, 8), (20, 10, 14), (6, 6, 6)])
def test_a_crop_shows_its_mm_of_every_grid(ramps: Path, size: tuple[int, ...]) -> None:
    store, mm = Store(ramps), (18.0, 15.0, 12.0)
    options = CropOptions(size=size, size_mm=mm, foreground=0)
    seen = set()
    for sample in range(24):
        crop = crop_at(store, options, 0, sample)
        seen.add(crop.place.number)
        assert crop.image.shape == (1, *size)
        np.testing.assert_allclose(np.diag(crop.affine[:, :3]), np.divide(mm, size), rtol=1e-6)
        where = millimetres(crop.affine, size)
        own = crop.volume.spacing
        # A voxel that reaches beyond the volume is not straight there; all others are.
        reach = [max(side, want / n) for side, want, n in zip(own, mm, size, strict=True)]
        sides = zip(where, reach, own, crop.volume.shape, strict=True)
        inner = np.ix_(*[(w > r + 1e-3) & (w < side * (n - 1) - r - 1e-3) for w, r, side, n in sides])
        x, y, z = np.meshgrid(*where, indexing="ij")
        assert inner[0].size
        np.testing.assert_allclose(crop.image[0][inner], (3 * x + 5 * y - 7 * z)[inner], atol=2e-3)
    assert seen == {0, 1, 2}


def test_finer_crops_are_linear_interpolation_and_labels_the_nearest(ramps: Path) -> None:
    store = Store(ramps)
    options = CropOptions(size=(16, 16, 16), size_mm=(8.0, 8.0, 16.0), foreground=0)
    for sample in range(12):
        crop = crop_at(store, options, 1, sample)
        whole = store.read_whole(crop.place.number)[0].astype(np.float64)
        labels = store.read_labels(crop.place.number, (0, 0, 0), crop.volume.shape)[0]
        places = [w / side for w, side in zip(millimetres(crop.affine, (16, 16, 16)), crop.volume.spacing, strict=True)]
        expected = map_coordinates(whole, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")
        np.testing.assert_allclose(crop.image[0], expected, atol=1e-3)
        picks = np.ix_(*[np.clip(np.floor(p + 0.5).astype(int), 0, n - 1) for p, n in zip(places, labels.shape, strict=True)])
        assert crop.labels is not None
        assert np.array_equal(crop.labels[0], labels[picks])


def test_what_is_beyond_a_volume_is_padded(ramps: Path) -> None:
    options = CropOptions(size=(24, 24, 24), size_mm=(72.0, 72.0, 72.0), foreground=0)
    with pytest.warns(UserWarning, match="larger than every volume"):
        crops = [crop_at(Store(ramps), options, 0, sample) for sample in range(6)]
    for crop in crops:
        where = millimetres(crop.affine, (24, 24, 24))
        outside = [
            (w < -s / 2 - 1e-6) | (w > s * (n - 0.5) + 1e-6) for w, s, n in zip(where, crop.volume.spacing, crop.volume.shape, strict=True)
        ]
        beyond = np.logical_or.reduce(np.meshgrid(*outside, indexing="ij"))
        assert beyond.any() and not beyond.all()
        assert (crop.image[0][beyond] == crop.volume.statistics[0].minimum).all()
        assert crop.labels is not None and not crop.labels[0][beyond].any()
        assert 0 < crop.inside < 1


def test_a_volume_between_the_centres_of_two_voxels_is_still_seen(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(30, 30, 2)).astype(np.float32)
    preparation = Preparation(modalities={}, other=IntensityRule(kind="raw"))
    write_store([Incoming("v", "p", "s", "MR", lambda: (array, np.eye(4)))], tmp_path / "s", preparation=preparation, workers=1)
    with pytest.warns(UserWarning, match="larger"):
        crop = crop_at(Store(tmp_path / "s"), CropOptions(size=(8, 8, 2), size_mm=(8.0, 8.0, 30.0)), 0, 0)
    assert crop.image.std() > 0.1


def test_the_loader_delivers_them_with_their_spacing(ramps: Path) -> None:
    options = DataOptions(store=str(ramps), size=(12, 10), size_mm=(24.0, 15.0), batch=6)
    with CropLoader(Store(ramps), options, 0, body=True) as loader:
        crops = next(loader)[2]
    assert crops.images.shape == (6, 1, 12, 10)
    assert crops.spacing.tolist() == [[2.0, 1.5]] * 6
    assert crops.labels is not None and crops.labels.shape == crops.images.shape
    assert crops.body is not None and crops.body.any()


def test_small_volumes_can_be_left_out_by_their_mm(ramps: Path) -> None:
    store = Store(ramps)
    for mm, kept in ((30.0, {40, 60, 20}), (37.0, {40, 20}), (40.5, set())):
        options = CropOptions(size=(8, 8, 8), size_mm=(mm, 20.0, 20.0), small="leave out")
        if not kept:
            with pytest.raises(ConfigError, match="larger than every volume"):
                CropPlan(store, options)
            continue
        assert {store.volume(number).shape[0] for number in CropPlan(store, options).numbers.tolist()} == kept


@pytest.mark.parametrize("wrong", [{"size_mm": [10, 10]}, {"size_mm": [0, 10, 10]}, {"size_mm": [10, 1e5, 10]}])
def test_mm_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="size_mm"):
        check(DataOptions, {"store": "s", "size": [8, 8, 8]} | wrong)


def test_labelled_volumes_are_resampled_whole() -> None:
    with pytest.raises(ConfigError, match="give spacing instead of size_mm"):
        check(LabelledOptions, {"dataset": "d", "size": [8, 8, 8], "size_mm": [8, 8, 8]})
