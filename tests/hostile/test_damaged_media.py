"""One bad part costs one part: damaged archives, geometry that no body has, values and sizes beyond what can be kept."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hostile.conftest import Summed, contents, tar_of
from pydicom.dataset import Dataset

from medssl.archive import Index, Nifti, Reason, TarSource, build_index, narrow, read_nifti, write_nifti, write_volumes
from medssl.archive.index.export import UnreadableVolume
from medssl.archive.index.registry import DamageWarning
from medssl.errors import ArchiveError, DataError
from medssl.testing.dicom import made_affine, made_volume, write_series
from medssl.volumes import make_store

METHODS = {"stored": zipfile.ZIP_STORED, "deflate": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [0, 4, 60])
def test_a_damaged_zip_member_is_one_file(method: str, at: int, tmp_path: Path, summed: Summed) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", METHODS[method]) as packed:
        for name, content in contents().items():
            packed.writestr(name, content)
        bad = packed.infolist()[7]
    content = bytearray(file.read_bytes())
    start = bad.header_offset + 30 + len(bad.filename) + at
    content[start : start + 40] = b"\xa5" * 40
    file.write_bytes(content)
    summary = summed(file)
    assert summary.files == 18 and summary.rejected[Reason.UNREADABLE] == 1
    assert sorted(record.instances for record in summary.volumes)[-2:] == [6, 6]


@pytest.mark.parametrize("flag", [0x1, 0x40])
@pytest.mark.parametrize("method", [9, 20, 97])
def test_zip_members_that_nobody_can_unpack_are_counted(flag: int, method: int, tmp_path: Path, summed: Summed) -> None:
    """Encrypted, or packed by a method of another program."""
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in contents(1).items():
            packed.writestr(name, content)
        last = packed.infolist()[-1]
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    for place in (entry + 8, last.header_offset + 6):
        struct.pack_into("<HH", content, place, flag, method)
    file.write_bytes(content)
    assert summed(file).rejected == {Reason.UNREADABLE: 1}


def test_a_damaged_header_in_a_tar_costs_one_member_and_is_told(tmp_path: Path, summed: Summed) -> None:
    files = contents()
    whole = tar_of(files)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        eighth, ninth = (member.offset for member in tar.getmembers()[8:10])
    file = tmp_path / "a.tar"
    for damage in (b"\xa5" * 300, bytes(512), bytes(1024)):
        file.write_bytes(whole[:eighth] + damage + whole[eighth + len(damage) :])
        with pytest.warns(DamageWarning, match=f"damaged after its member 8, at byte {eighth}: .* lost"):
            summary = summed(file)
        assert summary.files == 18 and summary.rejected[Reason.DAMAGED_ARCHIVE] == 1
        assert sum(record.instances for record in summary.volumes) == 17
    assert ninth > eighth


def test_a_damaged_first_header_costs_one_member_too(tmp_path: Path, summed: Summed) -> None:
    whole = tar_of(contents(1))
    (tmp_path / "a.tar").write_bytes(b"\xa5" * 300 + whole[300:])
    with pytest.warns(DamageWarning, match="after its member 0, at byte 0"):
        summary = summed(tmp_path / "a.tar")
    assert summary.files == 6 and summary.rejected == {Reason.DAMAGED_ARCHIVE: 1}
    assert TarSource(str(tmp_path / "a.tar")).open(next(TarSource(str(tmp_path / "a.tar")).keys())).read() in contents(1).values()


@pytest.mark.parametrize("packer", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_that_is_cut_keeps_what_is_whole_and_is_told(packer: Callable[[bytes], bytes], tmp_path: Path, summed: Summed) -> None:
    files = {name: np.random.default_rng(number).bytes(200_000) for number, name in enumerate("abcdefghij")} | contents()
    whole = packer(tar_of(files))
    file = tmp_path / "a.tar"
    with tarfile.open(fileobj=io.BytesIO(tar_of(files))) as tar:
        places = [member.offset for member in tar.getmembers()[8:10]]
    cuts = (places[0], places[1] - 700, places[1] + 100) if packer is bytes else (places[0],)
    for cut in cuts:
        file.write_bytes(whole[:cut])
        with pytest.warns(DamageWarning, match=r"damaged after its member \d"):
            summary = summed(file)
        assert summary.rejected[Reason.DAMAGED_ARCHIVE] == 1 and 4 <= summary.rejected[Reason.NOT_MEDICAL] <= 9


def test_members_behind_the_end_mark_are_read_and_told(tmp_path: Path, summed: Summed) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(contents(1)) + tar_of(contents(2)))
    with pytest.warns(DamageWarning, match="after its member 6"):
        summary = summed(tmp_path / "a.tar")
    assert len(summary.volumes) == 2 and summary.rejected == {Reason.DAMAGED_ARCHIVE: 1}


@pytest.mark.parametrize("suffix", ["tar.xz", "tar.gz", "tar.bz2", "zip"])
def test_of_several_archives_a_damaged_one_costs_itself(suffix: str, tmp_path: Path, summed: Summed) -> None:
    (tmp_path / "good.tar").write_bytes(tar_of(contents(1)))
    bad = tmp_path / f"bad.{suffix}"
    packed = tar_of(contents(2), "w:" + suffix.removeprefix("tar.")) if suffix != "zip" else b"PK\x03\x04" + b"no directory" * 40
    bad.write_bytes(packed[:100] + b"\xa5" * 200 + packed[300:])
    with pytest.warns(DamageWarning, match="archive 2 of 2 is left out"):
        summary = summed(tmp_path / "good.tar", bad)
    assert len(summary.volumes) == 1 and summary.rejected == {Reason.DAMAGED_ARCHIVE: 1}
    with pytest.raises(ArchiveError, match="damaged"):
        summed(bad)


def test_a_checksum_at_the_end_of_a_compressed_tar_is_read(tmp_path: Path, summed: Summed) -> None:
    packed = bytearray(gzip.compress(tar_of(contents(1)), 0))
    packed[20_000] ^= 1
    (tmp_path / "a.tgz").write_bytes(packed)
    with pytest.raises(ArchiveError, match="damaged"):
        summed(tmp_path / "a.tgz")


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\x7f" * 11])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"g"])
def test_a_tar_with_sizes_that_cannot_be_does_not_hang(size: bytes, kind: bytes, tmp_path: Path, summed: Summed) -> None:
    whole = bytearray(tar_of(contents(1)))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        at = tar.getmembers()[3].offset
    header = whole[at : at + 512]
    header[124:136], header[156:157], header[148:156] = size, kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    whole[at : at + 512] = header
    (tmp_path / "a.tar").write_bytes(whole)
    with pytest.warns(DamageWarning, match="after its member 3"):
        assert summed(tmp_path / "a.tar").rejected[Reason.DAMAGED_ARCHIVE] == 1


def spaced(folder: Path, **elements: Any) -> None:
    def adjust(dataset: Dataset, z: int) -> None:
        for name, value in elements.items():
            setattr(dataset, name, value)

    write_series(folder, made_volume(), made_affine(), patient="bad", adjust=adjust)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"PixelSpacing": ["1e300", "1"]}, Reason.BAD_GEOMETRY),
        ({"PixelSpacing": ["1", "1e-300"]}, Reason.BAD_GEOMETRY),
        ({"RescaleSlope": "1e38"}, Reason.BAD_PIXELS),
        ({"RescaleSlope": "1e300"}, Reason.BAD_PIXELS),
        ({"RescaleSlope": "1e-300"}, Reason.BAD_PIXELS),
        ({"RescaleIntercept": "-1e39"}, Reason.BAD_PIXELS),
    ],
)
def test_numbers_that_no_body_has_are_a_reason(elements: dict[str, Any], reason: Reason, tmp_path: Path, summed: Summed) -> None:
    write_series(tmp_path / "archive/good", made_volume(), made_affine(), patient="good")
    spaced(tmp_path / "archive/bad", **elements)
    summary = summed(tmp_path / "archive")
    assert summary.rejected == {reason: 12} and len(summary.volumes) == 1


def test_slices_kilometres_apart_are_no_volume(tmp_path: Path, summed: Summed) -> None:
    write_series(tmp_path / "archive", made_volume(), made_affine((1, 1, 5000)))
    assert summed(tmp_path / "archive").rejected == {Reason.BAD_GEOMETRY: 12}


def test_counts_that_are_no_counts_are_a_reason(tmp_path: Path, summed: Summed) -> None:
    """Rows written as a decimal string of 300 digits."""
    (good, *_) = write_series(tmp_path / "archive", made_volume(), made_affine())
    content = good.read_bytes()
    place = content.index(b"\x28\x00\x10\x00US")
    rows = b"\x28\x00\x10\x00DS" + struct.pack("<H", 6) + b"1e300 "
    good.write_bytes(content[:place] + rows + content[place + 10 :])
    assert summed(tmp_path / "archive").rejected[Reason.CORRUPT] == 1


def saved(file: Path, array: np.ndarray, affine: np.ndarray | None = None, second: bool = False, **fields: Any) -> Path:
    """A NIfTI file with header fields that no library would write."""
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    image = kind(array, made_affine() if affine is None else affine)
    nibabel.save(image, file)
    content = bytearray(file.read_bytes())
    size = 540 if second else 348
    header = type(image.header)(bytes(content[:size]), check=False)
    for name, value in fields.items():
        header[name] = value
    file.write_bytes(header.binaryblock + content[size:])
    return file


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("offset", [0, 16, 300, -352, 2**40])
def test_voxels_begin_behind_the_header_or_it_is_a_reason(offset: int, second: bool, tmp_path: Path, summed: Summed) -> None:
    (tmp_path / "archive").mkdir()
    saved(tmp_path / "archive/bad.nii", made_volume(), second=second, vox_offset=offset)
    saved(tmp_path / "archive/good.nii", made_volume(seed=1), second=second)
    summary = summed(tmp_path / "archive")
    assert summary.rejected == {Reason.CORRUPT: 1} and len(summary.volumes) == 1
    with pytest.raises(DataError, match="said to begin"):
        read_nifti(tmp_path / "archive/bad.nii")


@pytest.mark.parametrize("sides", [(2**32, 2**32, 1), (2**32, 2**31, 2), (2**62, 2, 2), (32767, 32767, 32767)])
def test_sides_that_no_file_holds_are_a_reason(sides: tuple[int, ...], tmp_path: Path, summed: Summed) -> None:
    (tmp_path / "archive").mkdir()
    second = max(sides) > 32767
    saved(tmp_path / "archive/bad.nii", made_volume(), second=second, dim=[3, *sides, 1, 1, 1, 1])
    saved(tmp_path / "archive/good.nii", made_volume(seed=1))
    summary = summed(tmp_path / "archive")
    assert summary.rejected == {Reason.TOO_LARGE: 1} and len(summary.volumes) == 1
    with pytest.raises(DataError, match="is read"):
        read_nifti(tmp_path / "archive/bad.nii")


@pytest.mark.parametrize("scale", [1e300, 1e-6, 5e5])
def test_an_affine_that_no_body_has_is_a_reason_and_costs_no_other_volume(scale: float, tmp_path: Path, summed: Summed) -> None:
    (tmp_path / "archive").mkdir()
    saved(tmp_path / "archive/bad.nii", made_volume(), np.diag([scale, scale, scale, 1]), second=True)
    saved(tmp_path / "archive/good.nii", made_volume(seed=1))
    summary = summed(tmp_path / "archive")
    assert summary.rejected == {Reason.NIFTI_ORIENTATION: 1} and len(summary.volumes) == 1


def test_values_beyond_float32_are_never_made_infinite(tmp_path: Path) -> None:
    for value in (1e200, -1e200, 4e38):
        array = made_volume().astype(np.float64)
        array[1, 2, 3] = value
        with pytest.raises(DataError, match="beyond the range of float32"):
            narrow(array)
        with pytest.raises(DataError, match="beyond the range of float32"):
            read_nifti(saved(tmp_path / "a.nii", array))
        with pytest.raises(DataError, match="beyond the range of float32"):
            write_nifti(Nifti(array, made_affine()), tmp_path / "b.nii")
    with pytest.raises(DataError, match="beyond"):
        read_nifti(saved(tmp_path / "a.nii", made_volume(), scl_slope=3e38, scl_inter=0))


def test_one_volume_that_cannot_be_written_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    saved(tmp_path / "archive/a.nii", np.where(made_volume() > 0, 1e200, 1.0))
    saved(tmp_path / "archive/b.nii", made_volume(seed=1))
    build_index([tmp_path / "archive"], tmp_path / "index")
    with pytest.warns(UnreadableVolume, match="beyond the range of float32"):
        written = write_volumes(Index(tmp_path / "index"), tmp_path / "nifti")
    assert len(written) == 1
    done = make_store([tmp_path / "index"], tmp_path / "store")
    assert done.volumes == 1 and len(done.left_out) == 1


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A folder 1,500 deep, taken away again from below: Python's own removal would recur."""
    folder = tmp_path / "archive"
    names = ["/".join("d" * depth) for depth in range(1, 1_501)]
    folder.mkdir()
    for name in names:
        (folder / name).mkdir()
    yield folder
    (folder / names[-1] / "note").unlink()
    for name in reversed(names):
        (folder / name).rmdir()


def test_no_folder_is_too_deep(deep: Path, summed: Summed) -> None:
    write_series(deep, made_volume(), made_affine())
    (deep / "/".join("d" * 1_500) / "note").write_text("no image")
    assert sys.getrecursionlimit() < 1_500
    summary = summed(deep)
    assert summary.rejected == {Reason.NOT_MEDICAL: 1} and len(summary.volumes) == 1
