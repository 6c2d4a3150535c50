"""Which series are in no volume, and how the volumes were taken: in words that name nobody."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medssl.archive import Index, Reason
from medssl.archive.outcomes import ending, remedy
from medssl.cli import main
from medssl.testing.dicom import made_affine, made_volume, uid, write_secondary_capture, write_series

Indexed = Callable[..., Index]


def command(*words: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 0


def test_what_is_left_out_is_named_with_its_reason_and_what_would_mend_it(archive: Path, indexed: Indexed) -> None:
    def stripped(dataset: Dataset, _: int) -> None:
        dataset.Manufacturer = "SIEMENS"
        del dataset.ImagePositionPatient

    write_series(archive / "a", made_volume(), made_affine(), series="stripped", modality="MR", adjust=stripped)
    write_series(archive / "b", made_volume((6, 5, 1)), made_affine(), series="single")
    write_series(archive / "c", made_volume((6, 5, 4)), made_affine(), series="good")
    write_secondary_capture(archive / "d")
    index = indexed(archive)
    first, second = index.left_out()
    assert (first.modality, first.columns, first.rows, first.manufacturer, first.files) == ("MR", 20, 16, "Siemens", 12)
    assert first.reason == Reason.NO_POSITION and "--slice-location" in first.remedy
    assert (second.modality, second.files, second.reason) == ("CT", 1, Reason.SINGLE_SLICE)
    assert len({first.series, second.series, index.volumes()[0].series}) == 3


def test_the_command_lists_what_is_left_out(archive: Path, indexed: Indexed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_series(archive, made_volume((6, 5, 1)), made_affine())
    indexed(archive)
    command("volumes", tmp_path / "index", "--left-out")
    assert Reason.SINGLE_SLICE.value in capsys.readouterr().out
    command("volumes", tmp_path / "index", "--left-out", "--json")
    (found,) = json.loads(capsys.readouterr().out)["left_out"]
    assert (found["files"], found["rows"], found["columns"]) == (1, 5, 6)


def test_every_reason_to_reject_says_what_would_mend_it() -> None:
    assert {reason for reason in Reason if ending(reason) == "rejected" and not remedy(reason)} == set()


TAKEN = {
    "SeriesNumber": 7,
    "BodyPartExamined": "BRAIN",
    "ScanningSequence": ["GR", "IR"],
    "SequenceVariant": ["SK", "SP"],
    "EchoTime": 2.98,
    "RepetitionTime": 2300,
    "InversionTime": 900,
    "FlipAngle": 9,
    "ContrastBolusAgent": "GADOVIST",
    "Manufacturer": "SIEMENS HEALTHINEERS",
    "ManufacturerModelName": "MAGNETOM Prisma_fit",
    "MagneticFieldStrength": 3,
    "DiffusionBValue": 0.0,
}
WORDS = {
    "series_number": 7,
    "body_part": "BRAIN",
    "sequence": "GR/IR",
    "variant": "SK/SP",
    "echo_time": 2.98,
    "repetition_time": 2300.0,
    "inversion_time": 900.0,
    "flip_angle": 9.0,
    "contrast": "yes",
    "manufacturer": "Siemens",
    "model": "MAGNETOM Prisma",
    "field_strength": 3.0,
    "b_value": 0.0,
}


def test_a_volume_says_how_it_was_taken(archive: Path, indexed: Indexed) -> None:
    def describe(dataset: Dataset, _: int) -> None:
        for keyword, value in TAKEN.items():
            setattr(dataset, keyword, value)

    write_series(archive, made_volume((6, 5, 4)), made_affine(), modality="MR", adjust=describe)
    (record,) = indexed(archive).volumes("echo_time < 10 AND contrast = 'yes'")
    assert {name: getattr(record, name) for name in WORDS} == WORDS


def test_words_that_no_list_knows_reach_no_table(archive: Path, indexed: Indexed, tmp_path: Path) -> None:
    secret = "ZEBULON"

    def plant(dataset: Dataset, _: int) -> None:
        for keyword in ("BodyPartExamined", "ScanningSequence", "SequenceVariant", "ConvolutionKernel", "Manufacturer"):
            setattr(dataset, keyword, secret)
        dataset.ManufacturerModelName, dataset.ContrastBolusAgent = f"SOMATOM {secret}", secret
        dataset.StudyDate = "19340506"

    write_series(archive, made_volume((6, 5, 4)), made_affine(), adjust=plant)
    index = indexed(archive)
    (record,) = index.volumes()
    assert (record.model, record.body_part, record.kernel, record.manufacturer, record.contrast) == ("SOMATOM", None, None, None, "yes")
    public = b"".join(file.read_bytes() for file in (tmp_path / "index").glob("tables-*/*")) + repr(index.summary()).encode()
    assert secret.encode() not in public and b"19340506" not in public


def test_studies_of_a_patient_are_numbered_by_date_without_dates(archive: Path, indexed: Indexed) -> None:
    for number, date in enumerate(("20200305", "20180101", "20211231")):

        def dated(dataset: Dataset, z: int, number: int = number, date: str = date) -> None:
            dataset.StudyDate, dataset.SOPInstanceUID = date, uid(number, z)

        voxels = np.full((4, 4, 3 + number), number)
        write_series(archive / str(number), voxels, made_affine(), study=str(number), series=str(number), adjust=dated)
    index = indexed(archive)
    assert {record.shape[2]: record.study_number for record in index.volumes()} == {3: 2, 4: 1, 5: 3}


def test_a_store_can_ask_for_evener_slices(archive: Path, indexed: Indexed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def jittered(dataset: Dataset, z: int) -> None:
        x, y, height = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, float(height) + 0.1 * (z % 2)]

    write_series(archive / "a", made_volume((6, 5, 8)), made_affine(), series="a", adjust=jittered)
    write_series(archive / "b", made_volume((6, 5, 9)), made_affine(), series="b")
    indexed(archive)
    store = tmp_path / "store"
    command(
        "store",
        tmp_path / "index",
        "--out",
        store,
        "--min-slices",
        1,
        "--max-deviation",
        0.02,
        "--where",
        "modality = 'CT' -- all",
        "--json",
    )
    assert json.loads(capsys.readouterr().out)["volumes"] == 1
