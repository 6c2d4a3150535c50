"""Whose NIfTI files and pictures of a store are, by their names or a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from volumes.test_images import radiograph

from medssl.errors import ConfigError, DataError, MissingInput
from medssl.volumes import Store, make_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures of anna and one of bea, told by folder and name."""
    for number, name in enumerate(("anna/view_1.png", "anna/view_2.png", "bea/view_3.png")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(radiograph(seed=number)).save(tmp_path / "in" / name)
    return tmp_path / "in"


def patients(store: Path) -> list[int]:
    """How many images each patient has."""
    return sorted(np.unique(Store(store).patients, return_counts=True)[1].tolist())


def test_names_tell_whose_pictures_are(folder: Path, tmp_path: Path) -> None:
    make_store([folder], tmp_path / "own")
    assert patients(tmp_path / "own") == [1, 1, 1]
    make_store([folder], tmp_path / "s", patient="^([a-z]+)/")
    assert patients(tmp_path / "s") == [1, 2]
    written = b"".join(path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file())
    assert b"anna" not in written


def test_a_table_tells_whose_pictures_are(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("case,patient\nview_1,x\nview_2,y\nview_3,x\n")
    make_store([folder], tmp_path / "s", patients=table)
    assert patients(tmp_path / "s") == [1, 2]
    table.write_text("case,patient\nview_1,x\n")
    with pytest.raises(DataError, match="names no patient of 2 of 3 cases. Every"):
        make_store([folder], tmp_path / "other", patients=table)
    with pytest.raises(MissingInput):
        make_store([folder], tmp_path / "other", patients=tmp_path / "none.csv")


def test_what_tells_nothing_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="finds no patient in 1 of 3 cases. Every") as error:
        make_store([folder], tmp_path / "s", patient="^(anna)/")
    assert "bea" not in str(error.value)
    with pytest.raises(ConfigError, match="no group"):
        make_store([folder], tmp_path / "s", patient="anna")
    with pytest.raises(ConfigError, match="not both"):
        make_store([folder], tmp_path / "s", patient="(a)", patients="t.csv")
