"""Files are there whole or not at all, their owner's alone, and never written through a link."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medssl.errors import UsageError
from medssl.files import (
    Busy,
    OpenFolder,
    UnlockedFolder,
    append_to,
    create_file,
    lock_folder,
    make_folder,
    others_in,
    read_start,
    share_with_group,
    take_folder,
    temporary_beside,
    write_atomically,
)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table"
    write_atomically(path, b"old")
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def stop(descriptor: int, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", stop)
            with pytest.raises(type(error)):
                write_atomically(path, b"new")
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_what_is_made_is_its_owners_alone_whatever_the_umask(tmp_path: Path, umask: Callable[[int], int], mask: int) -> None:
    umask(mask)
    folder = tmp_path / "a/b"
    take_folder(folder)
    write_atomically(make_folder(folder / "inner") / "file", b"")
    append_to(folder / "rows").close()
    lock_folder(folder).release()
    assert [mode(path) for path in (folder, folder / "inner")] == [0o700] * 2
    assert [mode(path) for path in (folder / "inner/file", folder / "rows", folder / ".lock")] == [0o600] * 3


def test_a_folder_that_was_open_is_closed_when_it_is_taken(tmp_path: Path, umask: Callable[[int], int]) -> None:
    (tmp_path / "mine").mkdir(mode=0o755)
    take_folder(tmp_path / "mine")
    assert mode(tmp_path / "mine") == 0o700


def test_in_a_shared_folder_the_group_may_use_everything_and_others_nothing(tmp_path: Path, umask: Callable[[int], int]) -> None:
    folder = tmp_path / "a/ours"
    share_with_group(folder)
    share_with_group(folder)
    take_folder(folder)
    write_atomically(make_folder(folder / "inner") / "file", b"")
    append_to(folder / "rows").close()
    lock_folder(folder).release()
    take_folder(folder / "store")
    assert [mode(path) for path in (folder, folder / "inner", folder / "store")] == [0o2770] * 3
    assert [mode(path) for path in (folder / "inner/file", folder / "rows", folder / ".lock")] == [0o660] * 3
    take_folder(tmp_path / "private")
    (tmp_path / "private/x").touch()
    with pytest.raises(UsageError, match=r"not empty.*chmod -R g\+rwX"):
        share_with_group(tmp_path / "private")
    share_with_group(folder)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("theirs")
    folder.mkdir()
    for name in ("rows", ".lock", "new", "hard"):
        os.link(victim, folder / name) if name == "hard" else (folder / name).symlink_to(victim)
    (folder / "inner").symlink_to(tmp_path)
    for use in (
        lambda: append_to(folder / "rows"),
        lambda: lock_folder(folder),
        lambda: create_file(folder / "new"),
        lambda: make_folder(folder / "inner"),
    ):
        with pytest.raises(OSError):
            use()
    (folder / ".lock").unlink()
    (folder / "hard").rename(folder / ".lock")
    with pytest.raises(OSError, match="no file of its own"):
        lock_folder(folder)
    write_atomically(folder / "new", b"ours")
    assert victim.read_text() == "theirs" and not (folder / "new").is_symlink()


def test_one_look_sees_hidden_files_and_links_and_passes_what_systems_and_we_left(tmp_path: Path) -> None:
    for name in ("run.log", ".bashrc", ".DS_Store", ".nfs0000deadbeef", f".config.yaml.{'a' * 32}.tmp"):
        (tmp_path / name).touch()
    (tmp_path / "link.log").symlink_to(tmp_path / "run.log")
    assert others_in(tmp_path, lambda name: name.endswith(".log")) == [".bashrc", "link.log"]
    assert others_in(tmp_path / "none", lambda name: False) == []


def test_leftovers_are_swept_by_the_next_who_finds_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    left = [temporary_beside(tmp_path / "a"), temporary_beside(tmp_path / "inner/b")]
    left[0].mkdir()
    (left[0] / "half").touch()
    left[1].touch()
    code = (
        "import sys; from pathlib import Path; from medssl.files import lock_folder\n"
        "held = lock_folder(Path(sys.argv[1]), alone=False); print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        with pytest.raises(Busy, match=f"process {other.pid}"):
            lock_folder(tmp_path)
        lock_folder(tmp_path, alone=False, swept=("", "inner")).release()
        assert left[1].exists()
        other.kill()
        other.wait()
    lock_folder(tmp_path, alone=False, swept=("", "inner", "none")).release()
    assert not any(path.exists() for path in left)


def test_within_a_process_a_folder_is_held_alone_or_together_too(tmp_path: Path) -> None:
    left = temporary_beside(tmp_path / "a")
    first = lock_folder(tmp_path)
    for alone in (True, False):
        with pytest.raises(Busy, match=f"process {os.getpid()}"):
            lock_folder(tmp_path, alone=alone)
    first.release()
    one = lock_folder(tmp_path, alone=False)
    left.touch()
    other = lock_folder(tmp_path, alone=False)
    assert left.exists()
    one.release()
    code = "import sys; from pathlib import Path; from medssl.files import lock_folder\nlock_folder(Path(sys.argv[1]))"
    held = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert f"Busy: process {os.getpid()}" in held.stderr
    other.release()
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    assert not left.exists()


def test_a_process_that_was_forked_does_not_keep_the_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from medssl.files import lock_folder\n"
        "held = lock_folder(Path(sys.argv[1]))\n"
        "if os.fork() == 0: time.sleep(30)\n"
        "else: print('in', flush=True); time.sleep(30)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "in\n"
        parent.kill()
        parent.wait()
        lock_folder(tmp_path).release()
        os.killpg(parent.pid, signal.SIGKILL)


def test_a_disk_without_locks_is_used_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with pytest.warns(UnlockedFolder, match="no second process"):
        lock_folder(tmp_path).release()


def test_a_folder_that_is_not_ours_to_close_is_used_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    tmp_path.chmod(0o755)
    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.warns(OpenFolder, match=r"private \(it is 0755\)"):
        take_folder(tmp_path)


def test_a_folder_that_moved_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    held = lock_folder(tmp_path / "a")
    assert held.moved() is None
    (tmp_path / "a").rename(tmp_path / "b")
    assert f"is now {tmp_path / 'b'}" in str(held.moved())
    (tmp_path / "a").mkdir()
    assert held.moved() is not None
    held.release()


def test_the_start_of_a_file_is_read_whole_however_little_comes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, content = tmp_path / "file", bytes(range(256)) * 4
    file.write_bytes(content)
    really = os.read
    monkeypatch.setattr("medssl.files.os.read", lambda descriptor, count: really(descriptor, min(count, 100)))
    for count in (1, 100, 101, 1024, 5000):
        found, start = read_start(file, count)
        assert (found.st_size, start) == (1024, content[:count])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="regular"):
        read_start(tmp_path / "pipe", 10)
