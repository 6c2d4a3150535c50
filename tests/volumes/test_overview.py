"""`medssl show INDEX`: numbers by how volumes were taken, and middle slices that lie as they should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from medssl.archive import Index, build_index
from medssl.cli.app import main
from medssl.errors import ArchiveError
from medssl.testing.dicom import made_affine, made_volume, write_secondary_capture, write_series
from medssl.volumes.overview import archive_kinds, warnings_of, write_overview
from medssl.volumes.showing import CELL


@pytest.fixture
def index(tmp_path: Path) -> Path:
    def chest(dataset: Dataset, z: int) -> None:
        dataset.BodyPartExamined, dataset.Manufacturer = "CHEST", "SIEMENS Healthineers"

    folder = tmp_path / "archive"
    write_series(folder / "1", made_volume((20, 16, 12)), made_affine(), patient="A", adjust=chest)
    write_series(folder / "2", made_volume((10, 16, 8)), made_affine((1, 1, 4)), patient="B", adjust=chest)
    write_series(folder / "3", made_volume((10, 16, 6)), made_affine(), patient="B", series="mr", modality="MR", skip=[3])
    write_secondary_capture(folder / "4")
    build_index([folder], tmp_path / "index", workers=1)
    return tmp_path / "index"


def code_of(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_volumes_are_counted_by_how_they_were_taken(index: Path) -> None:
    ct, mr = archive_kinds(Index(index))
    assert (ct.modality, ct.body_part, ct.manufacturer, ct.volumes, ct.patients, ct.files) == ("CT", "CHEST", "Siemens", 2, 2, 20)
    assert (ct.shape, ct.spacing[2]) == (("10 15 20", "16 16 16", "8 10 12"), "2 3 4")
    assert (mr.modality, mr.body_part, mr.volumes, mr.patients) == ("MR", "", 2, 1)
    assert warnings_of(Index(index)) == {"the slices have gaps or uneven distances: cut into ... regular runs, ... slices left over": 2}


def test_the_command_finds_out_what_a_folder_is(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "made" / "sheet.png"
    assert code_of("show", index, "--picture", picture, "--rows", 3) == 0
    captured = capsys.readouterr()
    assert "Siemens" in captured.out and "secondary capture" in captured.out and "regular runs" in captured.out
    assert str(picture) in captured.err and picture.stat().st_mode & 0o777 == 0o600
    assert Image.open(picture).size[0] > 3 * CELL
    assert code_of("show", index, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["rejected"] == {"secondary capture": 1} and [kind["volumes"] for kind in shown["kinds"]] == [2, 2]
    assert code_of("store", index, "--out", tmp_path / "store", "--min-slices", 1) == 0
    assert code_of("show", tmp_path / "store", "--json") == 0
    assert "store" in json.loads(capsys.readouterr().out)
    assert code_of("show", tmp_path) == 2
    assert "neither an index nor a store" in capsys.readouterr().err


def test_middle_slices_lie_with_the_right_on_the_left_and_the_head_up(tmp_path: Path) -> None:
    array = np.zeros((16, 16, 16), np.int16)
    array[:8] += 100  # made_affine's first axis runs to the left: the patient's right is bright
    array[:, :, 8:] += 50
    write_series(tmp_path / "a", array, made_affine((1, 1, 1)))
    build_index([tmp_path / "a"], tmp_path / "index", workers=1)
    sheet = np.asarray(Image.open(write_overview(Index(tmp_path / "index"), tmp_path / "sheet.png")).convert("L"), float)
    axial, coronal, sagittal = (sheet[20:170, 8 + 166 * n : 160 + 166 * n] for n in range(3))
    assert axial[:, :70].mean() > axial[:, 80:].mean() + 50
    assert coronal[:70].mean() > coronal[80:].mean() + 20 and coronal[:, :70].mean() > coronal[:, 80:].mean() + 50
    assert sagittal[:70].mean() > sagittal[80:].mean() + 20


def test_a_volume_whose_files_are_gone_has_its_caption_alone(index: Path, tmp_path: Path) -> None:
    whole = write_overview(Index(index), tmp_path / "whole.png").read_bytes()
    shutil.rmtree(tmp_path / "archive" / "1")
    assert write_overview(Index(index), tmp_path / "part.png").read_bytes() != whole
    build_index([tmp_path / "archive" / "4"], tmp_path / "none", workers=1)
    with pytest.raises(ArchiveError, match="no volume to draw"):
        write_overview(Index(tmp_path / "none"), tmp_path / "none.png")
