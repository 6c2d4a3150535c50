"""Structure sets onto slices: each voxel is inside where shapely says that its centre is, whatever the contours' form."""

from __future__ import annotations

import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
import shapely
from archive.labels.made import LPS, contour, slices_of, write_rtstruct
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.archive.labels.contours import inside
from medssl.archive.labels.objects import Mask
from medssl.archive.labels.placing import Grid, LabelProblem, OtherGrid
from medssl.archive.labels.rtstruct import read_rtstruct
from medssl.testing.dicom import made_affine, made_volume, write_series

SHAPE = (40, 32, 8)
AFFINE = made_affine()
GRID = Grid(SHAPE, AFFINE)


def wobbly(centre: tuple[float, float], radius: float, seed: int = 0, points: int = 60) -> np.ndarray:
    """(N, 2) points of a closed line around a centre."""
    stream = np.random.default_rng(seed)
    angles = np.sort(stream.uniform(0, 2 * np.pi, points))
    away = radius * stream.uniform(0.7, 1.1, points)
    return np.c_[centre[0] + away * np.cos(angles), centre[1] + away * np.sin(angles)]


def on_slice(points: np.ndarray, z: float, kind: str = "CLOSED_PLANAR", affine: np.ndarray = AFFINE) -> tuple[str, list[str]]:
    return contour(np.c_[points, np.full(len(points), z)], affine, kind)


def theirs(region: shapely.Geometry, shape: tuple[int, int] = SHAPE[:2]) -> np.ndarray:
    x, y = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return np.asarray(shapely.contains_xy(region, x, y))


@pytest.fixture
def images(tmp_path: Path) -> list[pydicom.Dataset]:
    return slices_of(write_series(tmp_path / "ct", made_volume(SHAPE), AFFINE))


def mask_of(file: Path, name: str = "x", grid: Grid = GRID, resample: bool = False) -> Mask:
    with file.open("rb") as stream:
        found = read_rtstruct(stream)
    (segment,) = (one for one in found.segments if one.name == name)
    return found.mask(segment, grid, resample)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-5, 25, allow_nan=False, width=32), st.floats(-5, 18, allow_nan=False, width=32)), min_size=3, max_size=12)
)
def test_any_polygon_by_the_even_odd_rule(points: list[tuple[float, float]]) -> None:
    """Also those that cross themselves, which shapely takes otherwise; a centre within a hair of the border may go either way."""
    polygon = np.array(points, float)
    got = inside(polygon, (20, 13))
    x, y = np.meshgrid(np.arange(20.0), np.arange(13.0), indexing="ij")
    expected = np.zeros((20, 13), bool)
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        crosses = (a[1] <= y) != (b[1] <= y)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = a[0] + (y - a[1]) / (b[1] - a[1]) * (b[0] - a[0])
        expected ^= crosses & (at <= x)
    np.testing.assert_array_equal(got, expected)
    region = shapely.Polygon(polygon)
    if region.is_valid:
        near = np.asarray(shapely.distance(region.exterior, shapely.points(x, y))) < 1e-6
        np.testing.assert_array_equal(got[~near], theirs(region, (20, 13))[~near])


def test_two_regions_with_a_common_border_share_no_voxel() -> None:
    left, right = ([[2, 1], [7, 1], [7, 9], [2, 9]], [[7, 1], [12, 1], [12, 9], [7, 9]])
    a, b = inside(np.array(left, float), (15, 12)), inside(np.array(right, float), (15, 12))
    assert not (a & b).any() and a.sum() == b.sum() == 40


def test_regions_on_several_slices(tmp_path: Path, images: list[pydicom.Dataset]) -> None:
    lines = {z: wobbly((18, 15), 9, z) for z in range(2, 7)}
    other = wobbly((30, 8), 4, 50)
    regions = {"x": [on_slice(points, z) for z, points in lines.items()], "other": [on_slice(other, 3)]}
    for implicit in (True, False):
        mask = mask_of(write_rtstruct(tmp_path / "rt.dcm", regions, images, implicit=implicit))
        assert mask.notes == () and mask.outside == 0
        for z in range(SHAPE[2]):
            expected = theirs(shapely.Polygon(lines[z])) if z in lines else np.zeros(SHAPE[:2], bool)
            np.testing.assert_array_equal(mask.inside[:, :, z], expected)
    np.testing.assert_array_equal(mask_of(tmp_path / "rt.dcm", "other").inside[:, :, 3], theirs(shapely.Polygon(other)))


