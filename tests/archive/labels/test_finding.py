"""Label objects of an index find the volume that they were drawn on, or say why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from archive.conftest import Indexed
from archive.labels.made import ball, contour, slices_of, write_rtstruct, write_seg

from medssl.archive.labels.finding import labels_of, pair_labels
from medssl.archive.labels.merging import Classes
from medssl.testing.dicom import made_affine, made_volume, uid, write_series

SHAPE = (20, 16, 12)
AFFINE = made_affine()
MASK = ball(SHAPE, (8, 7, 5), 4)
CLASSES = Classes({"liver": ("Liver",), "tumour": ("GTV",)})


def square(z: int) -> tuple[str, list[str]]:
    return contour(np.array([[3.5, 3.5, z], [9.5, 3.5, z], [9.5, 8.5, z], [3.5, 8.5, z]]), AFFINE)


def test_seg_and_rtstruct_of_one_series_become_one_map(archive: Path, indexed: Indexed) -> None:
    """In any folder, beside another series of the same patient and frame of reference."""
    images = slices_of(write_series(archive / "ct", made_volume(SHAPE), AFFINE, series="a"))
    write_series(archive / "other", made_volume(SHAPE, 1), AFFINE, series="b", seed=1, adjust=_renamed)
    (archive / "labels").mkdir()
    write_seg(archive / "labels" / "x", images, {"Liver": MASK})
    write_rtstruct(archive / "labels" / "y", {"GTV": [square(0)], "Doe^Jane": [square(3)]}, images)
    index = indexed(archive)
    assert index.rejected() == {"radiotherapy object": 1, "segmentation object": 1}
    pairing = pair_labels(index, index.volumes())
    ((volume, objects),) = pairing.objects.items()
    assert len(objects) == 2 and not pairing.unpaired
    assert index.slices(volume)[0].series == uid("MADE-1", "study 1", "a")
    record = next(record for record in index.volumes() if record.volume == volume)
    found = labels_of(index, record, objects, CLASSES)
    expected = MASK.astype(np.uint8)
    expected[4:10, 4:9, 0] = 2
    np.testing.assert_array_equal(found.array, expected)
    # The voxels of the volume lie as those of the series that was written.
    np.testing.assert_array_equal(index.read(volume).array, made_volume(SHAPE))


def _renamed(dataset: pydicom.Dataset, z: int) -> None:
    dataset.SOPInstanceUID = uid("b", z)


def test_a_series_of_two_echoes_is_told_apart_by_the_slices(archive: Path, indexed: Indexed) -> None:
    def echo(number: int) -> Callable[[pydicom.Dataset, int], None]:
        def adjust(dataset: pydicom.Dataset, z: int) -> None:
            dataset.EchoTime, dataset.SOPInstanceUID = number * 10, uid("echo", number, z)

        return adjust

    series = [slices_of(write_series(archive / f"{n}", made_volume(SHAPE, n), AFFINE, modality="MR", adjust=echo(n))) for n in (1, 2)]
    write_rtstruct(archive / "rt", {"GTV": [square(2)]}, series[1])
    index = indexed(archive)
    (volume,) = pair_labels(index, index.volumes()).objects
    np.testing.assert_array_equal(index.read(volume).array, made_volume(SHAPE, 2))


def test_without_series_by_the_frame_of_reference(archive: Path, indexed: Indexed) -> None:
    images = slices_of(write_series(archive / "ct", made_volume(SHAPE), AFFINE))
    write_series(archive / "other", made_volume(SHAPE), AFFINE, patient="MADE-2")

    def no_series(dataset: pydicom.Dataset) -> None:
        del dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence

    write_rtstruct(archive / "rt", {"GTV": [square(2)]}, images, adjust=no_series)
    index = indexed(archive)
    pairing = pair_labels(index, index.volumes())
    ((volume, _),) = pairing.objects.items()
    assert index.slices(volume)[0].patient == "MADE-1"


def test_what_belongs_nowhere_is_counted_with_its_reason(archive: Path, indexed: Indexed) -> None:
    images = slices_of(write_series(archive / "ct", made_volume(SHAPE), AFFINE))
    elsewhere = slices_of(write_series(archive.parent / "elsewhere", made_volume(SHAPE), AFFINE, patient="MADE-9"))
    write_seg(archive / "dangling", elsewhere, {"Liver": MASK})

    def twice(dataset: pydicom.Dataset) -> None:
        dataset.StructureSetROISequence[0].ROINumber = "-4"

    write_rtstruct(archive / "broken", {"GTV": [square(2)]}, images, adjust=twice)
    index = indexed(archive)
    pairing = pair_labels(index, index.volumes())
    assert dict(pairing.unpaired) == {"cannot be read": 1, "drawn on images that are not in the index, or not among its chosen volumes": 1}
    assert not pairing.objects and str(pairing).startswith("0 label objects of 0 volumes; 1 cannot be read")


def test_names_are_kept_nowhere(archive: Path, indexed: Indexed, tmp_path: Path) -> None:
    images = slices_of(write_series(archive / "ct", made_volume(SHAPE), AFFINE))
    write_rtstruct(archive / "rt", {"GTV Doe^Jane": [square(2)]}, images)
    index = indexed(archive)
    pairing = pair_labels(index, index.volumes())
    assert "Doe" not in str(pairing)
    assert not any(b"Doe" in file.read_bytes() for file in (tmp_path / "index").rglob("*") if file.is_file())
