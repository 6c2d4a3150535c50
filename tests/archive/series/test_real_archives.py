"""The real data sets: how many files end how, and do compressed copies hold the same voxels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medssl.archive import Index
from medssl.archive import Reason as R

Indexed = Callable[..., Index]

EXPECTED: dict[str, tuple[int, int, dict[R, int]]] = {
    "mr-brain-study": (346, 7, {R.SECONDARY_CAPTURE: 12, R.SINGLE_SLICE: 9, R.FAR_APART: 2, R.NOT_MEDICAL: 1, R.STRUCTURED_REPORT: 1}),
    "rt": (6, 1, {R.RADIOTHERAPY: 3, R.NOT_MEDICAL: 1}),
    "example-dicom-structural": (9, 1, {R.NOT_MEDICAL: 1}),
    "dcm_qa_frag": (193, 2, {R.NOT_MEDICAL: 1}),
    "dcm_qa_ts": (10, 9, {R.NOT_MEDICAL: 1}),
    "enhanced": (3, 5, {R.NOT_MEDICAL: 1}),
    "hippocampus": (652, 390, {R.LABEL_MAP: 260, R.NOT_MEDICAL: 2}),
    "openkbp": (69, 33, {R.LABEL_MAP: 33, R.NOT_MEDICAL: 3}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_file_ends_as_it_should(name: str, shared_data: Path, indexed: Indexed) -> None:
    summary = indexed(shared_data / name).summary()
    assert (summary.files, len(summary.volumes), summary.rejected) == EXPECTED[name]


def test_vendor_excerpts(shared_data: Path, indexed: Indexed) -> None:
    summary = indexed(shared_data / "dicom2nifti").summary()
    assert summary.files == 87 and len(summary.volumes) == 21
    assert summary.rejected[R.DUPLICATE] == 12 and summary.rejected[R.SECONDARY_CAPTURE] == 4 and summary.rejected[R.SINGLE_SLICE] == 1


def test_compressed_copies_are_duplicates_of_their_originals(shared_data: Path, indexed: Indexed) -> None:
    index = indexed(shared_data / "mr-brain-study", shared_data / "dcm_qa_frag")
    assert index.rejected()[R.DUPLICATE] == 192 and len(index.volumes()) == 7


@pytest.mark.parametrize("codec", ["rle", "jpeg", "jpegls", "j2k"])
def test_compressed_series_hold_the_same_voxels(codec: str, shared_data: Path, indexed: Indexed) -> None:
    folder = shared_data / "dicom2nifti" / "generic"
    index, truth = indexed(folder / f"compressed_{codec}"), indexed(folder / "compressed_rle", name="truth")
    (record,) = index.volumes()
    (same,) = truth.volumes()
    assert np.array_equal(index.read(record.volume).array, truth.read(same.volume).array)
    assert np.array_equal(record.affine, same.affine) and record.shape == (256, 256, 4)


def test_the_tilted_ct_keeps_its_tilt(shared_data: Path, indexed: Indexed) -> None:
    index = indexed(shared_data / "dicom2nifti" / "failing" / "gantrytilting")
    (record,) = index.volumes()
    assert "sheared by 14.0 degrees" in record.warnings[0]
    # The table moves along the patient: 5 mm straight up from slice to slice, although the slices lean.
    assert np.allclose(record.affine[:3, 2], [0, 0, 5], atol=1e-2)


def test_one_mosaic_in_every_transfer_syntax_holds_the_same_voxels(shared_data: Path, indexed: Indexed) -> None:
    index = indexed(shared_data / "dcm_qa_ts")
    volumes = [index.read(record.volume) for record in index.volumes()]
    assert len(volumes) == 9 and all(np.array_equal(volume.array, volumes[0].array) for volume in volumes)
    assert all(volume.array.shape == (64, 64, 35) and np.allclose(volume.affine, volumes[0].affine) for volume in volumes)


def test_enhanced_frames_lie_where_their_groups_say(shared_data: Path, indexed: Indexed) -> None:
    (file,) = (shared_data / "enhanced" / "siemens_multiframe_anatomical_001").glob("*.dcm")
    made = pydicom.dcmread(file)
    (record,) = (index := indexed(file.parent)).volumes()
    volume = index.read(record.volume)
    for plane, groups in zip(made.pixel_array, made.PerFrameFunctionalGroupsSequence, strict=True):
        x, y, z = groups.PlanePositionSequence[0].ImagePositionPatient
        at = np.linalg.solve(volume.affine, [-x, -y, z, 1])
        assert np.allclose(at[:2], 0, atol=1e-3) and np.array_equal(volume.array[:, :, round(at[2])], plane.T)