def test_holes_by_every_convention(tmp_path: Path, images: list[pydicom.Dataset]) -> None:
    """An inner contour, a contour with CLOSEDPLANAR_XOR, a keyhole: the same ring; an island in the hole is inside again."""
    outer, hole, island = wobbly((18, 15), 12, 1), wobbly((18, 15), 6, 2), wobbly((18, 15), 2.5, 3)
    ring = shapely.Polygon(outer, [hole])
    with_island = ring.union(shapely.Polygon(island))
    keyhole = np.concatenate([outer, outer[:1], hole, hole[:1]])
    forms = {
        "inner": [on_slice(outer, 4), on_slice(hole, 4)],
        "inner first": [on_slice(hole, 4), on_slice(outer, 4)],
        "xor": [on_slice(outer, 4, "CLOSEDPLANAR_XOR"), on_slice(hole, 4, "CLOSEDPLANAR_XOR")],
        "keyhole": [on_slice(keyhole, 4)],
        "twice": [on_slice(outer, 4), on_slice(outer, 4), on_slice(hole, 4)],
        "island": [on_slice(island, 4), on_slice(outer, 4), on_slice(hole, 4)],
    }
    file = write_rtstruct(tmp_path / "rt.dcm", forms, images)
    for name in forms:
        mask = mask_of(file, name)
        np.testing.assert_array_equal(mask.inside[:, :, 4], theirs(with_island if name == "island" else ring), err_msg=name)
        assert mask.inside.sum() == mask.inside[:, :, 4].sum()


def test_contours_that_cross_are_joined_and_told(tmp_path: Path, images: list[pydicom.Dataset]) -> None:
    a, b = shapely.Point(15, 15).buffer(6), shapely.Point(22, 15).buffer(6)
    regions = {"x": [on_slice(np.array(one.exterior.coords[:-1]), 2) for one in (a, b)]}
    mask = mask_of(write_rtstruct(tmp_path / "rt.dcm", regions, images))
    np.testing.assert_array_equal(mask.inside[:, :, 2], theirs(a.union(b)))
    assert any("cross share" in note for note in mask.notes)


def test_what_encloses_nothing_and_slices_that_were_left_out_are_told(tmp_path: Path, images: list[pydicom.Dataset]) -> None:
    line = wobbly((18, 15), 9)
    contours = [on_slice(line, z) for z in (1, 3, 5)]
    contours += [on_slice(line[:1], 4, "POINT"), on_slice(line, 2, "OPEN_PLANAR"), on_slice(line, 11)]
    mask = mask_of(write_rtstruct(tmp_path / "rt.dcm", {"x": contours}, images))
    assert mask.inside.any(axis=(0, 1)).nonzero()[0].tolist() == [1, 3, 5]
    assert mask.outside == theirs(shapely.Polygon(line)).sum()
    assert any("2 contours that enclose nothing" in note for note in mask.notes)
    assert any("slices without a contour" in note for note in mask.notes)


def test_sagittal_and_tilted_contours_of_the_image(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[:3, 2] = (0, 0.4, 2.0)
    images = slices_of(write_series(tmp_path / "ct", made_volume(SHAPE), affine))
    line = wobbly((16, 4), 3, 5)
    sagittal = contour(np.c_[np.full(len(line), 12.0), line], affine)
    regions = {"sagittal": [sagittal], "axial": [on_slice(wobbly((18, 15), 9), 3, affine=affine)]}
    file = write_rtstruct(tmp_path / "rt.dcm", regions, images)
    grid = Grid(SHAPE, affine)
    np.testing.assert_array_equal(mask_of(file, "sagittal", grid).inside[12], theirs(shapely.Polygon(line), SHAPE[1:]))
    np.testing.assert_array_equal(mask_of(file, "axial", grid).inside[:, :, 3], theirs(shapely.Polygon(wobbly((18, 15), 9))))


def test_oblique_contours_are_refused(tmp_path: Path, images: list[pydicom.Dataset]) -> None:
    line = wobbly((18, 15), 9)
    tilted = contour(np.c_[line, 1 + 0.1 * line[:, 0]], AFFINE)
    file = write_rtstruct(tmp_path / "rt.dcm", {"x": [tilted]}, images)
    for resample in (False, True):
        with pytest.raises(OtherGrid, match="oblique"):
            mask_of(file, resample=resample)


def test_contours_between_the_slices_need_leave(tmp_path: Path, images: list[pydicom.Dataset]) -> None:
    """Drawn on slices of twice the distance: each slice takes the nearest contour within half of it."""
    lines = {z: wobbly((18, 15), 9, int(z)) for z in (0.75, 2.75, 4.75)}
    file = write_rtstruct(tmp_path / "rt.dcm", {"x": [on_slice(points, z) for z, points in lines.items()]}, images)
    with pytest.raises(OtherGrid, match=r"3 of 3 contours.*resample_labels=true"):
        mask_of(file)
    mask = mask_of(file, resample=True)
    for z, drawn in {0: 0.75, 1: 0.75, 2: 2.75, 3: 2.75, 4: 4.75, 5: 4.75}.items():
        np.testing.assert_array_equal(mask.inside[:, :, z], theirs(shapely.Polygon(lines[drawn])))
    assert not mask.inside[:, :, 6:].any()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (["1", "2", "nan"] * 4, "no numbers"),
        (["1", "2", "inf"] * 4, "no numbers"),
        (["1e30", "2", "0"] * 4, "too far away"),
        (["1", "2", "name"] * 4, "no numbers"),
        (["1", "2"] * 5, "without three coordinates"),
    ],
)
def test_contours_that_make_no_sense(tmp_path: Path, images: list[pydicom.Dataset], data: list[str], said: str) -> None:
    def adjust(dataset: pydicom.Dataset) -> None:
        from pydicom.dataelem import RawDataElement
        from pydicom.tag import Tag

        content = "\\".join(data).encode()
        contour = dataset.ROIContourSequence[0].ContourSequence[0]
        contour[0x30060050] = RawDataElement(Tag(0x30060050), "DS", len(content), content, 0, True, True)

    file = write_rtstruct(tmp_path / "rt.dcm", {"Jane Doe": [on_slice(wobbly((18, 15), 9), 3)]}, images, adjust=adjust)
    with pytest.raises(LabelProblem, match=said) as caught:
        mask_of(file, "Jane Doe")
    assert "Doe" not in str(caught.value)


