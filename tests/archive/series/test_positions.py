"""Positions as scanners and exports write them: rounded, jittered, with commas, stripped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medssl.archive import Index, Reason, build_index
from medssl.archive.geometry import slice_normal
from medssl.testing.dicom import made_affine, made_volume, write_series

Indexed = Callable[..., Index]


def only(index: Index) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], float]:
    (record,) = index.volumes()
    volume = index.read(record.volume)
    return volume.array, volume.affine, record.warnings, record.deviation


def test_positions_rounded_to_a_tenth_are_one_volume(archive: Path, indexed: Indexed) -> None:
    affine = made_affine((0.5, 0.5, 0.625), (10.0, 20.0, -20.0))

    def rounded(dataset: Dataset, _: int) -> None:
        dataset.ImagePositionPatient = [f"{float(value):.1f}" for value in dataset.ImagePositionPatient]

    write_series(archive, made_volume((5, 4, 30)), affine, adjust=rounded)
    array, found, warnings, deviation = only(indexed(archive))
    assert np.array_equal(array, made_volume((5, 4, 30))) and warnings == () and 0.01 < deviation < 0.06
    far = np.array([4, 3, 29, 1])
    assert np.abs(found @ far - affine @ far).max() < 0.06


def test_jittered_positions_are_one_volume_that_says_by_how_much(archive: Path, indexed: Indexed) -> None:
    off = np.random.default_rng(0).uniform(-0.1, 0.1, 12)

    def jittered(dataset: Dataset, z: int) -> None:
        x, y, height = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, f"{float(height) + off[z]:.6f}"]

    write_series(archive, made_volume(), made_affine(), adjust=jittered)
    array, found, warnings, deviation = only(indexed(archive))
    step, origin = np.polyfit(np.arange(12), -20 + 2.0 * np.arange(12) + off, 1)
    assert np.array_equal(array, made_volume())
    assert found[2, 2] == pytest.approx(step, abs=1e-5) and found[2, 3] == pytest.approx(origin, abs=1e-5)
    worst = np.abs(-20 + 2.0 * np.arange(12) + off - origin - step * np.arange(12)).max()
    assert deviation == pytest.approx(worst, abs=1e-5) and f"up to {worst:.3f} mm off" in warnings[0]
    assert indexed(archive, name="again").volumes("deviation <= 0.05") == []


FLAWS = {
    "decimal comma": (lambda text: text.replace(".", ","), "PixelSpacing is written with a decimal comma"),
    "too long": (lambda text: text + "0" * 20, "PixelSpacing is written with more than 16 characters"),
    "zero byte": (lambda text: text + "\0", "PixelSpacing ends with a zero byte"),
    "spaces": (lambda text: f"  {text}  ", None),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_numbers_that_can_be_read_are_read_and_their_flaw_is_told(flaw: str, archive: Path, indexed: Indexed) -> None:
    change, told = FLAWS[flaw]
    for file in write_series(archive, made_volume(), made_affine(), syntax="1.2.840.10008.1.2"):
        content = file.read_bytes()
        # Tag, length and value of PixelSpacing in implicit representation, the length made anew.
        start = content.index(b"\x28\x00\x30\x00")
        length = int.from_bytes(content[start + 4 : start + 8], "little")
        rows, columns = content[start + 8 : start + 8 + length].decode().strip().split("\\")
        value = f"{change(rows)}\\{change(columns)}".encode()
        value += b" " * (len(value) % 2)
        file.write_bytes(content[: start + 4] + len(value).to_bytes(4, "little") + value + content[start + 8 + length :])
    array, affine, warnings, _ = only(indexed(archive))
    assert np.array_equal(array, made_volume()) and np.allclose(affine, made_affine())
    assert warnings == ((told,) if told else ())


def test_a_missing_position_and_one_that_makes_no_sense_are_two_reasons(archive: Path, indexed: Indexed) -> None:
    def strip(dataset: Dataset, z: int) -> None:
        if z < 5:
            del dataset.ImagePositionPatient
        elif z < 8:
            dataset.ImagePositionPatient = [1e9, 0, 0]

    write_series(archive, made_volume(), made_affine(), adjust=strip)
    index = indexed(archive)
    assert index.rejected() == {Reason.NO_POSITION: 5, Reason.BAD_GEOMETRY: 3} and len(index.volumes()) == 1


def test_slice_location_stands_in_where_that_is_asked_for(archive: Path, indexed: Indexed, tmp_path: Path) -> None:
    def strip(dataset: Dataset, z: int) -> None:
        dataset.SliceLocation = f"{2.0 * z - 7:g}"
        del dataset.ImagePositionPatient

    write_series(archive, made_volume(), made_affine(), adjust=strip)
    assert indexed(archive).rejected() == {Reason.NO_POSITION: 12}
    build_index([archive], tmp_path / "by location", workers=1, slice_location=True)
    array, affine, warnings, _ = only(Index(tmp_path / "by location"))
    assert np.array_equal(array, made_volume()) and "may be mirrored" in warnings[0]
    assert np.allclose(affine[:3, 3], -7 * slice_normal([1, 0, 0, 0, 1, 0])) and np.allclose(affine[:3, :3], made_affine()[:3, :3])
