"""Bits: stored, high, signed, unused; byte orders; compressed copies; against pydicom and by hand."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from medssl.archive import Index, Reason
from medssl.archive.instance import Instance
from medssl.archive.pixels.values import stored_values
from medssl.errors import ArchiveError
from medssl.testing.dicom import made_affine, made_volume, write_series

Indexed = Callable[..., Index]


def stored(raw: int, *, bits: int, high: int, signed: int) -> int:
    """What one 16-bit word means."""
    content = b"\xe0\x7f\x10\x00OW\0\0\x02\0\0\0" + raw.to_bytes(2, "little")
    place = {"syntax": ExplicitVRLittleEndian, "rows": 1, "columns": 1, "pixels_at": 0}
    instance = Instance(0, b"", **place, bits_allocated=16, bits_stored=bits, high_bit=high, signed=signed)
    return int(stored_values(BytesIO(content), instance)[0, 0])


def test_bits_that_are_not_stored_do_not_count() -> None:
    assert stored(0xF123, bits=12, high=11, signed=0) == 0x123
    assert stored(0x0FFF, bits=12, high=11, signed=1) == -1
    assert stored(0xFFFF, bits=12, high=11, signed=1) == -1
    assert stored(0x07FF, bits=12, high=11, signed=1) == 2047
    assert stored(0x1230, bits=12, high=15, signed=0) == 0x123
    assert stored(0x8000, bits=16, high=15, signed=1) == -32768
    assert stored(0x8000, bits=16, high=15, signed=0) == 32768


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_uncompressed_syntax(syntax: str, archive: Path, indexed: Indexed) -> None:
    truth = made_volume()

    def swap(dataset: Dataset, _: int) -> None:
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()

    write_series(archive, truth, made_affine(), syntax=syntax, adjust=swap)
    index = indexed(archive)
    (record,) = index.volumes()
    assert np.array_equal(index.read(record.volume).array, truth)


def test_compressed_pixels_equal_the_uncompressed(archive: Path, indexed: Indexed) -> None:
    truth = np.abs(made_volume((32, 24, 3)))
    for file in write_series(archive, truth, made_affine(), signed=False, bits_stored=12, modality="MR"):
        dataset = pydicom.dcmread(file)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(file)
    index = indexed(archive)
    (record,) = index.volumes()
    assert np.array_equal(index.read(record.volume).array, truth)
    cut = sorted(archive.iterdir())[1]
    cut.write_bytes(cut.read_bytes()[:-40])
    assert indexed(archive).rejected()[Reason.TRUNCATED] == 1


def test_unsigned_values_over_int16_come_as_float32(archive: Path, indexed: Indexed) -> None:
    truth = made_volume().astype(int) + 40000
    write_series(archive, truth, made_affine(), signed=False, modality="MR")
    index = indexed(archive)
    array = index.read(index.volumes()[0].volume).array
    assert array.dtype == np.float32 and np.array_equal(array, truth)


def test_8_bit_and_odd_lengths(archive: Path, indexed: Indexed) -> None:
    truth = (np.abs(made_volume((5, 5, 3))) % 256).astype(np.uint8)

    def change(dataset: Dataset, z: int) -> None:
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
        dataset.PixelData = truth[:, :, z].T.tobytes() + b"\0"

    write_series(archive, truth.astype(int), made_affine(), signed=False, adjust=change)
    index = indexed(archive)
    assert np.array_equal(index.read(index.volumes()[0].volume).array, truth)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("BitsStored", 17),
        ("HighBit", 20),
        ("HighBit", 3),
        ("BitsAllocated", 32),
        ("RescaleSlope", 0),
        ("PixelRepresentation", 2),
        ("Rows", 0),
    ],
)
def test_bits_that_make_no_sense_are_a_reason(keyword: str, value: int, archive: Path, indexed: Indexed) -> None:
    write_series(archive, made_volume((4, 4, 3)), made_affine(), adjust=lambda dataset, _: setattr(dataset, keyword, value))
    index = indexed(archive)
    assert index.rejected() == {Reason.BAD_PIXELS: 3} and index.volumes() == []


def test_padding_and_monochrome1_are_noted(archive: Path, indexed: Indexed) -> None:
    def change(dataset: Dataset, _: int) -> None:
        dataset.add_new("PixelPaddingValue", "SS", -2000)
        dataset.PhotometricInterpretation = "MONOCHROME1"

    write_series(archive, made_volume(), made_affine(), adjust=change)
    warnings = " ".join(indexed(archive).volumes()[0].warnings)
    assert "padding value -2000" in warnings and "MONOCHROME1" in warnings


def test_a_file_that_changed_or_went_after_indexing_is_an_error_not_other_voxels(archive: Path, indexed: Indexed) -> None:
    files = write_series(archive, made_volume(), made_affine())
    index = indexed(archive)
    name = index.volumes()[0].volume
    files[3].write_bytes(files[3].read_bytes()[200:])
    with pytest.raises(ArchiveError, match="slice 3 .*index it again"):
        index.read(name)
    files[3].unlink()
    with pytest.raises(ArchiveError, match="slice 3 .*moved or deleted"):
        index.read(name)
