"""Surfaces onto voxels: inside where scipy says that a hull's centre is, whatever primitives a file has and however the image lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from archive.labels.made import LPS, slices_of
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, SurfaceSegmentationStorage
from scipy.spatial import ConvexHull, Delaunay

from medssl.archive import Index
from medssl.archive.labels.finding import labels_of, pair_labels, read_dicom_file
from medssl.archive.labels.listing import list_labels
from medssl.archive.labels.merging import Classes
from medssl.archive.labels.meshes import enclosed
from medssl.archive.labels.objects import Mask
from medssl.archive.labels.placing import Grid, LabelProblem
from medssl.archive.labels.surface import read_surface
from medssl.testing.dicom import made_affine, made_volume, uid, write_series

SHAPE = (20, 18, 10)
OBLIQUE = made_affine()
GRID = Grid(SHAPE, OBLIQUE)
BOX = np.array([(x, y, z) for x in (3.5, 9.5) for y in (2.5, 7.5) for z in (1.5, 5.5)])
"""Corners in voxels, halfway between centres."""
SIDES = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]
TRIANGLES = np.array([corners for a, b, c, d in SIDES for corners in ((a, b, c), (a, c, d))])
INSIDE = np.zeros(SHAPE, bool)
INSIDE[4:10, 3:8, 2:6] = True
Part = tuple[NDArray[Any], Mapping[str, Any]]


def item(**elements: Any) -> Dataset:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def long(numbers: NDArray[Any] | Sequence[int]) -> bytes:
    return (np.asarray(numbers) + 1).astype("<u4").tobytes()


def short(numbers: NDArray[Any] | Sequence[int]) -> bytes:
    return (np.asarray(numbers) + 1).astype("<u2").tobytes()


def write_surface(
    file: Path, segments: Mapping[str, Sequence[Part]], images: Sequence[Dataset] = (), affine: NDArray[Any] = OBLIQUE, **more: Any
) -> Path:
    """Each surface as points in voxels of the affine and elements of its primitives; `more` goes into each surface."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = SurfaceSegmentationStorage, uid(file.name, "surface"), "SEG"
    dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = uid(file.name, "series"), uid("frame 1")
    for one in images[:1]:
        dataset.PatientID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = (
            one.PatientID,
            one.StudyInstanceUID,
            one.FrameOfReferenceUID,
        )
    sources = [item(ReferencedSOPClassUID=one.SOPClassUID, ReferencedSOPInstanceUID=one.SOPInstanceUID) for one in images]
    dataset.SegmentSequence, dataset.SurfaceSequence = [], []
    for number, (name, surfaces) in enumerate(segments.items(), 1):
        named = []
        for points, primitives in surfaces:
            surface = len(dataset.SurfaceSequence) + 1
            world = ((points @ affine[:3, :3].T + affine[:3, 3]) @ LPS).astype("<f4")
            coordinates = item(NumberOfSurfacePoints=len(points), PointCoordinatesData=world.tobytes())
            mesh = item(**primitives)
            whole = {"SurfaceNumber": surface, "FiniteVolume": "YES", **more}
            dataset.SurfaceSequence.append(item(**whole, SurfacePointsSequence=[coordinates], SurfaceMeshPrimitivesSequence=[mesh]))
            named.append(item(ReferencedSurfaceNumber=surface, SegmentSurfaceSourceInstanceSequence=sources))
        dataset.SegmentSequence.append(
            item(SegmentNumber=number, SegmentLabel=name, SurfaceCount=len(named), ReferencedSurfaceSequence=named)
        )
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(file, enforce_file_format=True)
    return file


def mask_of(file: Path, name: str = "x", grid: Grid = GRID) -> Mask:
    found = read_dicom_file(file)
    (segment,) = (one for one in found.segments if one.name == name)
    return found.mask(segment, grid, False)