def test_ten_million_points_are_refused_in_time(tmp_path: Path, images: list[pydicom.Dataset]) -> None:
    file = write_rtstruct(tmp_path / "rt.dcm", {"x": [on_slice(wobbly((18, 15), 9), 3)]}, images)
    dataset = pydicom.dcmread(file)
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    content = b"1.5\\" * 30_000_000 + b"1.5 "
    dataset.ROIContourSequence[0].ContourSequence[0][0x30060050] = RawDataElement(
        Tag(0x30060050), "DS", len(content), content, 0, True, True
    )
    dataset.save_as(file)
    start = time.process_time()
    with pytest.raises(LabelProblem, match="points"):
        mask_of(file)
    assert time.process_time() - start < 20


def test_cut_and_noisy_files_are_one_message(tmp_path: Path, images: list[pydicom.Dataset]) -> None:
    content = write_rtstruct(tmp_path / "rt.dcm", {"x": [on_slice(wobbly((18, 15), 9), z) for z in range(3)]}, images).read_bytes()
    stream = np.random.default_rng(0)
    for turn in range(80):
        noisy = bytearray(content[: int(stream.integers(len(content)))] if turn % 2 else content)
        for at in stream.integers(0, len(noisy), 6).tolist() if len(noisy) else ():
            noisy[at] = int(stream.integers(256))
        try:
            found = read_rtstruct(BytesIO(bytes(noisy)))
            for segment in found.segments:
                found.mask(segment, GRID, True)
        except LabelProblem:
            pass


def test_a_real_structure_set(shared_data: Path, tmp_path: Path) -> None:
    """Each of its contours on the slice that its points lie on, with the area that shapely gives."""
    from medssl.archive import Index, build_index

    build_index([shared_data / "rt"], tmp_path / "index", workers=1)
    record = Index(tmp_path / "index").volumes()[0]
    file = next(file for file in (shared_data / "rt").rglob("rt.dcm"))
    dataset = pydicom.dcmread(file)
    points = [np.array(one.ContourData, float).reshape(-1, 3) @ LPS for one in dataset.ROIContourSequence[0].ContourSequence]
    voxels = [(np.c_[one, np.ones(len(one))] @ np.linalg.inv(record.affine).T)[:, :3] for one in points]
    with file.open("rb") as stream:
        found = read_rtstruct(stream)
    mask = found.mask(found.segments[0], Grid(record.shape, record.affine), False)
    z = round(float(voxels[0][0, 2]))
    regions = [shapely.Polygon(one[:, :2]) for one in voxels]
    expected = np.logical_xor.reduce([theirs(region, record.shape[:2]) for region in regions])
    centres = shapely.points(*np.meshgrid(*map(np.arange, record.shape[:2]), indexing="ij"))
    near = np.logical_or.reduce([np.asarray(shapely.distance(region.exterior, centres)) < 1e-4 for region in regions])
    np.testing.assert_array_equal(mask.inside[:, :, z][~near], expected[~near])
    assert mask.inside[:, :, z].sum() > 100
