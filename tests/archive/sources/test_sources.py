"""What a source promises, and what the index makes of sources that promise more: order, threads, headers, frames, versions."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless
from staged.multiframe import frame, write_enhanced

from medssl import hookimpl
from medssl.archive import (
    ArchiveSource,
    FolderSource,
    FrameSource,
    HeaderSource,
    Index,
    Nifti,
    Reason,
    Stat,
    StatSource,
    TarSource,
    ZipSource,
    build_index,
    write_nifti,
)
from medssl.archive.headers import scan
from medssl.archive.headers.dicom import transfer_syntax
from medssl.archive.headers.reader import HeaderReader
from medssl.archive.headers.scan import scan_file
from medssl.archive.index.folder import VERSION
from medssl.archive.instance import Instance
from medssl.archive.series.duplicates import mark_duplicates
from medssl.archive.sources import packed
from medssl.errors import ArchiveError, PluginError
from medssl.plugins import Plugins
from medssl.testing.dicom import made_affine, made_volume, uid, write_series


def pack_zip(file: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in contents.items():
            packed.writestr(name, content)
    return file


def pack_tar(file: Path, contents: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w:" + {".tar": "", ".tgz": "gz", ".tbz": "bz2", ".txz": "xz"}[file.suffix]) as packed:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return file


def known(*classes: type[ArchiveSource]) -> Plugins:
    """The core's sources and these."""
    offered = SimpleNamespace(medssl_archive_sources=hookimpl(lambda: classes))
    return Plugins.load({"mine": offered}, environ={"MEDSSL_ONLY": "none-of-these"})


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own, to see what is left in it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz", "a.tbz", "a.txz"])
def test_threads_that_share_a_source_get_their_own_bytes(name: str, tmp_path: Path, scratch: Path) -> None:
    contents = {f"m{number:02d}": np.random.default_rng(number).bytes(20_000 + 37 * number) for number in range(64)}
    kind, pack = (ZipSource, pack_zip) if name.endswith("zip") else (TarSource, pack_tar)
    source = kind(str(pack(tmp_path / name, contents)))
    asked = [key for seed in range(60) for key in np.random.default_rng(seed).permutation(sorted(contents)).tolist()]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            wrong = sum(not same for same in pool.map(lambda key: source.open(key).read() == contents[key], asked))
    finally:
        sys.setswitchinterval(before)
    assert wrong == 0


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_keys_come_as_they_lie_in_the_file_and_of_one_name_the_last_counts(name: str, tmp_path: Path, scratch: Path) -> None:
    file = tmp_path / name
    members = (("b", b"1"), ("a", b"2"), ("c", b"3"), ("a", b"44"))
    if name.endswith("zip"):
        with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(file, "w") as zipped:
            for key, content in members:
                zipped.writestr(key, content)
    else:
        with tarfile.open(file, "w:gz" if name.endswith("tgz") else "w") as tar:
            for key, content in members:
                member = tarfile.TarInfo(key)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    source = ZipSource(str(file)) if name.endswith("zip") else TarSource(str(file))
    assert sorted(source.keys()) == ["a", "b", "c"] and next(source.keys()) == "b"
    assert source.open("a").read() == b"44" and source.stat("a").size == 2
    for ask in (source.open, source.stat):
        with pytest.raises(OSError, match="member"):
            ask("nowhere")


def shuffled_tar(archive: Path, file: Path) -> Path:
    """The files of the archive in an order that is nobody's."""
    paths = [path for path in sorted(archive.rglob("*")) if path.is_file()]
    order = np.random.default_rng(1).permutation(len(paths))
    return pack_tar(file, {str(paths[index].relative_to(archive)): paths[index].read_bytes() for index in order})


