"""Crops: inside the volume, equal to slicing it, and a function of (seed, global sample number) alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.config import check
from medssl.errors import ConfigError
from medssl.volumes import CropOptions, CropPlan, DataOptions, Incoming, Store, crop_at, write_store

SIZES = st.one_of(st.tuples(st.integers(1, 52), st.integers(1, 36), st.integers(1, 30)), st.tuples(st.integers(1, 52), st.integers(1, 36)))


@settings(max_examples=80, deadline=None)
@given(size=SIZES, seed=st.integers(0, 2**31), sample=st.integers(0, 2**40), foreground=st.floats(0, 1))
def test_a_crop_equals_slicing_the_prepared_volume(
    store_folder: Path, size: tuple[int, ...], seed: int, sample: int, foreground: float
) -> None:
    store = Store(store_folder)
    options = CropOptions(size=size, foreground=foreground)
    crop = crop_at(store, options, seed, sample)
    again = crop_at(Store(store_folder, native=False), options, seed, sample)
    assert crop.place == again.place
    assert crop.image.tobytes() == again.image.tobytes()
    assert crop.image.shape == (1, *size)
    whole = store.preparation.apply(store.read_whole(crop.place.number), crop.volume.statistics[0], crop.volume.modality)
    full = crop.place.size
    pad = [(max(0, -c), max(0, c + s - n)) for c, s, n in zip(crop.place.corner, full, crop.volume.shape, strict=True)]
    assert all(low == 0 == high for (low, high), s, n in zip(pad, full, crop.volume.shape, strict=True) if s <= n)
    dark = store.preparation.line(crop.volume.statistics[0], "MR").value(crop.volume.statistics[0].minimum)
    padded = np.pad(whole, [(0, 0), *pad], constant_values=np.float32(dark))
    corner = [c + low for c, (low, _) in zip(crop.place.corner, pad, strict=True)]
    expected = padded[(slice(None), *(slice(c, c + s) for c, s in zip(corner, full, strict=True)))]
    np.testing.assert_array_equal(crop.image, expected.reshape(crop.image.shape))
    assert 0 <= crop.inside <= 1


def test_foreground_crops_touch_the_body_and_others_go_everywhere(store_folder: Path) -> None:
    store = Store(store_folder)
    aware = [crop_at(store, CropOptions(size=(6, 6, 6), foreground=1), 0, step) for step in range(150)]
    for crop in aware:
        points = crop.volume.points - np.asarray(crop.place.corner)
        assert ((points >= 0) & (points < 6)).all(axis=1).any()
    blind = [crop_at(store, CropOptions(size=(6, 6, 6), foreground=0), 0, step) for step in range(150)]
    assert np.mean([crop.inside for crop in aware]) > 0.5 > 2 * np.mean([crop.inside for crop in blind])
    corners = np.asarray([crop.place.corner for crop in blind])
    assert (corners.min(axis=0) <= 1).all()
    assert (corners.max(axis=0) >= (30, 28, 22)).all()


def test_neighbouring_crops_come_from_one_volume(store_folder: Path) -> None:
    plan = CropPlan(Store(store_folder), CropOptions(size=(8, 8, 8), crops_per_volume=2))
    numbers = [plan.place(7, 30 + index).number for index in range(20)]
    assert numbers[::2] == numbers[1::2]
    assert sorted(numbers[:10:2]) == sorted(numbers[10::2]) == [0, 1, 2, 3, 4]
    places = {plan.place(7, index) for index in range(20)}
    assert len(places) > 15


@pytest.mark.parametrize("overlap", [0.0, 0.4, 0.75])
def test_further_crops_of_a_volume_share_what_is_asked_for_with_its_first(store_folder: Path, overlap: float) -> None:
    size, several = (16, 10, 30), 3
    given = {"size": size, "crops_per_volume": several}
    plan = CropPlan(Store(store_folder), CropOptions.model_validate(given | {"overlap": overlap}))
    alone = CropPlan(Store(store_folder), CropOptions.model_validate(given))
    shared = []
    for first in range(0, 300, several):
        places = [plan.place(5, first + number) for number in range(several)]
        assert places[0] == alone.place(5, first)
        volume = plan.store.volume(places[0].number)
        for place in places[1:]:
            assert place.number == places[0].number
            assert all(0 <= c <= side - want for c, side, want in zip(place.corner, volume.shape, size, strict=True))
            shared.append([1 - abs(a - b) / want for a, b, want in zip(place.corner, places[0].corner, size, strict=True)])
    least = np.min(shared, axis=0)
    assert (least >= overlap - 1e-9).all()
    # It goes to the limit where the volume lets it, and no two crops are the same.
    assert (least[:2] <= overlap + 0.1).all() and least[2] == 1
    assert np.unique(shared, axis=0).shape[0] > 10


@pytest.mark.parametrize(("balance", "groups"), [("patient", 3), ("modality", 1)])
def test_each_group_comes_once_a_turn_and_all_its_volumes_alike(store_folder: Path, balance: str, groups: int) -> None:
    """Of five volumes two patients have two each and one has one."""
    store = Store(store_folder)
    plan = CropPlan(store, CropOptions.model_validate({"size": (8, 8, 8), "balance": balance}))
    volumes = [store.volume(plan.place(0, number).number) for number in range(60)]
    names = [volume.patient_name if balance == "patient" else volume.modality for volume in volumes]
    assert all(len(set(names[turn : turn + groups])) == groups for turn in range(0, 60, groups))
    counts = Counter(volume.volume for volume in volumes)
    assert len(counts) == 5
    for name in set(names):
        assert len({counts[volume.volume] for volume, other in zip(volumes, names, strict=True) if other == name}) == 1


def test_what_comes_equally_often_can_be_any_column(tmp_path: Path, incoming: Callable[..., list[Incoming]]) -> None:
    grids = [np.diag([1.0, 1.0, 2.0 if number else 3.0, 1.0]) for number in range(5)]
    items = [incoming(affine=grid)[number] for number, grid in enumerate(grids)]
    write_store(items, tmp_path / "s", workers=1)
    store = Store(tmp_path / "s")
    plan = CropPlan(store, CropOptions(size=(8, 8, 8), balance="spacing"))
    thick = [store.volume(plan.place(0, number).number).spacing[2] for number in range(40)]
    assert all(set(thick[turn : turn + 2]) == {2.0, 3.0} for turn in range(0, 40, 2))
    with pytest.raises(ConfigError, match=r"'scanner' is no column.*modality.*patient"):
        CropPlan(store, CropOptions(size=(8, 8, 8), balance="scanner"))


def test_several_places_are_what_each_is_by_itself(store_folder: Path) -> None:
    for overlap in (None, 0.5):
        plan = CropPlan(Store(store_folder), CropOptions(size=(8, 8, 8), crops_per_volume=2, overlap=overlap))
        assert plan.places(3, [5, 4, 90]) == [plan.place(3, sample) for sample in (5, 4, 90)]


def test_small_volumes_are_padded_or_left_out(store_folder: Path) -> None:
    store = Store(store_folder)
    size = (50, 30, 20)
    assert CropPlan(store, CropOptions(size=size, small="leave out")).numbers.tolist() == [
        number for number, volume in enumerate(store.volumes) if volume.volume == "v4"
    ]
    padded = CropPlan(store, CropOptions(size=size))
    assert padded.numbers.tolist() == [0, 1, 2, 3, 4]
    corners = {padded.place(0, step) for step in range(40)}
    assert any(place.corner[0] == -5 for place in corners if store.volume(place.number).volume == "v0")


def test_a_crop_larger_than_every_volume_is_padded_with_a_warning(store_folder: Path) -> None:
    store, options = Store(store_folder), CropOptions(size=(64, 8, 64))
    with pytest.warns(UserWarning, match=r"larger than every volume.*longest sides are \[52, 36, 30\].*padded"):
        plan = CropPlan(store, options)
    assert plan.numbers.tolist() == list(range(len(store)))
    crop = crop_at(store, options, 0, 0)
    sides = zip(crop.place.corner, crop.volume.shape, (64, 8, 64), strict=True)
    inside = tuple(slice(max(0, -corner), min(size, side - corner)) for corner, side, size in sides)
    outside = crop.image.copy()
    outside[(0, *inside)] = crop.image.min()
    assert (outside == crop.image.min()).all() and crop.image[(0, *inside)].std() > 0


def test_a_crop_larger_than_every_volume_leaves_none(store_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"larger than every volume.*longest sides are \[52, 36, 30\].*data.small=pad"):
        CropPlan(Store(store_folder), CropOptions(size=(512, 32, 512), small="leave out"))


def test_options_that_cannot_be(store_folder: Path) -> None:
    for values in (
        {"size": [8, 8, 8], "batch": 3, "crops_per_volume": 2},
        {"size": [8, 0, 8]},
        {"size": [8]},
        {"size": [8, 8], "foreground": 1.5},
        {"size": [8, 8], "thread": 2},
    ):
        with pytest.raises(ConfigError):
            check(DataOptions, {"store": "s"} | values)


def test_2d_crops_are_axial_slices(store_folder: Path) -> None:
    store = Store(store_folder)
    crop = crop_at(store, CropOptions(size=(16, 12)), 0, 5)
    whole = store.preparation.apply(store.read_whole(crop.place.number), crop.volume.statistics[0], "MR")
    x, y, z = crop.place.corner
    assert np.array_equal(crop.image, whole[:, x : x + 16, y : y + 12, z])


def test_order_of_ingest_does_not_matter(tmp_path: Path, incoming: Callable[..., list[Incoming]], store_folder: Path) -> None:
    write_store(incoming()[::-1], tmp_path / "s", workers=1)
    options = CropOptions(size=(8, 8, 8))
    for step in range(5):
        one, other = crop_at(Store(tmp_path / "s"), options, 1, step), crop_at(Store(store_folder), options, 1, step)
        assert np.array_equal(one.image, other.image)