@pytest.mark.parametrize("seed", range(40))
def test_any_hull_holds_the_centres_that_scipy_finds_in_it(seed: int) -> None:
    stream = np.random.default_rng(seed)
    points = stream.uniform(-3, 20, (int(stream.integers(4, 60)), 3)) if seed % 2 else stream.integers(0, 12, (30, 3)) + 0.5
    hull = ConvexHull(points)
    found, ending = enclosed(points[hull.simplices], SHAPE)
    centres = np.stack(np.indices(SHAPE), -1).astype(float)
    beside = np.abs(centres @ hull.equations[:, :3].T + hull.equations[:, 3]).min(-1) > 1e-9
    np.testing.assert_array_equal(found[beside], Delaunay(points).find_simplex(centres[beside]) >= 0)
    assert ending == 0


def test_two_regions_with_a_common_side_share_no_voxel() -> None:
    """Sides and corners that run through the centres themselves."""
    whole = np.array([(x, y, z) for x in (2.0, 10.0) for y in (3.0, 9.0) for z in (1.0, 7.0)])
    found = []
    for axis in range(3):
        for end in (0, 1):
            half = whole.copy()
            half[:, axis] = (
                np.where(half[:, axis] == whole[:, axis].max(), 5.0, half[:, axis]) if not end else np.maximum(half[:, axis], 5.0)
            )
            found.append(enclosed(half[TRIANGLES], SHAPE)[0])
        assert not (found[-1] & found[-2]).any()
        np.testing.assert_array_equal(found[-1] | found[-2], enclosed(whole[TRIANGLES], SHAPE)[0])
    assert enclosed(whole[TRIANGLES], SHAPE)[0].sum() == 8 * 6 * 6


PRIMITIVES: dict[str, Mapping[str, Any]] = {
    "triangles": {"LongTrianglePointIndexList": long(TRIANGLES)},
    "triangles in 16 bits": {"TrianglePointIndexList": short(TRIANGLES)},
    "fans": {"TriangleFanSequence": [item(LongPrimitivePointIndexList=long(side)) for side in SIDES]},
    "facets": {"FacetSequence": [item(PrimitivePointIndexList=short(side)) for side in SIDES]},
    "strips": {"TriangleStripSequence": [item(LongPrimitivePointIndexList=long((a, b, d, c))) for a, b, c, d in SIDES]},
}


@pytest.mark.parametrize("kind", PRIMITIVES)
def test_a_box_of_any_primitives_in_an_oblique_image(tmp_path: Path, kind: str) -> None:
    found = mask_of(write_surface(tmp_path / "a.dcm", {"x": [(BOX, PRIMITIVES[kind])]}))
    np.testing.assert_array_equal(found.inside, INSIDE)
    assert (found.outside, found.notes) == (0, ())


def test_several_surfaces_of_a_segment_are_joined_and_what_lies_beyond_the_image_is_counted(tmp_path: Path) -> None:
    primitives = PRIMITIVES["triangles"]
    file = write_surface(tmp_path / "a.dcm", {"x": [(BOX, primitives), (BOX - [6, 0, 0], primitives)], "far": [(BOX + 100, primitives)]})
    found = mask_of(file)
    expected = INSIDE.copy()
    expected[:4, 3:8, 2:6] = True
    np.testing.assert_array_equal(found.inside, expected)
    assert found.outside == 2 * 5 * 4
    far = mask_of(file, "far")
    assert not far.inside.any() and far.outside == INSIDE.sum()


def test_what_encloses_nothing_is_told(tmp_path: Path) -> None:
    points = {"LongVertexPointIndexList": long(range(8))}
    found = mask_of(write_surface(tmp_path / "a.dcm", {"x": [(BOX, points), (BOX, PRIMITIVES["triangles"])]}))
    np.testing.assert_array_equal(found.inside, INSIDE)
    assert found.notes == ("1 surfaces enclose nothing and were left out",)
    sheet = mask_of(write_surface(tmp_path / "b.dcm", {"x": [(BOX, PRIMITIVES["triangles"])]}, FiniteVolume="NO"))
    assert not sheet.inside.any() and sheet.notes


