"""Statistics and image preparation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

import numpy as np
import pytest

from medssl.config import check
from medssl.errors import ConfigError
from medssl.volumes import IntensityRule, Preparation, statistics


def test_foreground_is_the_body(make_body: Callable[..., np.ndarray]) -> None:
    array = make_body(0)
    numbers = statistics(array)
    assert 20 < numbers.threshold < 350
    assert abs(numbers.mean - 500) < 5
    assert abs(numbers.std - 50) < 5
    truth = np.zeros(array.shape, bool)
    truth[tuple(slice(side // 4, 3 * side // 4) for side in array.shape)] = True
    assert np.array_equal(numbers.foreground(array), truth)


def test_an_image_without_air_is_foreground_everywhere() -> None:
    array = np.random.default_rng(0).normal(300, 40, (20, 20, 20)).astype(np.float32)
    assert statistics(array).foreground(array).all()


def test_wild_voxels_do_not_set_the_scale(make_body: Callable[..., np.ndarray]) -> None:
    array = make_body(1, kind=np.float32)
    calm = statistics(array)
    array[20, 18, 15] = 1.7e6
    wild = statistics(array)
    assert wild.mean == pytest.approx(calm.mean, rel=0.01)
    assert wild.std == pytest.approx(calm.std, rel=0.05)


def test_statistics_do_not_depend_on_orientation(make_body: Callable[..., np.ndarray]) -> None:
    array = make_body(2)
    one, two = statistics(array), statistics(array.transpose(2, 0, 1)[::-1, :, ::-1])
    assert vars(two) == pytest.approx(vars(one), rel=1e-9)


def test_two_values_are_enough() -> None:
    array = np.zeros((4, 4, 4), np.int16)
    array[0, 0, 0] = 1
    assert np.isfinite(Preparation().apply(array, statistics(array), "MR")).all()


def test_ct_window_and_z_score(make_body: Callable[..., np.ndarray]) -> None:
    array = make_body(3)
    numbers = statistics(array)
    ct = Preparation(modalities={"CT": IntensityRule(kind="window", low=0, high=500)}).apply(array, numbers, "ct")
    np.testing.assert_allclose(ct, np.clip(array, 0, 500) / 250.0 - 1, atol=1e-5)
    mr = Preparation().apply(array, numbers, "MR")
    np.testing.assert_allclose(mr, (np.clip(array, numbers.low, numbers.high) - numbers.mean) / numbers.std, atol=1e-4)
    assert mr.dtype == np.float32
    raw = Preparation(other=IntensityRule(kind="raw")).apply(array, numbers, "US")
    assert np.array_equal(raw, array)


def test_preparation_survives_json() -> None:
    preparation = Preparation(modalities={"CT": IntensityRule(kind="window", low=-160, high=240)})
    assert Preparation.model_validate_json(preparation.model_dump_json()) == preparation


def test_a_name_goes_before_a_modality() -> None:
    lung, brain = IntensityRule(kind="window", low=-1000, high=200), IntensityRule(kind="window", low=0, high=80)
    preparation = Preparation(channels={"lung": lung}, modalities={"CT": brain})
    assert preparation.rule("CT", "lung") == lung
    assert preparation.rule("ct", "CT") == preparation.rule("CT") == brain
    assert preparation.rule("MR", "T1") == IntensityRule()


def test_a_preparation_of_version_1_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"version 1, which prepared a volume as a whole.*Train again"):
        check(Preparation, {"version": 1, "modalities": {}, "other": {"kind": "z-score"}}, "preparation in runs/a")


def test_a_window_upside_down_is_refused() -> None:
    with pytest.raises(ConfigError, match="less than its high"):
        check(IntensityRule, {"kind": "window", "low": 5, "high": 1})


def test_an_image_that_is_flat_but_for_few_voxels_has_statistics() -> None:
    """99.5 % of its values are so near to each other that no histogram lies between them."""
    array = np.full((10, 10, 10), 100, np.float32)
    array[::2] = np.nextafter(np.float32(100), np.float32(200))
    array[5, 5, 5:8] = 500
    found = statistics(array)
    assert all(np.isfinite(number) for number in astuple(found))
    assert (found.minimum, found.high) == (100, pytest.approx(100))
