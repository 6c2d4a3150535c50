"""Label maps lie on their input's own grid whatever its orientation; DICOM and NIfTI agree; what cannot be used is one message."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from staged.multiframe import frame, write_enhanced

from medssl.archive import Index, build_index
from medssl.cli import main
from medssl.errors import ArchiveError, CheckpointError, ConfigError, DataError, MissingInput, UsageError
from medssl.run import Run
from medssl.testing.dicom import write_series
from medssl.train.checkpoint import newest_good, save_checkpoint
from medssl.transfer.evaluate import evaluate
from medssl.transfer.finetune import fine_tune
from medssl.transfer.prediction import load_segmenter, predict

MakeCase = Callable[..., Path]


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_maps_are_named_by_case_and_lie_on_the_inputs_grid(tuned: Run, cases: Path, tmp_path: Path) -> None:
    affine = np.array([[0.0, -1.2, 0, 7], [0.9, 0, 0.1, -3], [0, 0.1, -2.0, 11], [0, 0, 0, 1]])
    odd = tmp_path / "odd.nii.gz"
    nib.save(nib.Nifti1Image(voxels(cases / "images/case0.nii.gz").astype(np.float32), affine), odd)
    written = predict(tuned.folder, [cases / "images", odd], tmp_path / "maps")
    assert [path.name for path in written] == [*(f"case{number}.nii.gz" for number in range(6)), "odd.nii.gz"]
    for path, source in zip(written, [*sorted((cases / "images").iterdir()), odd], strict=True):
        label_map, image = nib.load(path), nib.load(source)
        assert label_map.shape == image.shape
        np.testing.assert_allclose(label_map.affine, image.affine, atol=1e-5)
        assert label_map.get_data_dtype() == np.uint8
        assert set(np.unique(voxels(path))) <= {0, 1, 2}


def test_one_input_is_as_good_as_a_list_of_one(tuned: Run, cases: Path, tmp_path: Path) -> None:
    image = sorted((cases / "images").iterdir())[0]
    assert [file.name for file in predict(tuned, image, tmp_path / "maps")] == [image.name]


def test_case_numbers_are_no_channels_of_a_network_with_one(tuned: Run, cases: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        (tmp_path / "in" / f"vol_{number:04d}.nii.gz").symlink_to(cases / f"images/case{number}.nii.gz")
    assert [path.name for path in predict(tuned.folder, [tmp_path / "in"], tmp_path / "maps")] == ["vol_0000.nii.gz", "vol_0001.nii.gz"]
    (tmp_path / "nnunet").mkdir()
    for number in range(2):
        (tmp_path / "nnunet" / f"vol_{number}_0000.nii.gz").symlink_to(cases / f"images/case{number}.nii.gz")
    assert [path.name for path in predict(tuned.folder, [tmp_path / "nnunet"], tmp_path / "n")] == ["vol_0.nii.gz", "vol_1.nii.gz"]


@pytest.mark.parametrize("codes", [*itertools.product("LR", "AP", "SI"), tuple("SRP"), tuple("ILA"), tuple("PIR")])
def test_orientation_of_the_file_changes_no_voxel(tuned: Run, cases: Path, tmp_path: Path, codes: tuple[str, ...]) -> None:
    image = nib.load(cases / "images/case1.nii.gz")
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
    turned = apply_orientation(np.asarray(image.dataobj), turn)
    nib.save(nib.Nifti1Image(turned, image.affine @ inv_ornt_aff(turn, image.shape)), tmp_path / "turned.nii.gz")
    straight, other = predict(tuned.folder, [cases / "images/case1.nii.gz", tmp_path / "turned.nii.gz"], tmp_path / "maps")
    np.testing.assert_array_equal(apply_orientation(voxels(straight), turn), voxels(other))
    assert len(np.unique(voxels(straight))) == 3


def test_volume_smaller_than_the_crop_is_padded(tuned: Run, tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(100, 20, (3, 9, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "small.nii.gz")
    (path,) = predict(tuned.folder, [tmp_path / "small.nii.gz"], tmp_path / "maps")
    assert nib.load(path).shape == (3, 9, 2)


def test_trailing_axes_are_dropped(tuned: Run, tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(100, 20, (10, 9, 4, 1)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "trailing.nii")
    (trailing,) = predict(tuned.folder, [tmp_path / "trailing.nii"], tmp_path / "maps")
    assert nib.load(trailing).shape == (10, 9, 4)


def test_resampled_input_comes_back_on_its_own_grid(tmp_path: Path, finetune_config: Any, case_maker: MakeCase) -> None:
    run = fine_tune(config=finetune_config(60, spacing=1.5), out=tmp_path / "run")
    fine = case_maker(tmp_path, "fine", 50, affine=np.diag([-0.5, 0.75, 3.0, 1.0]), shape=(24, 20, 14))
    (path,) = predict(run.folder, [fine], tmp_path / "maps")
    assert nib.load(path).shape == (24, 20, 14)
    np.testing.assert_allclose(nib.load(path).affine, nib.load(fine).affine)


@pytest.mark.usefixtures("bf16_units")
def test_dicom_gives_the_same_voxels_as_nifti(tuned: Run, cases: Path, tmp_path: Path) -> None:
    image = nib.load(cases / "images/case2.nii.gz")
    write_series(tmp_path / "dicom", np.asarray(image.dataobj), image.affine, modality="MR")
    (from_nifti,) = predict(tuned.folder, [cases / "images/case2.nii.gz"], tmp_path / "a")
    (from_dicom,) = predict(tuned.folder, [tmp_path / "dicom"], tmp_path / "b")
    build_index([tmp_path / "dicom"], tmp_path / "index")
    (from_index,) = predict(tuned.folder, [tmp_path / "index"], tmp_path / "c")
    (record,) = Index(tmp_path / "index").volumes()
    assert from_index.name == f"{record.volume}.nii.gz"
    assert nib.load(from_dicom).shape == record.shape
    np.testing.assert_allclose(nib.load(from_dicom).affine, record.affine, atol=1e-4)
    np.testing.assert_array_equal(voxels(from_dicom), voxels(from_index))
    as_ras = [nib.as_closest_canonical(nib.load(path)) for path in (from_nifti, from_dicom)]
    np.testing.assert_array_equal(*(np.asarray(one.dataobj) for one in as_ras))
    np.testing.assert_allclose(as_ras[0].affine, as_ras[1].affine, atol=1e-4)


def test_a_single_dicom_file_is_segmented(tuned: Run, cases: Path, tmp_path: Path) -> None:
    """An enhanced object, which holds a volume."""
    image = nib.load(cases / "images/case2.nii.gz")
    array = np.asarray(image.dataobj)
    write_enhanced(tmp_path / "object.dcm", [frame(array, image.affine, z) for z in range(array.shape[2])], image.affine)
    (found,) = predict(tuned.folder, [tmp_path / "object.dcm"], tmp_path / "out")
    assert nib.load(found).shape == array.shape
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ArchiveError, match="neither a folder nor a zip, tar or DICOM file"):
        predict(tuned.folder, [tmp_path / "notes.txt"], tmp_path / "none")


def test_dicom_of_another_modality_is_refused(tuned: Run, cases: Path, tmp_path: Path) -> None:
    image = nib.load(cases / "images/case2.nii.gz")
    for modality in ("CT", "PT"):  # PT would be prepared by the same rule as MR
        write_series(tmp_path / modality, np.asarray(image.dataobj), image.affine, modality=modality)
        with pytest.raises(DataError, match=f"is {modality}, the network was fine-tuned on MR .*--unseen-modality"):
            predict(tuned.folder, [tmp_path / modality], tmp_path / "maps")
    (meant,) = predict(tuned.folder, [tmp_path / "PT"], tmp_path / "maps", unseen_modality=True)
    write_series(tmp_path / "MR", np.asarray(image.dataobj), image.affine, modality="MR")
    (expected,) = predict(tuned.folder, [tmp_path / "MR"], tmp_path / "expected")
    np.testing.assert_array_equal(voxels(meant), voxels(expected))


def test_images_that_were_normalised_already_are_warned_of_once(tuned: Run, cases: Path, tmp_path: Path) -> None:
    for number in range(3):
        image = nib.load(cases / f"images/case{number}.nii.gz")
        values = np.asarray(image.dataobj, np.float32)
        nib.save(nib.Nifti1Image((values - values.mean()) / values.std(), image.affine), tmp_path / f"case{number}.nii.gz")
    with pytest.warns(UserWarning, match="seem to be normalised already .*, unlike the MR") as said:
        predict(tuned.folder, sorted(tmp_path.glob("*.nii.gz")), tmp_path / "maps")
    assert len([one for one in said if "normalised already" in str(one.message)]) == 1


def test_prediction_is_fp32_unless_told_otherwise(tuned: Run, bf16_units: bool) -> None:
    assert load_segmenter(tuned.folder).windows.dtype is None
    if bf16_units:
        assert load_segmenter(tuned.folder, precision="bf16").windows.dtype is torch.bfloat16
    else:
        with pytest.raises(ConfigError, match="precision: auto"):
            load_segmenter(tuned.folder, precision="bf16")


def test_prediction_has_no_more_threads_than_cpus(tuned: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("medssl.train.device.available_cpus", lambda: 1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        torch.set_num_threads(3)
        load_segmenter(tuned.folder)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_command_takes_a_precision(tuned: Run, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(tuned.folder), str(cases / "images/case0.nii.gz"), "--out", str(tmp_path / "maps")]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--precision", "fp16"])
    assert ended.value.code == 2
    assert "precision: 'fp16' is none of auto, fp32, bf16" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*words, "--precision", "auto"])
    assert not ended.value.code
    assert (tmp_path / "maps/case0.nii.gz").is_file()


def test_last_checkpoint_can_be_named(tuned: Run, cases: Path, tmp_path: Path) -> None:
    last = newest_good(tuned.folder)
    assert last is not None
    assert predict(last.path, [cases / "images/case0.nii.gz"], tmp_path / "maps")


def bad_inputs(kind: str, folder: Path) -> Path:
    folder.mkdir()
    path = folder / "bad.nii.gz"
    if kind == "broken":
        path.write_bytes(b"not an image at all")
    elif kind == "channels":
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 8, 2), np.int16), np.eye(4)), path)
    elif kind == "constant":
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), path)
    elif kind == "one slice":
        nib.save(nib.Nifti1Image(np.arange(64, dtype=np.int16).reshape(8, 8), np.eye(4)), path)
    elif kind == "nan":
        nib.save(nib.Nifti1Image(np.full((8, 8, 8), np.nan, np.float32), np.eye(4)), path)
    elif kind == "text":
        path = folder / "notes.txt"
        path.write_text("hello")
        return folder
    elif kind == "empty":
        return folder
    return path


@pytest.mark.parametrize("kind", ["broken", "channels", "constant", "one slice", "nan", "text", "empty"])
def test_bad_input_is_one_message_with_its_name(tuned: Run, tmp_path: Path, kind: str) -> None:
    path = bad_inputs(kind, tmp_path / "in")
    with pytest.raises((DataError, ArchiveError)) as raised:
        predict(tuned.folder, [path], tmp_path / "maps")
    assert str(path) in str(raised.value)
    assert not list((tmp_path / "maps").glob("*")) if (tmp_path / "maps").exists() else True


def test_a_bad_input_costs_no_other_and_the_exit_code_tells(
    tuned: Run, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nib.load(cases / "images/case2.nii.gz")
    write_series(tmp_path / "ct", np.asarray(image.dataobj), image.affine, modality="CT")
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.nii.gz").write_bytes(b"not an image at all")
    for name in ("b", "c"):
        nib.save(image, folder / f"{name}.nii.gz")
    inputs = [bad_inputs("constant", tmp_path / "in"), folder, bad_inputs("text", tmp_path / "text"), tmp_path / "ct"]
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(tuned.folder), *map(str, inputs), "--out", str(tmp_path / "maps")])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert f"4 of 6 inputs could not be predicted; the label maps of the others are in {tmp_path / 'maps'}" in said
    assert all(words in said for words in ("bad.nii.gz cannot be used", "a.nii.gz: corrupt", "holds no volume", "is CT, the network"))
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["b.nii.gz", "c.nii.gz"]


def test_wrong_use(tuned: Run, cases: Path, tmp_path: Path) -> None:
    image = cases / "images/case0.nii.gz"
    with pytest.raises(MissingInput, match="no input at"):
        predict(tuned.folder, [tmp_path / "nothing"], tmp_path / "maps")
    with pytest.raises(UsageError, match="overwrite"):
        predict(tuned.folder, [image], image.parent)
    with pytest.raises(UsageError, match="two folders"):
        predict(tuned.folder, [image, cases / "labels/case0.nii.gz"], tmp_path / "maps")
    with pytest.raises(UsageError, match="nothing to predict"):
        predict(tuned.folder, [], tmp_path / "maps")
    with pytest.raises(MissingInput):
        predict(tmp_path, [image], tmp_path / "maps")
    save_checkpoint(tmp_path / "pretrained", 1, {"network": tuned.network.state_dict()}, {"kind": "pretrain"})
    with pytest.raises(CheckpointError, match="no fine-tuning"):
        predict(tmp_path / "pretrained", [image], tmp_path / "maps")


def test_what_is_made_of_labelled_cases_is_its_owners_alone(tuned: Run, cases: Path, tmp_path: Path) -> None:
    before = os.umask(0o000)
    try:
        predict(tuned.folder, [cases / "images/case0.nii.gz"], tmp_path / "maps")
        evaluate(tmp_path / "maps", cases / "labels").write(tmp_path / "maps/dice.csv")
    finally:
        os.umask(before)
    for path in (tmp_path / "maps", *(tmp_path / "maps").iterdir(), tuned.folder, *tuned.folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_full_disk_says_which_map_could_not_be_written(tuned: Run, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced = os.fsync, []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(UsageError, match=r"case1\.nii\.gz cannot be written: No space left.*1 of 2 are written and good"):
        predict(tuned.folder, [cases / f"images/case{number}.nii.gz" for number in range(2)], tmp_path / "maps")
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["case0.nii.gz"]
    evaluation = evaluate(tmp_path / "maps", cases / "labels")
    for name in ("dice.csv", "dice.json"):
        with pytest.raises(UsageError, match=rf"the evaluation cannot be written to .*{name}: No space left"):
            evaluation.write(tmp_path / name)


def test_a_name_with_control_characters_is_shown_escaped(tuned: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "\x1b[31mred.nii"
    file.write_bytes(b"cut")
    with pytest.raises(SystemExit):
        main(["predict", str(tuned.folder), str(file), "--out", str(tmp_path / "maps")])
    assert r"\x1b[31mred.nii" in capsys.readouterr().err
