"""NIfTI: what is read, what is refused, what a name says."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medssl.archive import Index, Nifti, Reason, build_index, read_nifti, write_nifti, write_volumes
from medssl.archive.index.export import UnreadableVolume
from medssl.archive.nifti.names import is_label, patient_of, session_of
from medssl.errors import DataError, MissingInput
from medssl.testing.dicom import made_affine, made_volume

Indexed = Callable[..., Index]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.uint16, np.int64, np.float64, np.bool_])
def test_what_is_written_comes_back(suffix: str, dtype: type, tmp_path: Path) -> None:
    array = (np.abs(made_volume((5, 4, 3))) % 2 if dtype is np.bool_ else np.abs(made_volume((5, 4, 3)))).astype(dtype)
    file = write_nifti(Nifti(array, made_affine()), tmp_path / f"x{suffix}")
    read, affine = read_nifti(file)
    assert np.array_equal(read, array) and np.allclose(affine, made_affine(), atol=1e-5)
    content = gzip.decompress(file.read_bytes()) if suffix == ".nii.gz" else file.read_bytes()
    header = nibabel.Nifti1Header(content[:348])
    assert (float(header["scl_slope"]), float(header["scl_inter"])) == (1.0, 0.0)
    assert header.get_xyzt_units()[0] == "mm" and int(header["sform_code"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_sheared_affine_is_written_exactly(tmp_path: Path) -> None:
    affine = made_affine()
    affine[1, 2] = 0.5
    file = write_nifti(Nifti(made_volume(), affine), tmp_path / "x.nii.gz")
    assert np.allclose(read_nifti(file).affine, affine, atol=1e-6)
    assert np.allclose(nibabel.load(file).affine, affine, atol=1e-6)


def save(file: Path, array: np.ndarray, affine: np.ndarray | None, **header: object) -> Path:
    image = nibabel.Nifti1Image(array, affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, file)
    return file


def test_what_cannot_be_trusted_is_refused_with_its_reason(tmp_path: Path, archive: Path, indexed: Indexed) -> None:
    array = made_volume((5, 4, 3))
    flat, broken = made_affine(), made_affine()
    flat[:3, 2] = 0
    broken[0, 0] = np.nan
    cases = {
        "no codes": (array, None, Reason.NIFTI_ORIENTATION),
        "flat": (array, flat, Reason.NIFTI_ORIENTATION),
        "not a number": (array, broken, Reason.NIFTI_ORIENTATION),
        "five": (np.stack([array] * 4, axis=-1).reshape(*array.shape, 2, 2), made_affine(), Reason.NIFTI_DIMENSIONS),
        "complex": (array.astype(np.complex64), made_affine(), Reason.NIFTI_VALUES),
    }
    for name, (values, affine, reason) in cases.items():
        image = nibabel.Nifti1Image(values, None)
        if affine is not None:
            image.header.set_sform(affine, code=1)
            image = nibabel.Nifti1Image(values, affine if name == "five" else None, image.header)
        nibabel.save(image, archive / f"{name}.nii.gz")
        with pytest.raises(DataError, match=reason.value):
            read_nifti(archive / f"{name}.nii.gz")
    (archive / "cut.nii").write_bytes(write_nifti(Nifti(array, made_affine()), tmp_path / "x.nii").read_bytes()[:-5])
    packed = write_nifti(Nifti(array, made_affine()), tmp_path / "x.nii.gz").read_bytes()
    (archive / "cut.nii.gz").write_bytes(packed[:-20])
    index = indexed(archive)
    assert index.rejected() == {Reason.NIFTI_ORIENTATION: 3, Reason.TRUNCATED: 2, Reason.NIFTI_DIMENSIONS: 1, Reason.NIFTI_VALUES: 1}


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    array = made_volume().astype(np.float32)
    array[1, 2, 3] = np.nan
    with pytest.raises(DataError, match="NaN"):
        read_nifti(save(tmp_path / "x.nii", array, made_affine()))
    with pytest.raises(MissingInput):
        read_nifti(tmp_path / "none.nii")


def test_scaling_units_and_trailing_axes(tmp_path: Path) -> None:
    array = made_volume((5, 4, 3))
    image = nibabel.Nifti1Image(array[..., None], np.diag([0.001, 0.002, 0.003, 1]))
    image.header.set_xyzt_units("meter")
    image.header.set_slope_inter(2, -5)
    nibabel.save(image, tmp_path / "x.nii")
    read, affine = read_nifti(tmp_path / "x.nii")
    assert read.shape == (5, 4, 3) and np.allclose(np.diag(affine), [1, 2, 3, 1])
    assert np.allclose(read, np.asanyarray(nibabel.load(tmp_path / "x.nii").dataobj)[..., 0])
    two = read_nifti(save(tmp_path / "two.nii", array[:, :, 0], made_affine()))
    assert two.array.shape == (5, 4, 1)


def test_nifti_2_and_big_endian(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(made_volume(), made_affine()), tmp_path / "x.nii.gz")
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nibabel.save(nibabel.Nifti1Image(made_volume(), made_affine(), header), tmp_path / "y.nii")
    for name in ("x.nii.gz", "y.nii"):
        assert np.array_equal(read_nifti(tmp_path / name).array, made_volume())


def test_a_data_set_gives_images_patients_and_modality(archive: Path, indexed: Indexed) -> None:
    for folder, names in {"imagesTr": ["a_0000", "a_0001", "b_0000", "b_0001"], "labelsTr": ["a", "b"]}.items():
        (archive / folder).mkdir()
        for number, name in enumerate(names):
            write_nifti(Nifti(made_volume(seed=number), made_affine()), archive / folder / f"{name}.nii.gz")
    (archive / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT", "1": "FLAIR"}}))
    index = indexed(archive)
    assert index.rejected() == {Reason.LABEL_MAP: 2, Reason.NOT_MEDICAL: 1}
    assert sorted(record.modality for record in index.volumes()) == ["CT", "CT", "MR", "MR"]
    assert len({record.patient for record in index.volumes()}) == 2
    assert {record.kind for record in index.volumes()} == {"nifti"}
    for record in index.volumes():
        assert index.read(record.volume).array.shape == record.shape


def test_the_same_image_under_two_names_is_one(archive: Path, indexed: Indexed) -> None:
    write_nifti(Nifti(made_volume(), made_affine()), archive / "a.nii.gz")
    (archive / "b.nii.gz").write_bytes((archive / "a.nii.gz").read_bytes())
    index = indexed(archive)
    assert index.rejected() == {Reason.DUPLICATE: 1} and index.volumes()[0].modality == "unknown"


def test_sidecars_and_bids_names_tell_the_modality(archive: Path, indexed: Indexed) -> None:
    for number, name in enumerate(["sub-01_T1w", "sub-02_pet", "x"]):
        write_nifti(Nifti(made_volume(seed=number), made_affine()), archive / f"{name}.nii.gz")
    (archive / "x.json").write_text('{"Modality": "CT"}')
    (archive / "sub-01_T1w.json").write_text("{ broken")
    assert sorted(record.modality for record in indexed(archive).volumes()) == ["CT", "MR", "PT"]


def test_names() -> None:
    assert patient_of("x/sub-07/ses-1/anat/sub-07_ses-1_T1w.nii.gz") == "sub-07"
    assert session_of("x/sub-07/ses-1/anat/sub-07_ses-1_T1w.nii.gz") == "sub-07/ses-1"
    assert patient_of("imagesTr/liver_12_0000.nii.gz") == "liver_12"
    assert patient_of("imagesTr/liver_12.nii.gz") == "liver_12"
    for name in ("labelsTr/a.nii.gz", "labels/a.nii", "a_seg.nii.gz", "sub-1_dseg.nii.gz", "brain_mask.nii.gz", "BraTS-seg.nii.gz"):
        assert is_label(name), name
    for name in ("imagesTr/a.nii.gz", "masked/a.nii.gz", "segment_T1w.nii.gz"):
        assert not is_label(name), name


def test_disagreeing_qform_is_a_warning(archive: Path, indexed: Indexed) -> None:
    image = nibabel.Nifti1Image(made_volume(), made_affine())
    image.set_sform(made_affine(), code=1)
    image.set_qform(made_affine((1, 1, 1)), code=1)
    nibabel.save(image, archive / "a.nii")
    (record,) = indexed(archive).volumes()
    assert np.allclose(record.affine, made_affine(), atol=1e-5) and "disagree" in record.warnings[0]


def test_an_unreadable_volume_is_left_out_of_the_export(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    good = np.arange(8**3, dtype=np.int16).reshape(8, 8, 8)
    nibabel.save(nibabel.Nifti1Image(good, np.eye(4)), tmp_path / "images/good.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.where(good > 3, np.nan, 1.0), np.eye(4)), tmp_path / "images/nan.nii.gz")
    build_index([tmp_path / "images"], tmp_path / "index")
    with pytest.warns(UnreadableVolume, match="NaN"):
        (written,) = write_volumes(Index(tmp_path / "index"), tmp_path / "nifti")
    assert np.array_equal(np.asarray(nibabel.load(written).dataobj), good)
