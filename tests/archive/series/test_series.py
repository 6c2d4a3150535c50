"""From written DICOM series back to the volumes they were made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from medssl.archive import Index, Reason, build_index
from medssl.testing.dicom import made_affine, made_volume, uid, write_localizer, write_series

Indexed = Callable[..., Index]
Change = Callable[[Dataset, int], None]


def only(index: Index) -> tuple[np.ndarray, np.ndarray]:
    """The one volume of an index: array and affine."""
    (record,) = index.volumes()
    volume = index.read(record.volume)
    assert volume.array.shape == record.shape
    return volume.array, volume.affine


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    spacing=st.tuples(st.floats(0.3, 4), st.floats(0.3, 4), st.floats(0.5, 6)),
    shape=st.tuples(st.integers(2, 7), st.integers(2, 7), st.integers(3, 9)),
    tilt=st.sampled_from([0.0, 0.0, 0.25]),
    flip=st.booleans(),
)
def test_any_orientation_spacing_and_file_order_comes_back(
    seed: int, spacing: tuple[float, float, float], shape: tuple[int, int, int], tilt: float, flip: bool
) -> None:
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 2] += affine[:3, 1] / spacing[1] * tilt * spacing[2]
    affine[:3, 2] *= -1 if flip else 1
    affine[:3, 3] = [30, -40, 50]
    truth = np.random.default_rng(seed).integers(-1000, 1000, shape)
    with TemporaryDirectory() as folder:
        write_series(Path(folder) / "a", truth, affine, seed=seed)
        build_index([Path(folder) / "a"], Path(folder) / "i", workers=1)
        array, found = only(Index(Path(folder) / "i"))
    # The slices may come back in the other order along their normal: then the affine says so.
    if np.allclose(found, affine, atol=1e-6):
        assert np.array_equal(array, truth)
    else:
        turned = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, shape[2] - 1], [0, 0, 0, 1.0]])
        assert np.allclose(found, turned, atol=1e-6)
        assert np.array_equal(array, truth[:, :, ::-1])


def test_a_localizer_under_the_same_series_uid_stays_out(archive: Path, indexed: Indexed) -> None:
    truth = made_volume()
    write_series(archive, truth, made_affine(), series="ct")
    write_localizer(archive, series="ct")
    index = indexed(archive)
    array, affine = only(index)
    assert np.array_equal(array, truth) and np.allclose(affine, made_affine())
    assert index.rejected() == {Reason.LOCALIZER: 1}


def test_an_unmarked_scout_is_a_single_slice_of_its_own(archive: Path, indexed: Indexed) -> None:
    def unmark(dataset: Dataset, _: int) -> None:
        dataset.SOPInstanceUID = uid("scout")

    write_series(archive / "a", made_volume(), made_affine())
    coronal = np.array([[-4.0, 0, 0, 120], [0, 0, -4, 0], [0, -4, 0, 120], [0, 0, 0, 1]])
    write_series(archive / "b", made_volume((20, 16, 1)), coronal, adjust=unmark)
    index = indexed(archive)
    assert index.rejected() == {Reason.SINGLE_SLICE: 1}
    assert index.volumes()[0].shape == (20, 16, 12)
    assert "orientation" in (index.volumes()[0].split_by or "")


def test_missing_slices_cut_the_volume_and_say_so(archive: Path, indexed: Indexed) -> None:
    truth = made_volume((6, 5, 14))
    write_series(archive, truth, made_affine(), skip=[4, 9])
    index = indexed(archive)
    found = sorted((index.read(record.volume) for record in index.volumes()), key=lambda volume: volume.affine[2, 3])
    assert [volume.array.shape[2] for volume in found] == [4, 4, 4]
    for volume, first in zip(found, (0, 5, 10), strict=True):
        assert np.array_equal(volume.array, truth[:, :, first : first + 4])
        assert np.allclose(volume.affine[:3, 3], made_affine()[:3, 3] + first * made_affine()[:3, 2])
        assert volume.record.spacing[2] == pytest.approx(2.0)
        assert volume.record.split_by == "gap" and "gaps" in volume.record.warnings[0]


@settings(max_examples=15, deadline=None)
@given(gaps=st.sets(st.integers(0, 15), max_size=5), seed=st.integers(0, 1000))
def test_whatever_is_missing_no_voxel_is_out_of_place(gaps: set[int], seed: int) -> None:
    truth = made_volume((4, 3, 16), seed)
    with TemporaryDirectory() as folder:
        write_series(Path(folder) / "a", truth, made_affine(), skip=sorted(gaps), seed=seed)
        build_index([Path(folder) / "a"], Path(folder) / "i", workers=1)
        index = Index(Path(folder) / "i")
        used: list[int] = []
        for record in index.volumes():
            volume = index.read(record.volume)
            for number in range(volume.array.shape[2]):
                z = np.linalg.solve(made_affine(), volume.affine @ [0, 0, number, 1])[2]
                assert abs(z - round(z)) < 1e-6
                assert np.array_equal(volume.array[:, :, number], truth[:, :, round(z)])
                used.append(round(z))
    assert len(used) == len(set(used)) and not set(used) & gaps


def test_gantry_tilt_stays_in_the_affine(archive: Path, indexed: Indexed) -> None:
    affine = made_affine()
    affine[1, 2] = 0.5
    write_series(archive, made_volume(), affine)
    index = indexed(archive)
    array, found = only(index)
    assert np.array_equal(array, made_volume()) and np.allclose(found, affine)
    assert "sheared by 14.0 degrees" in index.volumes()[0].warnings[0]


def vary(keyword: str, values: list[object], depth: int) -> Change:
    """Sets `keyword` to a value for each block of `depth` slices and folds the blocks onto the same positions."""

    def change(dataset: Dataset, z: int) -> None:
        setattr(dataset, keyword, values[z // depth])
        position = list(dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [*position[:2], float(z % depth) * 2.0]

    return change


@pytest.mark.parametrize(
    ("keyword", "values", "named"),
    [
        ("EchoTime", [5.0, 10.0], "echo"),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]], "image type"),
        ("FrameOfReferenceUID", [uid(1), uid(2)], "frame of reference"),
        ("TemporalPositionIdentifier", [1, 2], "temporal position"),
        ("AcquisitionNumber", [1, 2], "acquisition number"),
        ("TriggerTime", [0.0, 40.0], "trigger time"),
        ("DiffusionBValue", [0.0, 1000.0], "b-value"),
        ("AcquisitionTime", ["101010", "101020"], "acquisition time"),
        ("ConvolutionKernel", ["B30f", "B70f"], "kernel"),
        ("ImageType", [["DERIVED", "PRIMARY", "WATER"], ["DERIVED", "PRIMARY", "FAT"]], "image type"),
    ],
)
def test_slices_at_one_position_are_told_apart(keyword: str, values: list[object], named: str, archive: Path, indexed: Indexed) -> None:
    truth = made_volume((4, 3, 10))
    write_series(archive, truth, made_affine(), modality="MR", adjust=vary(keyword, values, 5))
    index = indexed(archive)
    found = [index.read(record.volume).array for record in index.volumes()]
    assert sorted(array.tobytes() for array in found) == sorted(truth[:, :, part].tobytes() for part in (slice(0, 5), slice(5, 10)))
    assert {record.split_by for record in index.volumes()} == {named}


def test_slices_at_one_position_that_nothing_tells_apart_are_rejected(archive: Path, indexed: Indexed) -> None:
    write_series(archive, made_volume((4, 3, 10)), made_affine(), adjust=vary("SeriesDescription", ["a", "b"], 5))
    index = indexed(archive)
    assert index.volumes() == [] and index.rejected() == {Reason.REPEATED_POSITION: 10}


def test_a_time_that_differs_from_slice_to_slice_splits_nothing(archive: Path, indexed: Indexed) -> None:
    """Two volumes acquired slice by slice, every slice at its own time: the time alone would give ten volumes of one slice."""

    def change(dataset: Dataset, z: int) -> None:
        vary("SeriesDescription", ["a", "b"], 5)(dataset, z)
        dataset.AcquisitionTime = f"1010{z:02d}"

    write_series(archive, made_volume((4, 3, 10)), made_affine(), adjust=change)
    assert indexed(archive).rejected() == {Reason.REPEATED_POSITION: 10}


def test_mixed_matrix_sizes_are_two_volumes(archive: Path, indexed: Indexed) -> None:
    write_series(archive / "a", made_volume((6, 6, 5)), made_affine())
    write_series(
        archive / "b", made_volume((8, 8, 4)), made_affine(), adjust=lambda dataset, z: setattr(dataset, "SOPInstanceUID", uid("b", z))
    )
    assert sorted(record.shape for record in indexed(archive).volumes()) == [(6, 6, 5), (8, 8, 4)]


def test_rescaling_is_that_of_each_slice(archive: Path, indexed: Indexed) -> None:
    stored = np.abs(made_volume((4, 3, 5)))

    def change(dataset: Dataset, z: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + z, -10 * z

    write_series(archive, stored, made_affine(), modality="PT", adjust=change)
    array, _ = only(indexed(archive))
    expected = stored * (0.5 + np.arange(5)) - 10 * np.arange(5)
    assert array.dtype == np.float32 and np.allclose(array, expected, rtol=1e-6)


def test_whole_values_come_as_int16(archive: Path, indexed: Indexed) -> None:
    truth = made_volume() * 2 - 1024
    write_series(archive, truth, made_affine(), slope=2.0, intercept=-1024.0)
    array, _ = only(indexed(archive))
    assert array.dtype == np.int16 and np.array_equal(array, truth)


def test_two_slices_far_apart_are_no_volume(archive: Path, indexed: Indexed) -> None:
    def thin(dataset: Dataset, _: int) -> None:
        dataset.SliceThickness = 1.5

    write_series(archive, made_volume((4, 4, 2)), made_affine((1, 1, 100)), adjust=thin)
    assert indexed(archive).rejected() == {Reason.FAR_APART: 2}


@pytest.mark.parametrize("value", [[1, 0, 0, 0.5, 1, 0], [2, 0, 0, 0, 1, 0], [1, 0, 0], None])
def test_an_impossible_orientation_is_a_reason(value: list[float] | None, archive: Path, indexed: Indexed) -> None:
    def change(dataset: Dataset, _: int) -> None:
        dataset.ImageOrientationPatient = value

    write_series(archive, made_volume((4, 4, 3)), made_affine(), adjust=change)
    assert indexed(archive).rejected() == {Reason.BAD_GEOMETRY: 3}
