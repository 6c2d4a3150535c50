"""Where voxels lie: affines and regular runs, against independent arithmetic."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medssl.archive.geometry import affine_from_dicom, shear_degrees, voxel_spacing

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
