"""Orientation and resampling against oracles that are not ours."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from scipy.ndimage import map_coordinates

from medssl.archive.geometry import to_ras, voxel_spacing
from medssl.errors import UsageError
from medssl.volumes.grid import as_spacing, new_size, positions, resample, resample_labels, restore_nearest

ORIENTATIONS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def affine_of(order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...], tilt: float = 0.0) -> np.ndarray:
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * spacing[axis]
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    affine = turn @ affine
    affine[:3, 3] = (-30, 12, 7)
    return affine


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_ras_equals_nibabel(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = affine_of(order, signs, (1.0, 2.0, 3.0), tilt=0.3)
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    flips = to_ras(affine)
    orientation = io_orientation(affine)
    assert np.array_equal(flips.apply(array), apply_orientation(array, orientation))
    np.testing.assert_allclose(flips.affine(affine, array.shape), affine @ inv_ornt_aff(orientation, array.shape))
    assert nibabel.aff2axcodes(flips.affine(affine, array.shape)) == ("R", "A", "S")
    assert np.array_equal(flips.undo(flips.apply(array)), array)


@settings(max_examples=40, deadline=None)
@given(
    old=st.tuples(*[st.floats(0.5, 4)] * 3),
    new=st.tuples(*[st.floats(0.5, 4)] * 3),
    shape=st.tuples(*[st.integers(8, 24)] * 3),
    slope=st.tuples(*[st.floats(-2, 2)] * 3),
)
def test_a_linear_ramp_stays_where_it_was(
    old: tuple[float, ...], new: tuple[float, ...], shape: tuple[int, ...], slope: tuple[float, ...]
) -> None:
    affine = np.diag([*old, 1.0])
    affine[:3, 3] = (5, -3, 2)

    def world(grid: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
        index = np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), -1)
        return (index @ grid[:3, :3].T + grid[:3, 3]) @ np.asarray(slope)

    result, placed = resample(world(affine, shape).astype(np.float32), affine, new)
    assert result.shape == tuple(new_size(n, a, b) for n, a, b in zip(shape, old, new, strict=True)) or np.allclose(old, new, rtol=1e-4)
    inside = []
    for n, a, b in zip(shape, old, new, strict=True):
        where, reach = positions(n, a, b), max(1.0, b / a)
        inside.append((where >= reach) & (where <= n - 1 - reach))
    if result.shape != shape:
        expected = world(placed, result.shape)
        kept = np.ix_(*[np.flatnonzero(mask) for mask in inside])
        np.testing.assert_allclose(result[kept], expected[kept], atol=1e-3)
        np.testing.assert_allclose(voxel_spacing(placed), new)


def test_enlarging_is_linear_interpolation() -> None:
    array = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    result, _ = resample(array, np.diag([2.0, 2.0, 3.0, 1.0]), (1.0, 1.5, 1.0))
    where = [positions(n, a, b) for n, a, b in zip(array.shape, (2, 2, 3), (1, 1.5, 1), strict=True)]
    expected = map_coordinates(array, np.meshgrid(*where, indexing="ij"), order=1, mode="nearest")
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((120, 8, 8), np.float32)
    stripes[::2] = 1
    result, _ = resample(stripes, np.eye(4), (3.1, 1.0, 1.0))
    assert result.shape == (39, 8, 8)
    assert np.abs(result[2:-2] - 0.5).max() < 0.12


def test_whole_numbers_with_a_wide_range_stay_whole_and_others_do_not() -> None:
    wide = np.random.default_rng(0).integers(-1000, 1000, (10, 10, 10)).astype(np.int16)
    assert resample(wide, np.eye(4), (2.0, 2.0, 2.0))[0].dtype == np.int16
    narrow = np.random.default_rng(0).integers(0, 20, (10, 10, 10)).astype(np.int16)
    assert resample(narrow, np.eye(4), (2.0, 2.0, 2.0))[0].dtype == np.float32


def test_equal_spacing_changes_nothing() -> None:
    array = np.random.default_rng(0).normal(size=(5, 6, 7))
    result, placed = resample(array, np.diag([1.0, 2.0, 3.0, 1.0]), (1.0, 2.0, 3.00001))
    assert result is array
    assert voxel_spacing(placed) == (1.0, 2.0, 3.0)


def test_labels_come_back() -> None:
    labels = np.zeros((20, 18, 16), np.uint8)
    labels[4:12, 4:12, 4:12] = 3
    finer = resample_labels(labels, (2.0, 2.0, 2.0), (1.0, 0.7, 2.0))
    assert finer.shape == (40, 51, 16)
    assert np.array_equal(restore_nearest(finer, labels.shape, (2.0, 2.0, 2.0), (1.0, 0.7, 2.0)), labels)


@pytest.mark.parametrize("spacing", [0, -1, 1e6, (1, 2), float("nan")])
def test_no_spacing(spacing: object) -> None:
    with pytest.raises(UsageError, match="spacing"):
        as_spacing(spacing)  # type: ignore[arg-type]
