"""Where voxels lie: affines and regular runs, against independent arithmetic."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medssl.archive.geometry import affine_from_dicom, regular_runs, shear_degrees, slice_normal, sort_along_normal, voxel_spacing

lengths = st.floats(0.2, 8.0)
seeds = st.integers(0, 2**32 - 1)


def random_rotation(seed: int) -> np.ndarray:
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return axes * np.sign(np.linalg.det(axes))


@given(seeds, lengths, lengths, lengths)
def test_affine_gives_the_positions_of_the_standard(seed: int, between_rows: float, between_columns: float, between_slices: float) -> None:
    axes = random_rotation(seed)
    origin, step = np.array([10.0, -20.0, 30.0]), axes[:, 2] * between_slices
    affine = affine_from_dicom([*axes[:, 0], *axes[:, 1]], [between_rows, between_columns], origin, step)
    column, row, number = 3, 5, 7
    # DICOM PS3.3 C.7.6.2.1.1: position + row direction x column index x column spacing + column direction x row index x row spacing.
    lps = origin + number * step + axes[:, 0] * between_columns * column + axes[:, 1] * between_rows * row
    assert np.allclose((affine @ [column, row, number, 1])[:3], lps * [-1, -1, 1], atol=1e-9)
    assert np.allclose(voxel_spacing(affine), [between_columns, between_rows, between_slices])
    assert shear_degrees(affine) < 1e-3


@given(seeds, st.integers(2, 30), lengths, st.floats(0, 0.5))
def test_a_regular_stack_is_one_run_in_any_order(seed: int, count: int, spacing: float, tilt: float) -> None:
    axes = random_rotation(seed)
    step = axes[:, 2] * spacing + axes[:, 1] * spacing * tilt
    positions = np.array([50.0, 60.0, 70.0]) + np.arange(count)[:, None] * step
    shuffled = np.random.default_rng(seed).permutation(positions)
    order = sort_along_normal(shuffled, slice_normal([*axes[:, 0], *axes[:, 1]]))
    (run,) = regular_runs(shuffled[order])
    assert run.slices == tuple(range(count))
    assert np.allclose(run.step, step) and np.allclose(run.origin, positions[0])


def line(*distances: float) -> np.ndarray:
    return np.array(distances)[:, None] * np.array([0.0, 0.6, 0.8])


def slices_of(*distances: float) -> list[tuple[int, ...]]:
    return [run.slices for run in regular_runs(line(*distances))]


def test_no_run_reaches_over_a_gap() -> None:
    assert slices_of(0, 1, 2, 4, 5, 6) == [(0, 1, 2), (3, 4, 5)]
    assert slices_of(0, 2, 3, 4, 5) == [(1, 2, 3, 4)]
    assert slices_of(0, 1, 2, 3, 5) == [(0, 1, 2, 3)]
    assert slices_of(0, 1, 2, 4, 5) == [(0, 1, 2), (3, 4)]


def test_two_spacings_share_no_slice() -> None:
    assert slices_of(0, 2, 4, 6, 8, 13, 18, 23) == [(0, 1, 2, 3, 4), (5, 6, 7)]


def test_irregular_slices_make_no_run() -> None:
    assert slices_of(0, 1, 3, 7, 15) == []
    assert slices_of(0, 1, 3) == []


def test_two_slices_are_a_run_and_one_is_none() -> None:
    assert slices_of(0, 5) == [(0, 1)]
    assert slices_of(0) == []


def test_tolerance_is_one_percent_of_the_spacing_and_a_hundredth_of_a_millimetre() -> None:
    assert slices_of(0, 5, 10.04, 15) == [(0, 1, 2, 3)]
    assert slices_of(0, 5, 10.06, 15) != [(0, 1, 2, 3)]
    assert slices_of(0, 0.3, 0.609, 0.9) == [(0, 1, 2, 3)]
    assert slices_of(0, 0.3, 0.613, 0.9) != [(0, 1, 2, 3)]


def test_a_slow_drift_is_cut_where_it_leaves_the_line() -> None:
    distances = np.concatenate([np.arange(60) * 1.0, 59 + np.arange(1, 60) * 1.015])
    runs = regular_runs(line(*distances))
    assert len(runs) > 1
    for run in runs:
        predicted = run.origin + np.arange(len(run.slices))[:, None] * run.step
        assert np.abs(line(*distances)[list(run.slices)] - predicted).max() <= 0.011


@given(seeds, st.lists(st.floats(0.5, 3.0), min_size=1, max_size=25))
def test_whatever_the_distances_every_run_lies_where_it_says(seed: int, gaps: list[float]) -> None:
    gaps = [round(gap * 2) / 2 for gap in gaps]
    positions = np.concatenate([[0], np.cumsum(gaps)])[:, None] * random_rotation(seed)[:, 2]
    used: list[int] = []
    for run in regular_runs(positions):
        assert list(run.slices) == list(range(run.slices[0], run.slices[-1] + 1))
        predicted = run.origin + np.arange(len(run.slices))[:, None] * run.step
        assert np.linalg.norm(positions[list(run.slices)] - predicted, axis=1).max() <= max(0.01 * np.linalg.norm(run.step), 0.01) + 1e-9
        used += run.slices
    assert len(used) == len(set(used))
