"""SEG onto the image's voxels: what highdicom writes comes back voxel for voxel, in every form that a segmentation has."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from archive.labels.made import ball, slices_of, write_seg
from pydicom.uid import RLELossless

from medssl.archive.labels.placing import Grid, LabelProblem, OtherGrid
from medssl.archive.labels.seg import read_seg
from medssl.testing.dicom import made_affine, made_volume, write_series

SHAPE = (21, 15, 9)
"""Sides whose product is no multiple of eight, so that frames do not begin with a byte."""
AFFINE = made_affine()
GRID = Grid(SHAPE, AFFINE)
MASKS = {"Liver": ball(SHAPE, (8, 7, 4), 4), "GTV primary": ball(SHAPE, (10, 7, 4), 3), "rare": ball(SHAPE, (17, 3, 7), 1.2)}
APART = {"Liver": MASKS["Liver"], "rare": MASKS["rare"]}


@pytest.fixture
def images(tmp_path: Path) -> list[pydicom.Dataset]:
    return slices_of(write_series(tmp_path / "ct", made_volume(SHAPE), AFFINE))


def read(file: Path) -> dict[str, np.ndarray]:
    """Name -> mask on the image's grid."""
    with file.open("rb") as stream:
        found = read_seg(stream)
    masks = {one.name: found.mask(one, GRID, False) for one in found.segments}
    assert all(mask.outside == 0 for mask in masks.values())
    return {name: mask.inside for name, mask in masks.items()}


@pytest.mark.parametrize("omit_empty", [True, False])
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
def test_what_highdicom_writes(tmp_path: Path, images: list[pydicom.Dataset], kind: str, omit_empty: bool) -> None:
    """Overlapping segments where the form can hold them, frames of empty slices left out or not, slices in any order."""
    masks = APART if kind == "LABELMAP" else MASKS
    given = {name: mask.astype(float) for name, mask in masks.items()} if kind == "FRACTIONAL" else masks
    more = {"fractional_type": "PROBABILITY", "max_fractional_value": 200} if kind == "FRACTIONAL" else {}
    file = write_seg(tmp_path / "a.dcm", images[::-1], {n: m[:, :, ::-1] for n, m in given.items()}, kind, omit_empty=omit_empty, **more)
    found = read(file)
    assert list(found) == list(masks)
    for name, mask in masks.items():
        np.testing.assert_array_equal(found[name], mask)


def test_fractions_count_from_a_half(tmp_path: Path, images: list[pydicom.Dataset]) -> None:
    share = np.zeros(SHAPE)
    share[3, 4, 5], share[4, 4, 5], share[5, 4, 5] = 0.49, 0.5, 1.0
    file = write_seg(tmp_path / "a.dcm", images, {"x": share}, "FRACTIONAL", fractional_type="OCCUPANCY", max_fractional_value=255)
    # 0.5 of 255 is written as 128, of which the half is 127.5.
    assert np.argwhere(read(file)["x"]).tolist() == [[4, 4, 5], [5, 4, 5]]


def test_compressed_frames(tmp_path: Path, images: list[pydicom.Dataset]) -> None:
    for number, (kind, more) in enumerate([("FRACTIONAL", {"fractional_type": "PROBABILITY"}), ("LABELMAP", {})]):
        given = {name: mask.astype(float) for name, mask in APART.items()} if kind == "FRACTIONAL" else APART
        found = read(write_seg(tmp_path / f"{number}.dcm", images, given, kind, syntax=RLELossless, **more))
        np.testing.assert_array_equal(found["rare"], APART["rare"])