@pytest.mark.parametrize("workers", [1, 2])
def test_a_compressed_tar_is_unpacked_once_for_an_index_and_once_for_its_volumes(
    workers: int, tmp_path: Path, archive: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        write_series(archive / str(number), made_volume((8, 8, 150), number), made_affine(), patient=str(number))
    file = shuffled_tar(archive, tmp_path / "a.tgz")
    count = tmp_path / "count"
    count.write_text("")
    size = sum(path.stat().st_size for path in archive.rglob("*") if path.is_file())

    class Counting(gzip.GzipFile):
        def read1(self, size: int = -1) -> bytes:
            content = super().read1(size)
            with count.open("a") as log:  # worker processes write it too
                log.write(f"{len(content)}\n")
            return content

    monkeypatch.setitem(packed._OPENERS, b"\x1f\x8b", Counting)

    def unpacked() -> int:
        total = sum(map(int, count.read_text().split()))
        count.write_text("")
        return total

    build_index([file], tmp_path / "index", workers=workers)
    assert size < unpacked() < 2 * size + 2**20
    assert list(scratch.iterdir()) == []
    index = Index(tmp_path / "index")
    for record in index.volumes():
        assert any(np.array_equal(index.read(record.volume).array, made_volume((8, 8, 150), number)) for number in range(2))
    assert size < unpacked() < 2 * size + 2**20
    (folder,) = scratch.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    del index
    assert list(scratch.iterdir()) == []


def test_a_forked_process_does_not_take_the_unpacked_file_along(tmp_path: Path, scratch: Path) -> None:
    source = TarSource(str(pack_tar(tmp_path / "a.tgz", {"a": b"1"})))
    child = os.fork()
    if child == 0:
        del source
        os._exit(0)
    os.waitpid(child, 0)
    assert source.open("a").read() == b"1"


def test_a_full_disk_is_said_before_it_is_full(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = pack_tar(tmp_path / "a.tgz", {"a": b"1"})
    monkeypatch.setattr(packed, "KEEP_FREE", 1.01)
    with pytest.raises(ArchiveError, match="cannot be unpacked .* Set TMPDIR"):
        TarSource(str(file))
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("name", ["a.tgz", "a.tbz", "a.txz"])
def test_a_compressed_tar_with_damaged_data_is_refused_and_leaves_nothing(name: str, tmp_path: Path, scratch: Path) -> None:
    file = pack_tar(tmp_path / name, {f"m{number}": np.random.default_rng(number).bytes(9_000) for number in range(9)})
    whole = file.read_bytes()
    file.write_bytes(whole[:5_000] + bytes(200) + whole[5_200:])
    with pytest.raises(ArchiveError, match="damaged, truncated"):
        TarSource(str(file))
    assert list(scratch.iterdir()) == []


def test_what_follows_the_end_of_a_compressed_tar_does_not_matter(tmp_path: Path, scratch: Path) -> None:
    file = pack_tar(tmp_path / "a.tgz", {"a": b"1"})
    file.write_bytes(file.read_bytes() + b"trailing bytes that are no gzip")
    assert TarSource(str(file)).open("a").read() == b"1"


class Reversed(FolderSource):
    """The last file first."""

    name = "reversed"
    schemes: ClassVar[tuple[str, ...]] = ("reversed",)

    def __init__(self, location: str) -> None:
        super().__init__(location.removeprefix("reversed:"))

    def keys(self) -> Iterator[str]:
        return reversed(list(super().keys()))


def tables(index: Path) -> tuple[Any, Any]:
    """The public tables."""
    (folder,) = index.glob("tables-*")
    return pq.read_table(folder / "volumes-0000.parquet").to_pylist(), pq.read_table(folder / "instances-0000.parquet").to_pylist()


def with_key_of(index: Path, name: str) -> Path:
    """A folder for another index that gives the same names."""
    other = index.with_name(name)
    (other / "private").mkdir(parents=True)
    shutil.copy(index / "private" / "key", other / "private" / "key")
    return other


def mixed_archive(archive: Path) -> None:
    """Two series, one with copies, one compressed, and files that are no images."""
    write_series(archive / "a", made_volume(), made_affine())
    shutil.copytree(archive / "a", archive / "copy")
    for file in write_series(archive / "b", np.abs(made_volume((9, 8, 7))), made_affine(), signed=False, modality="MR", series="mr"):
        dataset = pydicom.dcmread(file)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(file)
    write_nifti(Nifti(made_volume(), made_affine()), archive / "sub-01_T1w.nii.gz")
    (archive / "notes.txt").write_text("no image " * 50)
    (archive / "empty").touch()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_index_does_not_depend_on_the_order_of_keys(
    workers: int, tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medssl.archive.index.scanning.SHARD", (7, 7))
    mixed_archive(archive)
    first = build_index([archive], tmp_path / "index", workers=workers)
    one = tables(tmp_path / "index")
    assert first.rejected[Reason.DUPLICATE] == 12
    other = with_key_of(tmp_path / "index", "other")
    assert build_index([f"reversed:{archive}"], other, workers=workers, plugins=known(Reversed)) == first
    assert tables(other) == one


class Counted(Reversed):
    """Notes every time that it is made, in any process."""

    name = "counted"
    schemes: ClassVar[tuple[str, ...]] = ("counted",)

    def __init__(self, location: str) -> None:
        super().__init__(location.removeprefix("counted:"))
        with Path(self.location).with_name("made").open("a") as log:
            log.write("x")


def test_a_worker_makes_a_source_once_and_not_for_each_shard(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medssl.archive.index.scanning.SHARD", (2, 2))
    write_series(archive, made_volume((4, 4, 40)), made_affine())
    for workers in (1, 2):
        build_index([f"counted:{archive}"], tmp_path / "index", workers=workers, plugins=known(Counted))
        made = tmp_path / "made"
        assert len(made.read_text()) <= (1 if workers == 1 else 1 + workers)
        made.unlink()


class Remote(ArchiveSource):
    """Headers without pixels, as a PACS has them; every file that is opened is noted in `opened`."""

    name = "remote"
    schemes: ClassVar[tuple[str, ...]] = ("remote",)
    opened: ClassVar[list[str]] = []

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.files = FolderSource(location.partition(":")[2])

    def keys(self) -> Iterator[str]:
        return self.files.keys()

    def open(self, key: str) -> BinaryIO:
        self.opened.append(key)
        return self.files.open(key)

    def stat(self, key: str) -> Stat:
        return self.files.stat(key)

    def headers(self, keys: Sequence[str]) -> Iterator[tuple[str, Dataset]]:
        for key in reversed(keys):
            try:
                with self.files.open(key) as file:
                    yield key, self.header(pydicom.dcmread(file, stop_before_pixels=True))
            except pydicom.errors.InvalidDicomError:
                continue

    def header(self, dataset: Dataset) -> Dataset:
        return dataset


class RemoteJson(Remote):
    """As DICOMweb answers: JSON, without the file's own header."""

    name = "remote-json"
    schemes: ClassVar[tuple[str, ...]] = ("remote-json",)

    def header(self, dataset: Dataset) -> Dataset:
        dataset.AvailableTransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
        return Dataset.from_json(dataset.to_json())


class RemoteFrames(RemoteJson):
    """Pixels a frame at a time; nothing with frames is ever opened."""

    name = "remote-frames"
    schemes: ClassVar[tuple[str, ...]] = ("remote-frames",)
    asked: ClassVar[list[tuple[str, int]]] = []

    def frames(self, key: str, numbers: Sequence[int]) -> Iterator[bytes]:
        dataset = pydicom.dcmread(self.files.open(key))
        for number in numbers:
            self.asked.append((key, number))
            compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
            yield pydicom.encaps.get_frame(dataset.PixelData, number) if compressed else dataset.PixelData


@pytest.mark.parametrize("kind", [Remote, RemoteJson, RemoteFrames])
def test_an_index_over_headers_equals_that_over_files_and_moves_no_pixels(
    kind: type[Remote], tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "opened", [])
    monkeypatch.setattr(RemoteFrames, "asked", [])
    mixed_archive(archive)
    shutil.rmtree(archive / "copy")
    folder = build_index([archive], tmp_path / "index", workers=1)
    local = {record.volume: Index(tmp_path / "index").read(record.volume).array for record in folder.volumes}
    one = tables(tmp_path / "index")
    plugins = known(kind)
    other = with_key_of(tmp_path / "index", "other")
    assert build_index([f"{kind.schemes[0]}:{archive}"], other, workers=1, plugins=plugins) == folder
    assert tables(other) == one
    no_dicom = {"empty", "notes.txt", "sub-01_T1w.nii.gz"}
    listed = set(FolderSource(str(archive)).keys())
    assert set(kind.opened) & listed == no_dicom and RemoteFrames.asked == []
    kind.opened.clear()
    index = Index(other, plugins)
    for record in index.volumes("kind = 'dicom'"):
        found = index.read(record.volume).array
        assert found.dtype == local[record.volume].dtype and np.array_equal(found, local[record.volume])
    dicom = sorted(listed - no_dicom)
    if kind is RemoteFrames:
        assert kind.opened == [] and sorted(RemoteFrames.asked) == [(key, 0) for key in dicom]
    else:
        assert sorted(kind.opened) == dicom


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("bits", [8, 16])
def test_pixels_found_by_parsing_are_those_of_the_file(syntax: str, bits: int, tmp_path: Path, archive: Path) -> None:
    truth = np.abs(made_volume((6, 5, 3))) % (256 if bits == 8 else 2000)

    def change(dataset: Dataset, z: int) -> None:
        if bits == 8:
            dataset.BitsAllocated = dataset.BitsStored = 8
            dataset.HighBit = 7
            dataset.PixelData = truth[:, :, z].T.astype(np.uint8).tobytes()
            dataset["PixelData"].VR = "OB"
        elif syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()

    write_series(archive, truth, made_affine(), signed=False, syntax=syntax, adjust=change)
    build_index([f"remote-json:{archive}"], tmp_path / "index", workers=1, plugins=known(RemoteJson))
    index = Index(tmp_path / "index", known(RemoteJson))
    (record,) = index.volumes()
    assert np.array_equal(index.read(record.volume).array, truth)


class Offline(Remote):
    """Breaks off in the middle."""

    name = "offline"
    schemes: ClassVar[tuple[str, ...]] = ("offline",)
    error: ClassVar[Exception] = ConnectionError("the server went away")

    def headers(self, keys: Sequence[str]) -> Iterator[tuple[str, Dataset]]:
        for number, found in enumerate(super().headers(keys)):
            if number == 5:
                raise self.error
            yield found


def test_a_source_that_cannot_be_asked_leaves_files_unread_and_one_that_breaks_is_blamed(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Offline, "opened", [])
    write_series(archive, made_volume(), made_affine())
    summary = build_index([f"offline:{archive}"], tmp_path / "index", workers=1, plugins=known(Offline))
    assert summary.rejected[Reason.UNREADABLE] == 7 and Offline.opened == []
    monkeypatch.setattr(Offline, "error", KeyError("table"))
    with pytest.raises(PluginError, match=r"offline.* failed in headers: KeyError: 'table'"):
        build_index([f"offline:{archive}"], tmp_path / "index", workers=1, plugins=known(Offline))


def test_a_header_without_a_transfer_syntax_is_explicit_little_endian() -> None:
    assert transfer_syntax(Dataset()) == ExplicitVRLittleEndian
    assert transfer_syntax(Dataset.from_json({"00083002": {"vr": "UI", "Value": [str(RLELossless)]}})) == RLELossless


def test_the_promises_are_seen_by_their_methods(tmp_path: Path) -> None:
    remote = RemoteFrames(f"remote-frames:{tmp_path}")
    assert isinstance(remote, StatSource) and isinstance(remote, HeaderSource) and isinstance(remote, FrameSource)
    folder = FolderSource(str(tmp_path))
    assert isinstance(folder, StatSource) and not isinstance(folder, HeaderSource | FrameSource)


def test_a_stat_tells_a_change_and_the_index_keeps_it(tmp_path: Path, archive: Path) -> None:
    files = write_series(archive, made_volume(), made_affine())
    build_index([archive], tmp_path / "index", workers=1)
    (table,) = tmp_path.glob("index/private/tables-*/instances-0000.parquet")
    source = FolderSource(str(archive))
    rows = {os.fsdecode(row["key"]): Stat(row["size"], row["version"]) for row in pq.read_table(table).to_pylist()}
    assert rows == {key: source.stat(key) for key in rows} and len(rows) == 12
    os.utime(files[4], ns=(1, 1))
    assert [key for key in sorted(rows) if source.stat(key) != rows[key]] == [files[4].name]


class SomeFrames(RemoteFrames):
    """Has frames of some objects; of the others it gives none, as if they were stored in another way."""

    name = "some-frames"
    schemes: ClassVar[tuple[str, ...]] = ("some-frames",)
    odd: ClassVar[int] = 0

    def frames(self, key: str, numbers: Sequence[int]) -> Iterator[bytes]:
        at = sorted(self.files.keys()).index(key)
        if at % 2:
            found = list(super().frames(key, numbers))
            yield from found * 2 if at == self.odd else found


def test_an_object_of_which_a_source_has_no_frame_is_opened_and_too_many_are_an_error(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SomeFrames, "opened", [])
    write_series(archive, made_volume(), made_affine())
    plugins = known(SomeFrames)
    (record,) = build_index([f"some-frames:{archive}"], tmp_path / "index", workers=1, plugins=plugins).volumes
    assert SomeFrames.opened == []
    index = Index(tmp_path / "index", plugins)
    assert np.array_equal(index.read(record.volume).array, made_volume())
    assert sorted(SomeFrames.opened) == sorted(FolderSource(str(archive)).keys())[::2]
    monkeypatch.setattr(SomeFrames, "odd", 3)
    with pytest.raises(ArchiveError, match="did not give the 1 frames that it was asked for"):
        index.read(record.volume)


class OneObject(RemoteFrames):
    """A whole series as the frames of one object, named after its first file."""

    name = "one-object"
    schemes: ClassVar[tuple[str, ...]] = ("one-object",)

    def keys(self) -> Iterator[str]:
        yield sorted(self.files.keys())[0]

    asked_at_once: ClassVar[list[int]] = []

    def frames(self, key: str, numbers: Sequence[int]) -> Iterator[bytes]:
        self.asked_at_once.append(len(numbers))
        for number in numbers:
            yield from super().frames(sorted(self.files.keys())[number], [0])


def test_frames_of_one_file_are_instances_of_their_own(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a scan that reads multi-frame objects would hand over goes through duplicates, series, tables and reading."""
    files = write_series(archive, made_volume(), made_affine())
    positions = [tuple(map(float, pydicom.dcmread(file).ImagePositionPatient)) for file in sorted(files)]
    scan_headers = scan.scan_headers

    def framed(*given: Any) -> dict[str, list[Instance]]:
        found = scan_headers(*given)
        numbered = list(enumerate(positions))
        return {key: [replace(one, frame=number, position=place) for number, place in numbered] for key, (one,) in found.items()}

    monkeypatch.setattr(scan, "scan_headers", framed)
    monkeypatch.setattr(OneObject, "asked_at_once", [])
    plugins = known(OneObject)
    summary = build_index([f"one-object:{archive}"], tmp_path / "index", workers=1, plugins=plugins)
    (record,) = summary.volumes
    assert (summary.files, summary.instances, summary.rejected, record.shape) == (1, 1, {}, made_volume().shape)
    _, rows = tables(tmp_path / "index")
    assert len({row["instance"] for row in rows}) == 12 and sorted(row["frame"] for row in rows) == list(range(12))
    assert np.array_equal(Index(tmp_path / "index", plugins).read(record.volume).array, made_volume())
    assert OneObject.asked_at_once == [12], "all frames of an object in one question"


def test_an_index_of_an_older_format_says_how_to_make_it_again(tmp_path: Path, archive: Path) -> None:
    write_series(archive, made_volume(), made_affine())
    first = build_index([archive], tmp_path / "index", workers=1)
    mark = tmp_path / "index" / "index.json"
    mark.write_text(mark.read_text().replace(f'"version": {VERSION}', '"version": 1'))
    with pytest.raises(ArchiveError, match="format 1, .*holds less.*medssl index PATH --index"):
        Index(tmp_path / "index")
    assert build_index([archive], tmp_path / "index", workers=1) == first
    assert Index(tmp_path / "index").summary() == first
    mark.write_text(mark.read_text().replace(f'"version": {VERSION}', f'"version": {VERSION + 1}'))
    for use in (Index, lambda folder: build_index([archive], folder, workers=1)):
        with pytest.raises(ArchiveError, match=f"format {VERSION + 1}, .*Update medssl"):
            use(tmp_path / "index")


def test_one_uid_in_two_frames_is_no_duplicate() -> None:
    pair = [Instance(0, b"a", frame, kind="dicom", uid=uid("x")) for frame in (0, 1)]
    assert mark_duplicates(pair, []) == pair


def test_a_single_dicom_file_is_an_archive(tmp_path: Path, archive: Path) -> None:
    """An enhanced object holds a volume; neighbours of the file are not looked at."""
    voxels, affine = made_volume((6, 5, 7)), made_affine()
    write_enhanced(archive / "object.dcm", [frame(voxels, affine, z) for z in range(7)], affine)
    write_series(archive, made_volume((6, 5, 4)), affine)
    shutil.copy(archive / "object.dcm", archive / "no ending")
    for name in ("object.dcm", "no ending"):
        index = tmp_path / name
        assert build_index([archive / name], index, workers=2).files == 1
        (record,) = Index(index).volumes()
        assert np.array_equal(Index(index).read(record.volume).array, voxels)
        assert build_index([archive / name], index).files == 1, "and again"
    (archive / "notes.txt").write_text("no image")
    with pytest.raises(ArchiveError, match="neither a folder nor a zip, tar or DICOM file"):
        build_index([archive / "notes.txt"], tmp_path / "none")
    for location, said in (
        (f"file:{archive}", "is a folder. Give the path of a file"),
        (f"folder:{archive / 'object.dcm'}", "is no folder"),
    ):
        with pytest.raises(ArchiveError, match=said):
            build_index([location], tmp_path / "none")


def test_a_compressed_file_called_as_dicom_is_counted_once(tmp_path: Path, archive: Path) -> None:
    files = write_series(archive, made_volume((6, 5, 4)), made_affine())
    (archive / "packed.dcm").write_bytes(gzip.compress(files[0].read_bytes()))
    summary = build_index([archive], tmp_path / "index")
    assert summary.files == 5 and summary.rejected == {Reason.COMPRESSED_ARCHIVE.value: 1}


def test_a_source_that_opens_otherwise_than_its_parent_is_opened(tmp_path: Path) -> None:
    class Unmasked(FolderSource):
        """Files that lie on the disk otherwise than they are."""

        def open(self, key: str) -> BinaryIO:
            return io.BytesIO(bytes(byte ^ 0x55 for byte in super().open(key).read()))

    class Counted(Unmasked):
        started = 0

        def start(self, key: str, count: int) -> tuple[Stat, bytes]:
            type(self).started += 1
            with self.open(key) as file:
                return self.stat(key), file.read(count)

    files = write_series(tmp_path, made_volume((4, 4, 3)), made_affine())
    plain = [scan_file(FolderSource(str(tmp_path)), 0, file.name, HeaderReader()) for file in files]
    for file in files:
        seen = file.stat()
        file.write_bytes(bytes(byte ^ 0x55 for byte in file.read_bytes()))
        os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    for kind in (Unmasked, Counted):
        assert [scan_file(kind(str(tmp_path)), 0, file.name, HeaderReader()) for file in files] == plain
    assert Counted.started == 3
