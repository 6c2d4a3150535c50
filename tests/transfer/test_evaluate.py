"""Dice of label maps: MONAI's metric is the oracle, absent classes are said, wrong pairs are refused."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric

from medssl.cli import main
from medssl.errors import DataError, MissingInput, UsageError
from medssl.train.checkpoint import save_checkpoint
from medssl.transfer.evaluate import Evaluation, Row, evaluate


def write(folder: Path, name: str, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "predictions", tmp_path / "labels"


def test_agrees_with_monai(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    rng = np.random.default_rng(3)
    metric = DiceMetric(include_background=False, reduction="none", num_classes=4)
    expected = []
    for number in range(4):
        truth = rng.integers(0, 4, (7, 6, 5)).astype(np.uint8)
        guess = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 4, truth.shape)).astype(np.uint8)
        if number == 2:
            truth[truth == 3] = 0
        write(predictions, f"case{number}.nii.gz", guess)
        write(labels, f"case{number}.nii.gz", truth)
        expected.append(metric(torch.tensor(guess)[None, None], torch.tensor(truth)[None, None])[0].numpy())
    result = evaluate(predictions, labels)
    ours = np.array([[np.nan if value is None else value for value in entry["dice"].values()] for entry in result.document()["cases"]])
    np.testing.assert_allclose(ours, np.array(expected), atol=1e-6)
    np.testing.assert_allclose([found.dice for found in result.classes], np.nanmean(expected, axis=0), atol=1e-6)
    assert np.isnan(ours[2, 2])
    assert result.classes[2].absent == 1
    assert result.classes[2].absent_but_predicted == 1
    assert result.dice == pytest.approx(np.nanmean(expected, axis=0).mean(), abs=1e-6)


def test_class_that_no_label_has_is_undefined_and_counted(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[:2] = 1
    guess = truth.copy()
    guess[3, 3, 3] = 5
    write(predictions, "a.nii", guess)
    write(labels, "a.nii.gz", truth.astype(np.float32))
    result = evaluate(predictions, labels)
    assert result.document()["classes"]["5"] == {"dice": None, "cases": 0, "absent": 1, "absent_but_predicted": 1}
    assert result.dice == 1.0


def test_table_shows_every_case_and_says_what_was_left_out(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[:2] = 1
    second = truth.copy()
    second[3] = 2
    for name, guess, label in (("a", second, truth), ("b", second, second)):
        write(predictions, f"{name}.nii.gz", guess)
        write(labels, f"{name}.nii.gz", label)
    columns, rows = evaluate(predictions, labels).table()
    assert columns == ["case", "class 1", "class 2", "mean"]
    assert rows[:3] == [["a", "1.0000", "-", "1.0000"], ["b", "1.0000", "1.0000", "1.0000"], ["mean", "1.0000", "1.0000", "1.0000"]]
    assert rows[3:] == [["cases with the class", "2", "1", ""], ["predicted where the label lacks it", "0", "1", ""]]


def test_unmatched_files_are_said(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    ones = np.ones((3, 3, 3), np.uint8)
    for name in ("a", "b"):
        write(predictions, f"{name}.nii.gz", ones)
    for name in ("b", "c"):
        write(labels, f"{name}.nii.gz", ones)
    document = evaluate(predictions, labels).document()
    assert [entry["case"] for entry in document["cases"]] == ["b"]
    assert document["predictions_without_label"] == ["a"]
    assert document["labels_without_prediction"] == ["c"]


@pytest.mark.parametrize("kind", ["shape", "spacing", "origin", "orientation"])
def test_differing_grid_names_both_files(folders: tuple[Path, Path], kind: str) -> None:
    predictions, labels = folders
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    other = affine.copy()
    shape = (4, 4, 5) if kind == "shape" else (4, 4, 4)
    if kind == "spacing":
        other[2, 2] = 2.5
    elif kind == "origin":
        other[0, 3] = 1.0
    elif kind == "orientation":
        other[0, 0] = -1.0
    first = write(predictions, "a.nii.gz", np.ones((4, 4, 4), np.uint8), affine)
    second = write(labels, "a.nii.gz", np.ones(shape, np.uint8), other)
    with pytest.raises(DataError) as raised:
        evaluate(predictions, labels)
    assert str(first) in str(raised.value)
    assert str(second) in str(raised.value)


def test_what_is_no_label_map_is_refused(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    path = write(predictions, "a.nii.gz", np.full((3, 3, 3), 0.4, np.float32))
    write(labels, "a.nii.gz", np.ones((3, 3, 3), np.uint8))
    with pytest.raises(DataError, match="whole numbers"):
        evaluate(predictions, labels)
    path.write_bytes(b"not a nifti file")
    with pytest.raises(DataError, match=r"a\.nii\.gz: "):
        evaluate(predictions, labels)


def test_truncated_file_is_refused(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    noise = np.random.default_rng(0).integers(0, 3, (20, 20, 20)).astype(np.uint8)
    path = write(predictions, "a.nii.gz", noise)
    write(labels, "a.nii.gz", noise)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(DataError, match=r"a\.nii\.gz: "):
        evaluate(predictions, labels)


def test_missing_folders_and_names(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    with pytest.raises(MissingInput, match="no folder of predictions"):
        evaluate(predictions, labels)
    predictions.mkdir()
    with pytest.raises(MissingInput, match=r"holds no \.nii"):
        evaluate(predictions, labels)
    write(predictions, "a.nii.gz", np.ones((3, 3, 3), np.uint8))
    write(labels, "b.nii.gz", np.ones((3, 3, 3), np.uint8))
    with pytest.raises(DataError, match="same name"):
        evaluate(predictions, labels)


def test_cases_that_have_no_part_in_the_numbers_are_said(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    predictions, labels = folders
    for name in ("a", "b", "c"):
        write(labels, f"{name}.nii.gz", np.ones((3, 3, 3), np.uint8))
    for name in ("a", "z"):
        write(predictions, f"{name}.nii.gz", np.ones((3, 3, 3), np.uint8))
    assert len(evaluate(predictions, labels).notes()) == 2
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--predictions", str(predictions), "--labels", str(labels)])
    said = capsys.readouterr().err
    assert not ended.value.code
    assert "2 label(s) without a prediction, left out: b, c. The means are over 1 case(s)." in said
    assert "1 prediction(s) without a label, left out: z." in said


def test_write(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, labels = folders
    write(predictions, "a.nii.gz", np.array([[[1, 2], [2, 0]]], np.int16))
    write(labels, "a.nii.gz", np.array([[[1, 2], [0, 0]]], np.int16))
    result = evaluate(predictions, labels)
    assert json.loads(result.write(tmp_path / "out" / "scores.json").read_text()) == result.document()
    lines = result.write(tmp_path / "scores.csv").read_text().splitlines()
    assert lines == ["case,label,dice,label_voxels,predicted_voxels", "a,1,1.0,1,1", f"a,2,{2 / 3},1,2"]
    with pytest.raises(UsageError, match=r"\.json or \.csv"):
        result.write(tmp_path / "scores.xlsx")


def test_the_command_takes_the_run_that_predicted(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, labels = folders
    truth = np.zeros((6, 6, 6), np.uint8)
    truth[:2], truth[2:4], truth[5] = 1, 2, 255
    write(labels, "a.nii.gz", truth)
    write(predictions, "a.nii.gz", np.where(truth > 0, 1, 0).astype(np.uint8))
    state = {"kind": "finetune", "label_values": {"0": 0, "1": 1, "2": 1, "255": -1}}
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run", 1, {"network": {"w": torch.zeros(1)}}, state)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--predictions", str(predictions), "--labels", str(labels), "--run", str(tmp_path / "run"), "--json"])
    assert not ended.value.code
    document = json.loads(capsys.readouterr().out)
    assert document["classes"] == {"1": {"dice": 1.0, "cases": 1, "absent": 0, "absent_but_predicted": 0}}
    write(labels, "a.nii.gz", np.full((6, 6, 6), 7, np.uint8))
    with pytest.raises(DataError, match=r"a\.nii\.gz holds the value 7, to which the run's data\.label_values gives no class"):
        evaluate(predictions, labels, tmp_path / "run")


def test_negative_values_count_as_they_are_without_a_run(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    truth = np.zeros((4, 4, 4), np.int16)
    truth[0] = -1
    write(predictions, "a.nii.gz", truth)
    write(labels, "a.nii.gz", truth)
    assert evaluate(predictions, labels).means == {-1: 1.0}


def test_a_label_in_another_orientation_is_turned_exactly(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    array = np.random.default_rng(0).integers(0, 3, (5, 4, 6)).astype(np.uint8)
    path = write(predictions, "a.nii.gz", array, np.diag([1.0, 2.0, 3.0, 1.0]))
    turned = nib.load(path).as_reoriented(nib.orientations.axcodes2ornt("PSL", (("L", "R"), ("P", "A"), ("I", "S"))))
    assert turned.shape != array.shape
    labels.mkdir(exist_ok=True)
    nib.save(turned, labels / "a.nii.gz")
    assert evaluate(predictions, labels).means == {1: 1.0, 2: 1.0}


def test_an_evaluation_fits_a_line_and_a_table(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        for name in ("a", "b"):
            write(folder, f"{name}.nii.gz", np.arange(8, dtype=np.uint8).reshape(2, 2, 2) % 3)
    found = evaluate(*folders)
    assert repr(found).startswith(f"Evaluation({len(found.cases)} cases, mean Dice {found.dice:.4f}: class ")
    assert len(repr(found)) < 200 and "\n" not in repr(found)
    shown = found._repr_html_()
    assert "<table>" in shown and all(case in shown for case in found.cases)
    many = Evaluation(tuple(Row("a", label, 0.5, 3, 3) for label in range(1, 60)), ("b",))
    assert len(repr(many)) < 200 and "and 53 more" in repr(many) and "1 files left out" in repr(many)
