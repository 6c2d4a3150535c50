"""dcm2niix as the oracle: the same grids and values, on made series and on the real ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from archive.streams import LOSSLESS, pack, smooth_volume
from pydicom import uid
from pydicom.dataset import Dataset

from medssl.archive import Index, write_volumes
from medssl.testing.dicom import made_affine, made_volume, write_series

Indexed = Callable[..., Index]
Grid = tuple[np.ndarray, np.ndarray]

UNTILTED = [
    "mr-brain-study/9001_gre_field_mapping",
    "mr-brain-study/10001_gre_field_mapping",
    "mr-brain-study/12001_DWI_dir80_AP",
    "mr-brain-study/18001_asl_2d_tra",
    "mr-brain-study/20001_asl_2d_tra",
    "dicom2nifti/ge/anatomical/001",
    "dicom2nifti/generic/anatomical/002_non_isotropic",
    "dicom2nifti/hitachi/anatomical/001",
    "dicom2nifti/hitachi/anatomical/001_implicit",
    "dicom2nifti/philips/anatomical/001",
    "dicom2nifti/failing/slicecount/001",
    "dicom2nifti/failing/sliceorientation/001",
    "dcmqi/segmentations/23x38x3/image",
    "dcmqi/segmentations/24x38x3/image",
    "dcmqi/segmentations/ct-3slice",
    "example-dicom-structural/dicoms",
    "rt/rt-utils",
    "dicom2nifti/ge/fmri",
    "dicom2nifti/ge/dti",
    "dicom2nifti/philips/fmri",
    "dicom2nifti/hyperfine/anatomical",
    "dcm_qa_ts",
]


def dcm2niix(source: Path, out: Path) -> list[Grid]:
    """Every grey 3D image that dcm2niix makes of a folder, turned to RAS+."""
    out.mkdir()
    command = [sys.executable, "-m", "dcm2niix", "-b", "n", "-z", "n", "-d", "9", "-f", "%s_%e_%j", "-o", str(out), str(source)]
    if subprocess.run(command, capture_output=True, check=False, timeout=120).returncode not in (0, 1, 6, 8):
        pytest.fail("dcm2niix did not run")
    return [loaded for file in sorted(out.glob("*.nii")) for loaded in load_all(file)]


def load_all(file: Path) -> list[Grid]:
    """An image of four dimensions is as many volumes; a colour image is none."""
    image = nibabel.load(file)
    if image.ndim < 3 or image.get_data_dtype().kind == "V":
        return []
    turned = nibabel.as_closest_canonical(image)
    array = np.asanyarray(turned.dataobj)
    return [(volume, turned.affine) for volume in np.moveaxis(array.reshape(*array.shape[:3], -1), 3, 0)]


def load(file: Path) -> Grid:
    (volume,) = load_all(file)
    return volume


def same(one: Grid, other: Grid) -> bool:
    return (
        one[0].shape == other[0].shape
        and bool(np.abs(one[1] - other[1]).max() < 1e-3)
        and bool(np.allclose(one[0], other[0], rtol=1e-6, atol=1e-6 * max(1.0, float(np.abs(other[0]).max()))))
    )


def compare(source: Path, index: Index, tmp_path: Path) -> None:
    oracle = dcm2niix(source, tmp_path / "oracle")
    written = [load(file) for file in write_volumes(index, tmp_path / "written")]
    assert written
    for ours in written:
        assert any(same(ours, theirs) for theirs in oracle), f"{ours[0].shape} {ours[1]} against {[(a.shape, b) for a, b in oracle]}"


@pytest.mark.parametrize("name", UNTILTED)
def test_real_series_agree(name: str, shared_data: Path, tmp_path: Path, indexed: Indexed) -> None:
    compare(shared_data / name, indexed(shared_data / name), tmp_path)


@pytest.mark.parametrize("syntax", [*LOSSLESS, uid.JPEGLSNearLossless, uid.JPEG2000])
def test_compressed_series_agree(syntax: str, archive: Path, tmp_path: Path, indexed: Indexed) -> None:
    def compress(dataset: Dataset, _: int) -> None:
        pack(dataset, syntax)

    write_series(archive, smooth_volume(), made_affine(), signed=False, bits_stored=12, syntax=syntax, adjust=compress)
    index = indexed(archive)
    (theirs,) = dcm2niix(archive, tmp_path / "oracle")
    (ours,) = [load(file) for file in write_volumes(index, tmp_path / "written")]
    assert np.abs(ours[0].astype(int) - theirs[0]).max() <= (syntax == uid.JPEG2000)


@pytest.mark.parametrize("name", ["mr-brain-study/5001_anat-T1w_acq-tfl", "mr-brain-study/6001_anat-T1w_acq-tfl"])
def test_where_positions_are_rounded_ours_are_the_nearer_ones(name: str, shared_data: Path, tmp_path: Path, indexed: Indexed) -> None:
    """dcm2niix takes the step from its first two slices, here 2.0001 mm, and is 0.01 mm off 95 slices further; all else is equal."""
    (ours,) = [load(file) for file in write_volumes(indexed(shared_data / name), tmp_path / "written")]
    (theirs,) = dcm2niix(shared_data / name, tmp_path / "oracle")
    assert np.array_equal(ours[0], theirs[0])
    assert np.abs(ours[1][:3, :3] - theirs[1][:3, :3]).max() < 1e-3
    stated = sorted(
        -float(pydicom.dcmread(file, stop_before_pixels=True).ImagePositionPatient[0]) for file in (shared_data / name).iterdir()
    )
    off = [np.abs([affine[0, 3] + affine[0, 0] * number - x for number, x in enumerate(stated)]).max() for affine in (ours[1], theirs[1])]
    assert off[0] < 1e-3 < off[1] < 0.02


AXES = {
    "axial": [[-1, 0, 0], [0, -1, 0], [0, 0, 1]],
    "sagittal": [[0, 0, 1], [-1, 0, 0], [0, -1, 0]],
    "coronal": [[-1, 0, 0], [0, 0, 1], [0, -1, 0]],
}


@pytest.mark.parametrize("plane", AXES)
@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("oblique", [0.0, 0.3])
def test_made_series_agree(plane: str, modality: str, oblique: float, archive: Path, tmp_path: Path, indexed: Indexed) -> None:
    cosine, sine = np.cos(oblique), np.sin(oblique)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array(AXES[plane], float).T * [0.7, 0.9, 2.5]
    affine[:3, 3] = [12.5, -33.0, 44.25]
    truth = made_volume((11, 9, 7))
    signed = modality == "CT"
    write_series(archive, truth if signed else np.abs(truth), affine, modality=modality, signed=signed, seed=3)
    compare(archive, indexed(archive), tmp_path)


def test_a_slope_that_is_no_whole_number_agrees(archive: Path, tmp_path: Path, indexed: Indexed) -> None:
    write_series(archive, np.abs(made_volume((6, 5, 4))) * 0.25 + 3, np.diag([1.0, 1, 2, 1]), modality="PT", slope=0.25, intercept=3.0)
    compare(archive, indexed(archive), tmp_path)
