"""An index that is there already: only what changed is read, and the end is that of an index made at once; killed at any moment too."""

from __future__ import annotations

import json
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from forking import Forks
from pydicom.dataset import Dataset

from medssl.archive import FolderSource, Index, Nifti, Reason, build_index, compact, write_nifti
from medssl.archive.index import facts, scanning
from medssl.cli import main
from medssl.errors import ArchiveError, MissingInput
from medssl.testing.dicom import made_affine, made_volume, write_series

Rows = list[dict[str, Any]]


def tables(index: Path) -> tuple[Rows, Rows]:
    """What counts of the public tables, in an order of its own."""
    found = Index(index)._contents
    rows = [row for part in found.instances() for row in part.to_pylist()]
    return found.volumes.to_pylist(), sorted(rows, key=lambda row: row["instance"])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that were opened in this process."""
    keys: list[str] = []

    def noting(really: Callable[..., Any]) -> Callable[..., Any]:
        def called(self: FolderSource, key: str, *more: Any) -> Any:
            keys.append(key)
            return really(self, key, *more)

        return called

    for name in ("open", "start"):
        monkeypatch.setattr(FolderSource, name, noting(getattr(FolderSource, name)))
    return keys


def at_once(archive: Path, index: Path, **asked: Any) -> tuple[Rows, Rows]:
    """The tables of an index with the same key that is made in one go."""
    other = index.with_name("at-once")
    shutil.rmtree(other, ignore_errors=True)
    (other / "private").mkdir(parents=True)
    shutil.copy(index / "private" / "key", other / "private" / "key")
    build_index([archive], other, workers=1, **asked)
    return tables(other)


def dated(date: str) -> Callable[[Dataset, int], None]:
    def change(dataset: Dataset, _: int) -> None:
        dataset.StudyDate = date

    return change


def start(archive: Path) -> None:
    for number in range(3):
        folder, date = archive / str(number), dated(f"2020010{number + 1}")
        write_series(folder, made_volume((6, 5, 4), number), made_affine(), study=str(number), series=str(number), adjust=date)
    write_nifti(Nifti(made_volume(), made_affine()), archive / "sub-01_T1w.nii.gz")
    (archive / "notes.txt").write_text("no image " * 50)


def add(archive: Path) -> None:
    write_series(archive / "new", made_volume((6, 5, 4), 7), made_affine(), study="x", series="x", adjust=dated("20191231"))


def add_slices(archive: Path) -> None:
    whole = write_series(archive / "longer", made_volume((6, 5, 9), 1), made_affine(), study="1", series="1")
    for file in whole[:4]:
        file.unlink()


def remove(archive: Path) -> None:
    shutil.rmtree(archive / "0")


def remove_a_slice(archive: Path) -> None:
    next(iter(sorted((archive / "1").iterdir()))).unlink()


def copy(archive: Path) -> None:
    shutil.copytree(archive / "2", archive / "copy of 2")


def change(archive: Path) -> None:
    write_series(archive / "1", made_volume((6, 5, 4), 1), made_affine(spacing=(1.0, 1.0, 3.0)), study="1", series="1")


def move(archive: Path) -> None:
    (archive / "2").rename(archive / "elsewhere")


def pack(archive: Path) -> None:
    shutil.make_archive(str(archive / "packed"), "zip", archive / "0")
    shutil.rmtree(archive / "0")


CHANGES = [add, add_slices, remove, remove_a_slice, copy, change, move, pack]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changed_is_all_that_is_read_and_the_end_is_that_of_an_index_made_at_once(
    change: Callable[[Path], None], archive: Path, tmp_path: Path, opened: list[str]
) -> None:
    start(archive)
    build_index([archive], tmp_path / "index", workers=1)
    before = {path: path.stat().st_mtime_ns for path in archive.rglob("*")}
    opened.clear()
    change(archive)
    new = {os.fspath(path.relative_to(archive)) for path in archive.rglob("*") if path.is_file() and path not in before}
    new |= {os.fspath(path.relative_to(archive)) for path in before if path.is_file() and path.stat().st_mtime_ns != before[path]}
    build_index([archive], tmp_path / "index", workers=1)
    read = set(opened)
    found = tables(tmp_path / "index")
    assert found == at_once(archive, tmp_path / "index")
    # Copies are compared by their bytes: then the one that was known is opened too.
    assert new <= read if change is copy else read == new
    opened.clear()
    build_index([archive], tmp_path / "index", workers=1)
    assert opened == [] and tables(tmp_path / "index") == found
    names = {path.name for path in (tmp_path / "index").glob("tables-*")}
    assert names == {"tables-1", "tables-2"}


def test_changes_one_after_the_other_and_all_their_volumes_can_be_read(archive: Path, tmp_path: Path) -> None:
    start(archive)
    build_index([archive], tmp_path / "index", workers=1)
    for change in (add, copy, remove_a_slice, pack, add_slices, move):
        change(archive)
        summary = build_index([archive], tmp_path / "index", workers=1)
        assert tables(tmp_path / "index") == at_once(archive, tmp_path / "index")
    index = Index(tmp_path / "index")
    assert index.summary() == summary
    for record in index.volumes():
        assert index.read(record.volume).array.shape == record.shape


def test_folding_changes_nothing_but_the_number_of_tables(
    archive: Path, tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medssl.archive.index.compacting.BUCKET", 9)
    index = tmp_path / "index"
    start(archive)
    build_index([archive], index, workers=1)
    for change in (add, copy, remove_a_slice, pack):
        change(archive)
        build_index([archive], index, workers=1)
    wanted, read = tables(index), {record.volume: Index(index).read(record.volume).array for record in Index(index).volumes()}
    assert len(list(index.glob("tables-*"))) == 5
    opened.clear()
    with pytest.raises(SystemExit):
        main(["compact", str(index), "--json"])
    done = json.loads(capsys.readouterr().out)
    assert done["tables"] == 5 and done["after"] < done["before"] and opened == []
    assert [path.name for path in index.glob("tables-*")] == ["tables-6"] and len(list(index.glob("tables-6/volumes-*"))) > 1
    assert tables(index) == wanted
    assert all(np.array_equal(Index(index).read(name).array, array) for name, array in read.items())
    opened.clear()
    build_index([archive], index, workers=1)
    assert opened == [] and tables(index) == wanted
    assert compact(index).tables == 1
    with pytest.raises(MissingInput, match="no index folder"):
        compact(tmp_path / "nowhere")


def test_a_duplicate_whose_original_is_gone_is_an_original(archive: Path, tmp_path: Path) -> None:
    start(archive)
    copy(archive)
    assert build_index([archive], tmp_path / "index", workers=1).rejected[Reason.DUPLICATE] == 4
    shutil.rmtree(archive / "2")
    assert Reason.DUPLICATE not in build_index([archive], tmp_path / "index", workers=1).rejected
    assert tables(tmp_path / "index") == at_once(archive, tmp_path / "index")


def test_one_uid_in_two_series_concerns_both(archive: Path, tmp_path: Path) -> None:
    start(archive)
    build_index([archive], tmp_path / "index", workers=1)

    wanted = pydicom.dcmread(next((archive / "1").iterdir())).SOPInstanceUID

    def take(dataset: Dataset, z: int) -> None:
        if z == 0:
            dataset.SOPInstanceUID = wanted

    write_series(archive / "thief", made_volume((6, 5, 4), 9), made_affine(), study="t", series="t", adjust=take)
    summary = build_index([archive], tmp_path / "index", workers=1)
    assert summary.rejected[Reason.CONFLICT] == 2
    assert tables(tmp_path / "index") == at_once(archive, tmp_path / "index")


def test_what_is_asked_otherwise_is_settled_again_without_reading(archive: Path, tmp_path: Path, opened: list[str]) -> None:
    def stripped(dataset: Dataset, z: int) -> None:
        dataset.SliceLocation = float(z)
        del dataset.ImagePositionPatient

    start(archive)
    write_series(archive / "stripped", made_volume((6, 5, 4), 5), made_affine(), study="s", series="s", adjust=stripped)
    build_index([archive], tmp_path / "index", workers=1)
    opened.clear()
    summary = build_index([archive], tmp_path / "index", workers=1, slice_location=True)
    assert opened == [] and len(summary.volumes) == 5
    assert tables(tmp_path / "index") == at_once(archive, tmp_path / "index", slice_location=True)
    assert [path.name for path in (tmp_path / "index").glob("tables-*")] == ["tables-2"]


def test_files_that_could_not_be_read_are_tried_again(archive: Path, tmp_path: Path) -> None:
    start(archive)
    (archive / "dangling").symlink_to(tmp_path / "later")
    first = build_index([archive], tmp_path / "index", workers=1)
    assert first.rejected[Reason.UNREADABLE] == 1
    assert build_index([archive], tmp_path / "index", workers=1) == first
    assert [path.name for path in (tmp_path / "index").glob("tables-*")] == ["tables-1"]
    write_series(tmp_path, made_volume((6, 5, 1)), made_affine(), study="l", series="l")[0].rename(tmp_path / "later")
    assert Reason.UNREADABLE not in build_index([archive], tmp_path / "index", workers=1).rejected
    assert tables(tmp_path / "index") == at_once(archive, tmp_path / "index")


def test_a_zip_that_is_the_same_is_not_opened_and_one_that_changed_is(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(archive)
    pack(archive)
    shutil.copy(archive / "packed.zip", tmp_path / "named.zip")
    made: list[str] = []
    really = zipfile.ZipFile.__init__

    def noting(self: zipfile.ZipFile, file: Any, *more: Any, **options: Any) -> None:
        made.append(os.fspath(file))
        really(self, file, *more, **options)

    monkeypatch.setattr(zipfile.ZipFile, "__init__", noting)
    sources = [archive, tmp_path / "named.zip"]
    first = build_index(sources, tmp_path / "index", workers=1)
    assert made
    made.clear()
    assert build_index(sources, tmp_path / "index", workers=1) == first and made == []
    with zipfile.ZipFile(archive / "packed.zip", "a") as more:
        for file in write_series(tmp_path / "more", made_volume((6, 5, 4), 8), made_affine(), study="m", series="m"):
            more.write(file, f"more/{file.name}")
    made.clear()
    assert len(build_index(sources, tmp_path / "index", workers=1).volumes) == len(first.volumes) + 1
    assert {Path(name).name for name in made} == {"packed.zip"}


def test_of_an_archive_inside_a_folder_that_is_gone_no_path_is_told(archive: Path, tmp_path: Path) -> None:
    start(archive)
    pack(archive)
    build_index([archive], tmp_path / "index", workers=1)
    index = Index(tmp_path / "index")
    (archive / "packed.zip").unlink()
    said = []
    for record in index.volumes("kind = 'dicom'"):
        try:
            index.read(record.volume)
        except ArchiveError as error:
            said.append(str(error))
    assert len(said) == 1 and "moved or deleted" in said[0] and "packed" not in said[0]


def test_buckets_shards_and_workers_make_no_difference(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(archive)
    copy(archive)
    pack(archive)
    build_index([archive], tmp_path / "index", workers=1)
    monkeypatch.setattr(facts, "BUCKET", 4)
    monkeypatch.setattr(scanning, "SHARD", (3, 3))
    monkeypatch.setattr(scanning, "_LISTED", 5)
    monkeypatch.setattr("medssl.archive.index.settling.ROWS", 2)
    monkeypatch.setattr("medssl.archive.index.parts.GROUP", 5)
    one = tables(tmp_path / "index")
    assert at_once(archive, tmp_path / "index") == one
    other = tmp_path / "at-once"
    assert len(list(other.glob("tables-1/volumes-*.parquet"))) > 1
    index = Index(other)
    for record in index.volumes():
        assert index.read(record.volume).array.shape == record.shape
    (tmp_path / "two" / "private").mkdir(parents=True)
    shutil.copy(other / "private" / "key", tmp_path / "two" / "private" / "key")
    build_index([archive], tmp_path / "two", workers=2)
    assert tables(tmp_path / "two") == one


def test_as_many_processes_settle_as_may_work(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(archive)
    monkeypatch.setattr(facts, "LEAST", 5)
    monkeypatch.setattr("medssl.archive.index.buckets.GATHERED", 3)
    build_index([archive], tmp_path / "index", workers=2)
    assert len(list((tmp_path / "index").glob("tables-1/volumes-*.parquet"))) == 2
    assert at_once(archive, tmp_path / "index") == tables(tmp_path / "index")


KILLED = """
import os, signal, sys
from medssl.archive import FolderSource, build_index
from medssl.archive.index import scanning
import medssl.files
scanning.SHARD = (3, 3)
left = int(sys.argv[3])
def counted(really):
    def call(*given, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return really(*given, **named)
    return call
import medssl.archive.tables, medssl.archive.index.folder, shutil
from pathlib import Path
medssl.files.sync = counted(medssl.files.sync)
Path.rename = counted(Path.rename)
Path.unlink = counted(Path.unlink)
Path.replace = counted(Path.replace)
really = FolderSource.start
def noted(self, key, count):
    with open(sys.argv[4], "a") as log:
        log.write(key + "\\n")
    return really(self, key, count)
FolderSource.start = noted
build_index([sys.argv[1]], sys.argv[2], workers=1)
"""


def test_killed_at_any_moment_it_ends_as_if_it_were_not(forks: Forks, archive: Path, tmp_path: Path) -> None:
    start(archive)
    copy(archive)
    pack(archive)
    build_index([archive], tmp_path / "index", workers=1)
    wanted = tables(tmp_path / "index")
    ended: list[int] = []
    for moment in range(0, 120, 3):
        index = tmp_path / f"killed {moment}"
        (index / "private").mkdir(parents=True)
        shutil.copy(tmp_path / "index" / "private" / "key", index / "private" / "key")
        ended.append(forks.run(KILLED, archive, index, moment, tmp_path / f"log {moment}")[0])
        build_index([archive], index, workers=1)
        assert tables(index) == wanted, moment
        assert not list(index.glob("**/.new-*")) and not list((index / "private" / "scan").iterdir())
        if ended[-1] == 0:
            break
    assert ended[-1] == 0 and set(ended[:-1]) == {-signal.SIGKILL} and len(ended) > 5


def test_shards_that_were_read_before_the_kill_are_not_read_again(
    archive: Path, tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(archive)
    monkeypatch.setattr(scanning, "SHARD", (3, 3))

    def stop(done: int, total: int | None) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index([archive], tmp_path / "index", workers=1, progress=stop)
    first = set(opened)
    opened.clear()
    build_index([archive], tmp_path / "index", workers=1)
    files = set(FolderSource(str(archive)).keys())
    assert len(first) == 9 and set(opened) & files == files - first
    assert tables(tmp_path / "index") == at_once(archive, tmp_path / "index")


def test_private_rows_say_which_file_is_which_volume(archive: Path, tmp_path: Path) -> None:
    start(archive)
    build_index([archive], tmp_path / "index", workers=1)
    (private,) = tmp_path.glob("index/private/tables-1/instances-*.parquet")
    (public,) = tmp_path.glob("index/tables-1/instances-*.parquet")
    columns = ["instance", "volume", "slice"]
    assert pq.read_table(private, columns=columns) == pq.read_table(public, columns=columns)


def test_an_index_without_a_column_that_came_later_is_read(archive: Path, tmp_path: Path) -> None:
    write_series(archive, made_volume((6, 5, 4)), made_affine())
    build_index([archive], tmp_path / "index", workers=1)
    volume = Index(tmp_path / "index").volumes()[0].volume
    for file in (tmp_path / "index" / "private").rglob("instances-*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["corrected"]), file)
    index = Index(tmp_path / "index")
    assert index.slices(volume)[0].corrected == () and index.read(volume).array.shape == (6, 5, 4)
    compact(tmp_path / "index")
    assert Index(tmp_path / "index").slices(volume)[0].corrected == ()
    before = Index(tmp_path / "index")
    for file in (tmp_path / "index" / "private").rglob("instances-*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["position"]), file)
    with pytest.raises(ArchiveError, match="damaged"):
        before.slices(volume)
