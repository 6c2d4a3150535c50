"""Machines that others use: what is made is private, nothing is written through what others planted, and one process at a time."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medssl.archive import Index, build_index, write_volumes
from medssl.cli import main
from medssl.errors import ArchiveError, StoreError, TrainingError, UsageError
from medssl.testing.dicom import made_affine, made_volume, write_series
from medssl.train.checkpoint import UnreadableCheckpoint, newest_good, save_checkpoint
from medssl.train.run_folder import Rows, begin_run, locked, refuse_other_run
from medssl.volumes import Store, make_store
from medssl.volumes.ingest import Incoming, write_store

Refusal = Callable[..., str]
NOBODY = 65534


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    for number in range(2):
        write_series(folder / str(number), made_volume((16, 14, 6), number), made_affine(), patient=str(number))
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Run a command that must fail by no fault of medssl; its message."""

    def run(*words: object, code: int = 1) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        said = capsys.readouterr().err
        assert ended.value.code == code, said
        assert "fault in medssl" not in said and "Traceback" not in said, said
        return " ".join(said.split())

    return run


def done(*words: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 0


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder to work in as a user whom permissions bind: root is nobody for the length of the test."""
    folder = Path(tempfile.mkdtemp(prefix="medssl-test-"))
    folder.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.chown(folder, NOBODY, -1)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's rights, where this is root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


def give(folder: Path) -> None:
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, -1)


@contextmanager
def closed(path: Path, mode: int = 0o000) -> Iterator[None]:
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


def modes(folder: Path) -> set[tuple[str, int]]:
    return {("folder" if path.is_dir() else "file", stat.S_IMODE(path.lstat().st_mode)) for path in (folder, *folder.rglob("*"))}


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_what_is_made_of_an_archive_is_private(archive: Path, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        done("index", archive, "--index", tmp_path / "index")
        done("volumes", tmp_path / "index", "--nifti", tmp_path / "nifti")
        done("store", archive, "--min-slices", "1", "--out", tmp_path / "store")
    finally:
        os.umask(before)
    for name in ("index", "nifti", "store", "store.index"):
        assert modes(tmp_path / name) == {("folder", 0o700), ("file", 0o600)}, name


def test_a_group_shares_what_it_asked_to_share(archive: Path, tmp_path: Path) -> None:
    done("index", archive, "--index", tmp_path / "index", "--group")
    done("volumes", tmp_path / "index", "--nifti", tmp_path / "nifti", "--group")
    done("store", archive, "--min-slices", "1", "--out", tmp_path / "store", "--group")
    done("store", archive, "--min-slices", "1", "--out", tmp_path / "store")
    for name in ("index", "nifti", "store"):
        assert modes(tmp_path / name) == {("folder", 0o2770), ("file", 0o660)}, name
    assert modes(tmp_path / "store.index") == {("folder", 0o700), ("file", 0o600)}


@pytest.mark.parametrize("name", [".lock", ".config.yaml.partial", "checkpoints", "pictures", "metrics.jsonl", "x.log"])
def test_a_link_that_was_planted_in_a_run_folder_is_refused(name: str, tmp_path: Path) -> None:
    from medssl.config import BaseOptions

    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("theirs")
    run.mkdir()
    (run / name).symlink_to(victim)
    with pytest.raises((TrainingError, UsageError), match=r"belong to no run|already holds a run"):
        refuse_other_run(run)
    with pytest.raises((TrainingError, UsageError)), locked(run) as held:
        begin_run(held.folder, BaseOptions())
    assert victim.read_text() == "theirs"


def test_a_link_that_was_planted_in_an_index_or_store_is_refused(archive: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    for name in (".lock", "private", "tables-1", ".hidden"):
        folder = tmp_path / f"index{name}"
        folder.mkdir()
        (folder / name).symlink_to(victim)
        with pytest.raises(UsageError, match="holds other files"):
            build_index([archive], folder)
    for name in (".lock", "volumes", "rows", ".hidden"):
        folder = tmp_path / f"store{name}"
        folder.mkdir()
        (folder / name).symlink_to(victim)
        with pytest.raises(UsageError, match="is no store"):
            write_store([], folder)
    assert list(victim.iterdir()) == []


def test_the_second_builder_of_an_index_says_who_is_the_first(archive: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from medssl.archive.index.folder import IndexFolder\n"
        "with IndexFolder.held(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, tmp_path / "index"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        with pytest.raises(ArchiveError, match=rf"another process \(process {other.pid}\) is building"):
            build_index([archive], tmp_path / "index")
        other.kill()
        other.wait()
    assert len(build_index([archive], tmp_path / "index").volumes) == 2


def test_of_several_builders_at_once_each_is_done_or_says_that_another_builds(archive: Path, tmp_path: Path) -> None:
    code = "import sys; from medssl.archive import build_index\nbuild_index([sys.argv[1]], sys.argv[2], workers=1)"
    command = [sys.executable, "-c", code, archive, tmp_path / "index"]
    others = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for other in others:
        said = other.communicate()[1]
        assert other.returncode == 0 or "is building the index" in said, said
    assert any(other.returncode == 0 for other in others)
    assert len(Index(tmp_path / "index").volumes()) == 2


def test_a_reader_whose_index_is_built_again_is_told_so(archive: Path, tmp_path: Path) -> None:
    build_index([archive], tmp_path / "index")
    reader = Index(tmp_path / "index")
    build_index([archive], tmp_path / "index", slice_location=True)
    with pytest.raises(ArchiveError, match="was built again while it was read"):
        reader.read(reader.volumes()[0].volume)
    with pytest.raises(ArchiveError, match="was built again while it was read"):
        reader.summary()
    assert Index(tmp_path / "index").read(reader.volumes()[0].volume).array.shape == (16, 14, 6)


@pytest.mark.parametrize(
    "place", [".", "index.json", "private", "tables-1", "tables-1/volumes-0000.parquet", "private/tables-1/instances-0000.parquet"]
)
def test_what_of_an_index_may_not_be_read_is_said(place: str, unprivileged: Path, archive: Path, refused: Refusal) -> None:
    build_index([archive], unprivileged / "index")
    Index(unprivileged / "index").read(Index(unprivileged / "index").volumes()[0].volume)
    give(unprivileged)
    with closed(unprivileged / "index" / place), as_nobody():
        said = refused("store", unprivileged / "index", "--out", unprivileged / "store", code=2 if place == "." else 1)
    assert "Permission denied" in said and "damaged" not in said
    assert str((unprivileged / "index" / place).resolve()) in said


@pytest.mark.parametrize("place", [".", "store.json", "table", "rows", "volumes"])
def test_what_of_a_store_may_not_be_read_is_said(place: str, unprivileged: Path, archive: Path) -> None:
    make_store([archive], unprivileged / "store")
    Store(unprivileged / "store").read_whole(0)
    give(unprivileged)
    with closed(unprivileged / "store" / place), as_nobody(), pytest.raises(StoreError, match="Permission denied for user") as caught:
        Store(unprivileged / "store").read_whole(0)
    assert f"{(unprivileged / 'store' / place).resolve()} is " in str(caught.value)


def test_a_checkpoint_that_may_not_be_read_is_neither_damaged_nor_passed_over(unprivileged: Path) -> None:
    save_checkpoint(unprivileged, 1, {}, {})
    newest = save_checkpoint(unprivileged, 2, {}, {})
    give(unprivileged)
    with closed(newest / "state.json"), as_nobody(), pytest.raises(UnreadableCheckpoint, match="Permission denied") as caught:
        newest_good(unprivileged)
    assert "damaged" not in str(caught.value) and "Delete" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ("index", "{here}/archive", "--index", "{here}/here/out"),
        ("store", "{here}/archive", "--min-slices", "1", "--out", "{here}/here/out"),
        ("store", "{here}/index", "--min-slices", "1", "--out", "{here}/here/out"),
        ("volumes", "{here}/index", "--nifti", "{here}/here/out"),
        ("demo", "--out", "{here}/here/out"),
    ],
)
def test_an_unwritable_folder_is_named_with_who_may_not_write_there(words: tuple[str, ...], unprivileged: Path, refused: Refusal) -> None:
    import medssl.demo  # noqa: F401 - beforehand: nobody may not read root's libraries

    write_series(unprivileged / "archive", made_volume((16, 14, 6), 0), made_affine())
    build_index([unprivileged / "archive"], unprivileged / "index")
    write_volumes(Index(unprivileged / "index"), unprivileged / "nifti")
    give(unprivileged)
    (unprivileged / "here").mkdir(mode=0o555)
    with as_nobody():
        said = refused(*(word.format(here=unprivileged) for word in words), code=2 if words[0] == "volumes" else 1)
    assert f"Permission denied for user {'nobody' if os.geteuid() == 0 else ''}" in said
    assert f"{unprivileged / 'here'} is dr-xr-xr-x, of user" in said


def test_a_disk_that_is_full_at_the_first_moment_leaves_nothing_that_is_refused_later(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for use in (
        lambda: build_index([archive], tmp_path / "index"),
        lambda: make_store([archive], tmp_path / "store"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises((ArchiveError, StoreError), match=r"No space left on device\. Make room"):
                use()
        use()
    assert len(Store(tmp_path / "store")) == 2


def test_leftovers_of_killed_ingests_and_builders_are_swept(archive: Path, tmp_path: Path) -> None:
    make_store([archive], tmp_path / "store")
    left = [tmp_path / place / f".v1.b2nd.{'a' * 32}.tmp" for place in ("store/volumes", "store/rows", "store", "store.index/private")]
    for path in left:
        path.write_bytes(b"half")
    (tmp_path / "store.index/.new-12345678").mkdir()
    make_store([archive], tmp_path / "store")
    assert not any(path.exists() for path in left)
    assert not (tmp_path / "store.index/.new-12345678").exists()


def test_a_store_that_was_not_finished_says_so_until_it_is(tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def incoming(number: int, broken: bool = False) -> Incoming:
        def load() -> tuple[Any, Any]:
            if broken:
                raise KeyError("a bug in a reader")
            return random.normal(size=(8, 8, 8)).astype("float32"), made_affine()

        return Incoming(f"v{number}", "p", f"v{number}", "MR", load, fingerprint=str(number))

    folder = tmp_path / "store"
    write_store([incoming(0)], folder)
    Store(folder).check_finished("x=true")
    with pytest.raises(KeyError):
        write_store([incoming(1), incoming(2, broken=True), incoming(3)], folder, workers=1)
    with pytest.raises(StoreError, match=r"not finished: \d of its volumes are not there yet.*x=true trains"):
        Store(folder).check_finished("x=true")
    write_store([incoming(2)], folder)
    with pytest.raises(StoreError, match="not finished"):
        Store(folder).check_finished("x=true")
    write_store([incoming(1), incoming(2), incoming(3)], folder)
    Store(folder).check_finished("x=true")
    assert list((folder / "unfinished").iterdir()) == []


def test_a_volume_cannot_be_stored_under_a_path(tmp_path: Path) -> None:
    for name in ("../out", "/tmp/out", "a/b", ".hidden", ""):
        with pytest.raises(UsageError, match="cannot be stored under the name"):
            write_store([Incoming(name, "p", "s", "MR", lambda: None)], tmp_path / "store")  # type: ignore[arg-type,return-value]
    assert not (tmp_path / "store").exists()


def test_a_store_of_nothing_is_a_failure(tmp_path: Path, refused: Refusal) -> None:
    (tmp_path / "images").mkdir()
    nib.save(nib.Nifti1Image(np.full((8, 8, 8), 3, np.int16), np.eye(4)), tmp_path / "images/a.nii.gz")
    assert "holds none of these volumes: 1 constant" in refused("store", tmp_path / "images", "--out", tmp_path / "store")
    assert "holds none" in refused("store", tmp_path / "images", "--out", tmp_path / "store", "--json")


@pytest.mark.parametrize("how", ["open", "write", "sync"])
def test_rows_on_a_full_disk_or_past_a_limit(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    rows = Rows(tmp_path / "metrics.jsonl")
    if how == "open":
        monkeypatch.setattr("os.open", full)
        with pytest.raises(TrainingError, match=r"metrics\.jsonl cannot be written: No space left.*--resume"):
            rows.append({"step": 1})
        return
    rows.append({"step": 1})
    if how == "sync":
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(TrainingError, match="No space left"):
            rows.sync()
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(TrainingError, match=r"File too large: files may have at most 20 bytes here.*--resume"):
            rows.append({"step": 2, "loss": 0.123456789})
        rows.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_names_of_files_reach_no_terminal_unescaped(tmp_path: Path, refused: Refusal, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused("index", tmp_path / "\x1b[31mred\x9b", "--index", tmp_path / "index", code=2)
    assert r"\x1b[31mred\x9b" in said
    from medssl.cli.output import print_json, print_table

    capsys.readouterr()
    document = {"a\x1b\x7f\x9b\u202e": "Bär \U000e0001"}
    print_json(document)
    print_table("\x1bT", ("a",), [("\x1b[31m",)])
    shown = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert json.loads(shown[: shown.index("}") + 1]) == document and "Bär" in shown


def test_of_a_path_that_is_too_long_both_ends_are_shown(tmp_path: Path, refused: Refusal) -> None:
    long = f"/{'x' * 5000}"
    assert 400 < len(refused("index", long, "--index", tmp_path / "index")) < 1000
    assert 400 < len(refused("store", long, "--out", tmp_path / "store", code=2)) < 1000


@pytest.mark.parametrize("option", ["", "--json"])
def test_a_reader_that_went_away_is_no_failure_and_output_that_is_lost_is_one(option: str) -> None:
    code = (
        "import sys; from medssl.cli import output\n"
        "output.print_json({'a': 1}) if len(sys.argv) > 1 else output.print_table('t', ('a',), [('b',)])"
    )
    command = [sys.executable, "-c", code, *([option] if option else [])]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nobody:
        gone = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert (gone.returncode, gone.stderr) == (0, "")
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("wb") as device:
        lost = subprocess.run(command, stdout=device, stderr=subprocess.PIPE, text=True)
    assert lost.returncode == 1 and "cannot be written to standard output: No space left" in lost.stderr


def test_memory_that_is_used_up_is_no_fault_of_medssl(archive: Path, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("limits of the address space are Linux's")
    import resource

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))

    command = [sys.executable, "-m", "medssl", "store", str(archive), "--out", str(tmp_path / "store")]
    ended = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True)
    assert ended.returncode == 1 and "the memory is used up" in ended.stderr and "268435456 bytes" in ended.stderr
    assert "fault in medssl" not in ended.stderr


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_an_archive_that_may_not_be_read_is_not_called_damaged(kind: str, unprivileged: Path, archive: Path, refused: Refusal) -> None:
    packed = Path(shutil.make_archive(str(unprivileged / "a"), kind, archive))
    build_index([packed], unprivileged / "first")
    give(unprivileged)
    with closed(packed), as_nobody():
        said = refused("index", packed, "--index", unprivileged / "index")
    assert "may not be read: Permission denied" in said and "damaged" not in said


def test_a_store_of_images_that_may_not_be_read_says_so(unprivileged: Path, refused: Refusal) -> None:
    import multiprocessing.popen_fork  # noqa: F401 - beforehand: nobody may not read root's libraries

    (unprivileged / "images").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), unprivileged / "images/a.nii.gz")
    give(unprivileged)
    with closed(unprivileged / "images/a.nii.gz"), as_nobody():
        assert "its files: 1 unreadable" in refused("store", unprivileged / "images", "--out", unprivileged / "store")
