"""`medssl labels` shows the names that there are, from an index, a folder or a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from archive.conftest import Indexed
from archive.labels.made import ball, contour, slices_of, write_rtstruct, write_seg
from archive.labels.test_nrrd import write_slicer

from medssl.cli import main
from medssl.testing.dicom import made_affine, made_volume, write_series

SHAPE = (20, 16, 12)
AFFINE = made_affine()


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_names_of_an_index_a_folder_and_a_file(archive: Path, indexed: Indexed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        images = slices_of(write_series(archive / f"{number}", made_volume(SHAPE), AFFINE, patient=f"P{number}"))
        write_seg(archive / f"seg{number}.dcm", images, {"Liver": ball(SHAPE, (8, 7, 5), 4)})
    square = contour(np.array([[3.5, 3.5, 4], [9.5, 3.5, 4], [9.5, 8.5, 4]]), AFFINE)
    write_rtstruct(archive / "rt.dcm", {"Liver": [square], "GTV\x1b[31m": [square]}, images)
    indexed(archive)
    said = json.loads(run(capsys, "labels", tmp_path / "index", "--json"))
    assert said["segments"] == [
        {"name": "Liver", "kinds": ["RTSTRUCT", "SEG"], "numbers": [1], "objects": 3},
        {"name": "GTV\x1b[31m", "kinds": ["RTSTRUCT"], "numbers": [2], "objects": 1},
    ]
    assert said["notes"] == ["3 label objects of 2 volumes"]
    table = run(capsys, "labels", tmp_path / "index")
    assert "Liver" in table and "GTV?[31m" in table and "\x1b[31m" not in table
    write_slicer(archive / "a.seg.nrrd", [np.ones(SHAPE, np.uint8)], AFFINE, [{"Name": "kidney", "LabelValue": 4}])
    (archive / "b.nrrd").write_bytes(b"no")
    said = json.loads(run(capsys, "labels", archive, "--json"))
    assert {one["name"] for one in said["segments"]} == {"Liver", "GTV\x1b[31m", "kidney"}
    assert said["notes"] == ["4 files with named segments", "1 files that are no labels or cannot be read"]
    assert "kidney" in run(capsys, "labels", archive / "a.seg.nrrd")