def test_the_frames_of_a_tilted_gantry(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[:3, 2] = (0, 0.5, 2.0)
    images = slices_of(write_series(tmp_path / "ct", made_volume(SHAPE), affine))
    with write_seg(tmp_path / "a.dcm", images, APART).open("rb") as stream:
        found = read_seg(stream)
    mask = found.mask(found.segments[0], Grid(SHAPE, affine), False)
    np.testing.assert_array_equal(mask.inside, APART["Liver"])


def test_frames_in_another_plane_and_a_smaller_field(tmp_path: Path) -> None:
    """Drawn on sagittal slices of the same voxels, of which some lie beyond the image."""
    shape = (9, 21, 15)
    affine = AFFINE @ np.array([[0, 1, 0, -2], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    sagittal = slices_of(write_series(tmp_path / "ct", made_volume(shape), affine))
    mask = ball(shape, (4, 3, 7), 5)
    with write_seg(tmp_path / "a.dcm", sagittal, {"x": mask}).open("rb") as stream:
        found = read_seg(stream)
    got = found.mask(found.segments[0], GRID, False)
    index = np.argwhere(mask)
    there = (np.c_[index, np.ones(len(index))] @ (np.linalg.inv(AFFINE) @ affine).T)[:, :3].round().astype(int)
    inside = ((there >= 0) & (there < SHAPE)).all(axis=1)
    expected = np.zeros(SHAPE, bool)
    expected[tuple(there[inside].T)] = True
    assert got.outside == (~inside).sum() > 0
    np.testing.assert_array_equal(got.inside, expected)


def test_another_grid_is_refused_or_resampled_to_the_nearest_voxel(tmp_path: Path) -> None:
    """Drawn on slices of half the distance, with finer pixels: the way out gives what SimpleITK's nearest neighbour gives."""
    import SimpleITK

    affine = AFFINE @ np.diag([0.6, 0.7, 0.5, 1])
    shape = (35, 22, 18)
    mask = ball(shape, (17, 11, 9), 7)
    images = slices_of(write_series(tmp_path / "ct", made_volume(shape), affine))
    with write_seg(tmp_path / "a.dcm", images, {"x": mask}).open("rb") as stream:
        found = read_seg(stream)
    with pytest.raises(OtherGrid, match=r"between the voxels of the image.*resample_labels=true"):
        found.mask(found.segments[0], GRID, False)
    got = found.mask(found.segments[0], GRID, True).inside

    def image(array: np.ndarray, matrix: np.ndarray) -> SimpleITK.Image:
        made = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0).astype(np.uint8))
        lengths = np.linalg.norm(matrix[:3, :3], axis=0)
        made.SetSpacing(lengths.tolist())
        made.SetDirection((matrix[:3, :3] / lengths).ravel().tolist())
        made.SetOrigin(matrix[:3, 3].tolist())
        return made

    theirs = SimpleITK.Resample(
        image(mask, affine), image(np.zeros(SHAPE), AFFINE), SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0
    )
    different = got != (SimpleITK.GetArrayFromImage(theirs).transpose(2, 1, 0) > 0)
    # Voxels whose centres lie just between two of the label may go to either.
    assert got.sum() > 100 and different.sum() <= 0.02 * got.sum()


def broken(what: str) -> Callable[[pydicom.Dataset], None]:
    def change(seg: pydicom.Dataset) -> None:
        frames = seg.PerFrameFunctionalGroupsSequence
        if what == "no position":
            del frames[1].PlanePositionSequence
        elif what == "NaN position":
            frames[1].PlanePositionSequence[0].ImagePositionPatient = ["1e9", "0", "0"]
        elif what == "fewer frames":
            del frames[2:]
        elif what == "pixels cut":
            seg.PixelData = seg.PixelData[:20]
        elif what == "no pixels":
            del seg.PixelData
        elif what == "kind":
            seg.SegmentationType = "OTHER"
        elif what == "no segments of frames":
            del frames[0].SegmentIdentificationSequence
        elif what == "numbers twice":
            seg.SegmentSequence[1].SegmentNumber = 1
        elif what == "flat orientation":
            seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 1, 0, 0]

    return change


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no position", "frame 2 does not say where it lies"),
        ("NaN position", "frame 2 does not say where it lies"),
        ("fewer frames", "describes 2 frames"),
        ("pixels cut", "bytes too early"),
        ("no pixels", "no pixels"),
        ("kind", "none of BINARY"),
        ("no segments of frames", "which segment"),
        ("numbers twice", "numbers of their own"),
        ("flat orientation", "does not say where it lies"),
    ],
)
def test_broken_objects_are_one_message(tmp_path: Path, images: list[pydicom.Dataset], what: str, said: str) -> None:
    file = write_seg(tmp_path / "a.dcm", images, APART, adjust=broken(what))
    with file.open("rb") as stream, pytest.raises(LabelProblem, match=said) as caught:
        read_seg(stream)
    assert "Liver" not in str(caught.value)


def test_any_cut_and_any_noise_is_one_message_or_the_same_masks(tmp_path: Path, images: list[pydicom.Dataset]) -> None:
    content = write_seg(tmp_path / "a.dcm", images, APART).read_bytes()
    stream = np.random.default_rng(0)
    for length in stream.integers(0, len(content), 40).tolist():
        with pytest.raises(LabelProblem):
            read_seg(BytesIO(content[:length]))
    for _ in range(60):
        noisy = bytearray(content)
        for at in stream.integers(200, len(content), 8).tolist():
            noisy[at] = int(stream.integers(256))
        try:
            found = read_seg(BytesIO(bytes(noisy)))
            for segment in found.segments:
                found.mask(segment, GRID, True)
        except LabelProblem:
            pass


def test_real_segmentations(shared_data: Path, tmp_path: Path) -> None:
    """Voxel counts of public files as highdicom reads them."""
    from medssl.archive import Index, build_index

    folder = shared_data / "dcmqi" / "segmentations"
    pairs = [
        ("ct-3slice", "partial_overlaps.dcm"),
        ("23x38x3/image", "23x38x3/seg/label.seg"),
        ("24x38x3/image", "sparse-labelmap-ppv5.dcm"),
    ]
    for number, (images, file) in enumerate(pairs):
        build_index([folder / images], tmp_path / str(number), workers=1)
        record = Index(tmp_path / str(number)).volumes()[0]
        with (folder / file).open("rb") as stream:
            found = read_seg(stream)
        theirs = hd.seg.segread(folder / file)
        for segment in found.segments:
            mask = found.mask(segment, Grid(record.shape, record.affine), False)
            assert mask.inside.sum() == (theirs.get_volume(segment_numbers=[segment.number]).array != 0).sum() > 0
            assert mask.outside == 0
