"""Which slices make a regular run: exactly, as their positions are written, or nearly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.archive.geometry import slice_normal, sort_along_normal
from medssl.archive.series.runs import Run, regular_runs

lengths = st.floats(0.2, 8.0)
seeds = st.integers(0, 2**32 - 1)


def random_rotation(seed: int) -> np.ndarray:
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return axes * np.sign(np.linalg.det(axes))


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


def only(distances: np.ndarray | list[float], decimals: int = -1) -> Run:
    (run,) = regular_runs(line(*distances), decimals)
    assert run.slices == tuple(range(len(distances)))
    return run


def test_within_a_percent_of_the_spacing_or_a_hundredth_of_a_millimetre_a_slice_is_exactly_in_place() -> None:
    assert not only([0, 5, 10.05, 15]).nearly
    assert not only([0, 0.3, 0.609, 0.9]).nearly
    assert only([0, 5, 10.2, 15]).nearly


def test_within_a_tenth_of_the_spacing_a_slice_is_nearly_in_place_and_the_line_is_that_of_least_squares() -> None:
    distances = [0, 5.2, 9.9, 15.1, 19.8]
    run = only(distances)
    step, origin = np.polyfit(np.arange(5), distances, 1)
    assert np.allclose(run.step, step * np.array([0, 0.6, 0.8])) and np.allclose(run.origin, origin * np.array([0, 0.6, 0.8]))
    assert run.nearly and run.deviation == pytest.approx(np.abs(distances - origin - step * np.arange(5)).max())
    assert slices_of(0, 5, 10, 15, 21.5) == [(0, 1, 2, 3)]


@given(st.integers(3, 60), st.floats(0.3, 0.9), st.integers(0, 1))
def test_rounding_as_coarse_as_the_digits_that_are_written_is_no_gap(count: int, spacing: float, missing: int) -> None:
    true = np.delete(np.arange(count + 1) * spacing, count // 2) if missing else np.arange(count) * spacing
    written = np.round(true, 1)[:, None] * [0, 0, 1.0]
    runs = regular_runs(written, decimals=1)
    if missing:
        assert all(not {count // 2 - 1, count // 2} <= set(run.slices) or len(run.slices) < 3 for run in runs)
    else:
        (run,) = runs
        assert not run.nearly and np.abs(run.origin[2] + run.step[2] * np.arange(count) - true).max() <= 0.1


def test_rounding_that_could_hide_a_gap_excuses_nothing() -> None:
    """Whole millimetres say nothing of slices a millimetre apart, and no digit is as large as a missing slice."""
    two = [(0, 1, 2), (3, 4, 5, 6), (7, 8, 9)]
    for spacing in (2, 2.5, 3, 4, 5):
        height = np.array([0, 1, 2, 4, 5, 6, 7, 9, 10, 11])[:, None] * [0, 0, spacing]
        assert [run.slices for run in regular_runs(height, 0)] == two
    assert [run.slices for run in regular_runs(line(0, 1, 2, 4, 5, 6), 0)] == [(0, 1, 2), (3, 4, 5)]


@given(seeds, st.lists(st.floats(0.5, 3.0), min_size=1, max_size=25))
def test_whatever_the_distances_every_run_lies_where_it_says(seed: int, gaps: list[float]) -> None:
    gaps = [round(gap * 2) / 2 for gap in gaps]
    positions = np.concatenate([[0], np.cumsum(gaps)])[:, None] * random_rotation(seed)[:, 2]
    used: list[int] = []
    for run in regular_runs(positions):
        assert list(run.slices) == list(range(run.slices[0], run.slices[-1] + 1))
        predicted = run.origin + np.arange(len(run.slices))[:, None] * run.step
        assert np.linalg.norm(positions[list(run.slices)] - predicted, axis=1).max() <= max(0.1 * np.linalg.norm(run.step), 0.01) + 1e-9
        used += run.slices
    assert len(used) == len(set(used))
