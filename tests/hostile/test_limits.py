"""No file costs more than its limits, whatever it says of itself; each is counted, and the others are read."""

from __future__ import annotations

import gzip
import io
import resource
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hostile.conftest import Summed, contents, tar_of
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medssl.archive import Index, Nifti, Reason, TarSource, ZipSource, limits, read_nifti, write_nifti
from medssl.archive.headers import scan
from medssl.archive.limits import Refused, watched
from medssl.archive.nifti import files
from medssl.errors import ArchiveError, DataError
from medssl.testing.dicom import made_affine, made_volume, write_series


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test can bear."""
    monkeypatch.setattr(limits, "UNPACKED", 2**22)
    monkeypatch.setattr(limits, "SECONDS", 1.0)
    monkeypatch.setattr(files, "LONGEST", 2**22)


def peak() -> int:
    """The most memory that this process had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def deflated(content: bytes, rest: bytes = b"") -> bytes:
    """A DICOM file with its data set deflated, and zeros to unpack behind it."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    target = io.BytesIO()
    dataset.save_as(target, implicit_vr=False, little_endian=True)
    whole = target.getvalue()
    at = whole.index(b"\x08\x00\x05\x00") if b"\x08\x00\x05\x00" in whole else whole.index(b"\x08\x00\x08\x00")
    meta = whole[:at].replace(b"1.2.840.10008.1.2.1\0", DeflatedExplicitVRLittleEndian.encode())
    # The length of the element grew by two, and so did the group's.
    place = meta.index(b"\x02\x00\x10\x00UI") + 6
    meta = meta[:place] + (22).to_bytes(2, "little") + meta[place + 2 :]
    length = int.from_bytes(meta[140:144], "little") + 2
    meta = meta[:140] + length.to_bytes(4, "little") + meta[144:]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return meta + packer.compress(whole[at:] + rest) + packer.flush()


def test_a_deflated_file_is_read_and_a_bomb_is_too_large(low: None, tmp_path: Path, summed: Summed) -> None:
    folder = tmp_path / "archive"
    files = write_series(folder, made_volume(), made_affine())
    for file in files:
        file.write_bytes(deflated(file.read_bytes()))
    assert summed(folder).rejected == {}
    index = Index(tmp_path / "index")
    assert np.array_equal(index.read(index.volumes()[0].volume).array, made_volume())
    bomb = deflated(contents(1)["made/0/IM00000"], bytes(2**28))
    (folder / "bomb").write_bytes(bomb)
    assert len(bomb) < 2**20
    before = peak()
    assert summed(folder).rejected == {Reason.TOO_LARGE: 1}
    assert peak() - before < 2**27


def test_a_compressed_nifti_costs_what_its_header_says(low: None, tmp_path: Path, summed: Summed) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    plain = write_nifti(Nifti(made_volume(), made_affine()), tmp_path / "a.nii").read_bytes()
    (folder / "long.nii.gz").write_bytes(gzip.compress(plain + bytes(2**28)))
    large = Nifti(np.zeros((256, 256, 64), np.int16), made_affine())
    write_nifti(large, folder / "large.nii.gz")
    before, started = peak(), time.thread_time()
    summary = summed(folder)
    assert summary.rejected == {Reason.TOO_LARGE: 1} and len(summary.volumes) == 1
    assert peak() - before < 2**27 and time.thread_time() - started < 1
    assert np.array_equal(read_nifti(folder / "long.nii.gz").array, made_volume())
    with pytest.raises(DataError, match="are read"):
        read_nifti(folder / "large.nii.gz")


def test_a_zip_bomb_is_too_large_and_a_tar_bomb_is_refused(low: None, tmp_path: Path, summed: Summed) -> None:
    files = contents(1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in (files | {"bomb": bytes(2**27)}).items():
            packed.writestr(name, content)
    summary = summed(tmp_path / "a.zip")
    assert summary.rejected == {Reason.TOO_LARGE: 1} and len(summary.volumes) == 1
    with pytest.raises(Refused):
        ZipSource(str(tmp_path / "a.zip")).open("bomb")
    (tmp_path / "a.tgz").write_bytes(tar_of(files | {"bomb": bytes(2**27)}, "w:gz"))
    with pytest.raises(ArchiveError, match="unpacks to more than"):
        TarSource(str(tmp_path / "a.tgz"))


@pytest.mark.parametrize("begins", [0, 132, 600])
def test_zeros_of_a_failed_copy_cost_no_time(begins: int, tmp_path: Path, summed: Summed) -> None:
    (tmp_path / "archive").mkdir()
    whole = contents(1)["made/0/IM00000"]
    (tmp_path / "archive" / "a").write_bytes(whole[:begins] + bytes(2**25))
    started = time.thread_time()
    summary = summed(tmp_path / "archive")
    assert sum(summary.rejected.values()) == 1 and time.thread_time() - started < 1


def test_a_file_that_takes_too_long_is_counted(low: None, tmp_path: Path, summed: Summed) -> None:
    folder = tmp_path / "archive"
    write_series(folder, made_volume(), made_affine())
    whole = contents(1)["made/0/IM00000"]
    at = whole.index(b"\x08\x00\x16\x00")
    (folder / "endless").write_bytes(whole[:at] + b"\x09\x00\x02\x10LO\0\0" * 2**22)
    started = time.thread_time()
    summary = summed(folder)
    assert summary.rejected == {Reason.TOO_LONG: 1} and len(summary.volumes) == 1
    assert 1 < time.thread_time() - started < 4


def test_a_watched_file_is_the_file(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(100_000)
    file = watched(io.BytesIO(content))
    assert file.seek(-10, io.SEEK_END) == 99_990 and file.read() == content[-10:]
    assert file.seek(5) == 5 and file.read(70_000) == content[5:70_005] and file.tell() == 70_005


def test_no_more_memory_is_set_aside_than_there_are_bytes() -> None:
    file = watched(io.BytesIO(bytes(10)))
    tracemalloc.start()
    assert file.read(2) == bytes(2) and file.read(2**31) == bytes(8) and file.read(2**31) == b""
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_files_that_kill_or_fill_their_worker_are_counted(tmp_path: Path, summed: Summed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single shard is read by a worker too."""
    write_series(tmp_path / "archive", made_volume(), made_affine())
    (tmp_path / "archive" / "filler").write_bytes(b"fill")

    def greedy(file: io.BytesIO, *rest: object) -> object:
        file.seek(0)
        if file.read(4) == b"fill":
            return bytearray(2**31)
        return whole(file, *rest)

    whole = scan._scan_open
    monkeypatch.setattr(scan, "_scan_open", greedy)
    monkeypatch.setattr(limits, "MEMORY", 2**28)
    own = resource.getrlimit(resource.RLIMIT_AS)
    assert summed(tmp_path / "archive", workers=2).rejected == {Reason.TOO_LARGE: 1}
    assert resource.getrlimit(resource.RLIMIT_AS) == own
