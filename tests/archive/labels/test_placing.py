"""One grid within another: exact wherever voxels coincide, as nibabel turns them; nothing moved silently."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from medssl.archive.labels.placing import Grid, OtherGrid, nearest, onto, place_of

SHAPE = (5, 4, 6)
ARRAY = np.random.default_rng(0).integers(0, 9, SHAPE).astype(np.int16)
TURN = np.array([[0.98, -0.17, 0.1], [0.17, 0.98, 0.05], [-0.1, -0.05, 0.99]])


def grid(shape: tuple[int, ...] = SHAPE, origin: tuple[float, ...] = (5, -6, 70)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = TURN * [0.8, 0.9, 2.5]
    affine[:3, 3] = origin
    return Grid(shape, affine)  # type: ignore[arg-type]


CODES = ["".join(code) for axes in itertools.permutations(("LR", "PA", "IS")) for code in itertools.product(*axes)]


@pytest.mark.parametrize("code", CODES)
def test_all_48_orientations_come_back_exactly(code: str) -> None:
    image = grid()
    turned = nibabel.Nifti1Image(ARRAY, image.affine).as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(code)))
    label = Grid(turned.shape, turned.affine)
    got, outside = onto(np.asarray(turned.dataobj), label, image, False)
    np.testing.assert_array_equal(got, ARRAY)
    place = place_of(label, image)
    assert outside == 0 and place is not None and place.is_whole(turned.shape, SHAPE)
    np.testing.assert_array_equal(nearest(np.asarray(turned.dataobj), label, image), ARRAY)


def test_a_part_and_what_lies_beyond() -> None:
    image = grid()
    shift = np.eye(4)
    shift[:3, 3] = (2, -1, 3)
    got, outside = onto(ARRAY, Grid(SHAPE, image.affine @ shift), image, False)
    expected = np.zeros(SHAPE, np.int16)
    expected[2:, :3, 3:] = ARRAY[:3, 1:, :3]
    np.testing.assert_array_equal(got, expected)
    assert outside == np.count_nonzero(ARRAY) - np.count_nonzero(expected)
    shift[:3, 3] = (50, 0, 0)
    got, outside = onto(ARRAY, Grid(SHAPE, image.affine @ shift), image, False)
    assert not got.any() and outside == np.count_nonzero(ARRAY)


@pytest.mark.parametrize("change", [(0.3, 0, 0), (0, 0.5, 0), (0, 0, -0.2)])
def test_voxels_between_voxels_are_refused(change: tuple[float, ...]) -> None:
    image = grid()
    shift = np.eye(4)
    shift[:3, 3] = change
    with pytest.raises(OtherGrid, match=r"none of the image's.*resample_labels"):
        onto(ARRAY, Grid(SHAPE, image.affine @ shift), image, False)
    onto(ARRAY, Grid(SHAPE, image.affine @ shift), image, True)


def test_another_spacing_that_grows_off_the_grid_is_refused_and_rounding_is_not() -> None:
    image = grid((200, 4, 6))
    array = np.ones((200, 4, 6), np.uint8)
    for factor, fits in ((1.00001, True), (1.01, False)):
        label = Grid((200, 4, 6), image.affine @ np.diag([factor, 1, 1, 1]))
        assert (place_of(label, image) is not None) == fits
    assert onto(array, image, image, False)[1] == 0


def test_a_plane_needs_no_third_direction() -> None:
    image = grid()
    affine = image.affine.copy()
    affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])
    affine[:3, 3] = (image.affine @ [0, 0, 3, 1])[:3]
    got, _ = onto(ARRAY[:, :, 3:4], Grid((5, 4, 1), affine), image, False)
    np.testing.assert_array_equal(got[:, :, 3], ARRAY[:, :, 3])
    assert not got[:, :, [0, 1, 2, 4, 5]].any()
