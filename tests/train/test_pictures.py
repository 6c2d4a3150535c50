"""Picture sheets: right size, right way up, whatever the numbers are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medssl.train.pictures import CELL, grey_range, middle_slice, write_sheet


def test_one_column_a_picture_and_one_row_a_sample_and_plane(tmp_path: Path) -> None:
    shape = (2, 1, 12, 10, 8)
    images = {name: torch.rand(shape) for name in ("input", "target", "prediction")}
    path = write_sheet(tmp_path / "deep" / "a.png", images, "step 5", rows=4)
    with Image.open(path) as image:
        assert image.width >= 3 * CELL and image.height >= 6 * CELL
    flat = write_sheet(tmp_path / "b.png", {"input": torch.rand(5, 3, 9, 7)}, rows=2)
    with Image.open(flat) as image:
        assert 2 * CELL <= image.height < 3 * CELL
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.png", "deep"]


def test_slices_show_front_or_head_up_and_the_patients_right_on_the_left() -> None:
    volume = np.zeros((1, 5, 7, 9), np.float32)
    volume[:, 4, 6, :] = 1  # right, front
    axial = middle_slice(volume, 0)
    assert axial.shape == (1, 7, 5) and axial[0, 0, 0] == 1 and axial.sum() == 1
    volume = np.zeros((1, 5, 7, 9), np.float32)
    volume[:, 4, :, 8] = 1  # right, head
    coronal = middle_slice(volume, 1)
    assert coronal.shape == (1, 9, 5) and coronal[0, 0, 0] == 1
    assert middle_slice(volume, 2).shape == (1, 9, 7)
    assert middle_slice(np.zeros((3, 4, 6), np.float32), 0).shape == (3, 6, 4)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -1e30])
def test_flat_and_not_finite_images_still_give_a_sheet(tmp_path: Path, value: float) -> None:
    images = {"input": torch.full((1, 1, 4, 4), value), "other": torch.rand(1, 2, 4, 4)}
    with Image.open(write_sheet(tmp_path / "a.png", images)) as image:
        image.load()
    low, high = grey_range(images["input"].numpy())
    assert low < high


def test_brighter_voxels_are_brighter(tmp_path: Path) -> None:
    ramp = torch.linspace(0, 1, CELL).repeat(CELL, 1)[None, None]  # grows along y, which points up
    with Image.open(write_sheet(tmp_path / "a.png", {"input": ramp})) as image:
        column = np.asarray(image.convert("L"))[:, -CELL // 2][-CELL - 4 : -4].astype(int)
    assert column[0] > 250 and column[-1] < 5 and (np.diff(column) <= 0).all()