@pytest.mark.parametrize(
    ("points", "primitives", "said"),
    [
        (BOX, {"LongTrianglePointIndexList": long(TRIANGLES[:-2])}, "is not closed"),
        (BOX, {"LongTrianglePointIndexList": long(TRIANGLES + 1)}, "points that are not there"),
        (BOX, {"LongTrianglePointIndexList": long(TRIANGLES - 1)}, "points that are not there"),
        (BOX, {"LongTrianglePointIndexList": long(TRIANGLES.ravel()[:-1])}, "lack corners"),
        (np.where(BOX == 3.5, np.nan, BOX), PRIMITIVES["triangles"], "lie nowhere"),
        ((BOX - 5) * 3000, PRIMITIVES["triangles"], "more voxels than are read"),
    ],
    ids=["open", "beyond", "before", "corner", "nan", "giant"],
)
def test_surfaces_that_make_no_sense(tmp_path: Path, points: NDArray[Any], primitives: Mapping[str, Any], said: str) -> None:
    file = write_surface(tmp_path / "a.dcm", {"x": [(points, primitives)]})
    with pytest.raises(LabelProblem, match=said):
        mask_of(file)
    dataset = pydicom.dcmread(file)
    del dataset.SurfaceSequence[:]
    dataset.save_as(file)
    with pytest.raises(LabelProblem, match="surfaces that are not there"):
        mask_of(file)


def test_any_cut_and_any_noise_is_one_message_or_a_mask(tmp_path: Path) -> None:
    content = write_surface(tmp_path / "a.dcm", {"Doe^Jane": [(BOX, PRIMITIVES["triangles"])]}).read_bytes()
    stream = np.random.default_rng(0)
    for length in stream.integers(0, len(content) - 1, 40).tolist():
        with pytest.raises(LabelProblem) as caught:
            found = read_surface(BytesIO(content[:length]))
            found.mask(found.segments[0], GRID, False)
        assert "Jane" not in str(caught.value)
    for _ in range(60):
        noisy = bytearray(content)
        for at in stream.integers(200, len(content), 8).tolist():
            noisy[at] = int(stream.integers(256))
        try:
            found = read_surface(BytesIO(bytes(noisy)))
            for segment in found.segments:
                found.mask(segment, GRID, True)
        except LabelProblem:
            pass


def test_an_index_pairs_surfaces_with_the_image_that_they_were_made_of(
    archive: Path, indexed: Callable[..., Index], tmp_path: Path
) -> None:
    images = slices_of(write_series(archive / "ct", made_volume(SHAPE), OBLIQUE, series="a"))
    write_surface(archive / "surface", {"Liver": [(BOX, PRIMITIVES["triangles"])]}, images)
    index = indexed(archive)
    assert index.rejected() == {"segmentation object": 1}
    pairing = pair_labels(index, index.volumes())
    ((volume, objects),) = pairing.objects.items()
    assert [segment.name for segment in objects[0].header.segments] == ["Liver"] and not pairing.unpaired
    record = next(record for record in index.volumes() if record.volume == volume)
    found = labels_of(index, record, objects, Classes({"liver": ("liv*",)}))
    expected = np.zeros(record.shape, bool)
    expected[:] = INSIDE
    np.testing.assert_array_equal(found.array.astype(bool), expected)
    (named,) = list_labels(tmp_path / "index").names
    assert (named.name, named.kinds) == ("Liver", ("SURFACE",))


def test_elements_without_value_representations(tmp_path: Path) -> None:
    file = write_surface(tmp_path / "a.dcm", {"x": [(BOX, PRIMITIVES["strips"])]})
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(file, implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(mask_of(file).inside, INSIDE)
