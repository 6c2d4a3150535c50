"""What the system refuses becomes one message: what could not be done, why, to whom, and what helps."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from medssl.errors import MissingInput, StoreError, UsageError, printable
from medssl.faults import fault, faults_as, is_fault


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device. Make room"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EROFS, "Read-only file system"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "Look after the disk"),
        (errno.ENOMEM, "the memory is used up"),
    ],
)
def test_each_fault_says_what_helps(number: int, words: str) -> None:
    error = OSError(number, os.strerror(number))
    assert is_fault(error)
    message = fault(error, "the file x cannot be written", "Then go on.")
    assert message.startswith("the file x cannot be written: ") and words in message and message.endswith(" Then go on.")


def test_a_permission_names_who_and_what_does_not_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    message = fault(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "closed/new")), "x cannot be written")
    assert f"{tmp_path / 'closed'} is dr-x------, of user " in message and f"(uid {os.geteuid()})" in message
    real = os.access
    monkeypatch.setattr("os.access", lambda path, how, **keys: path != tmp_path and real(path, how))
    message = fault(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "closed/new")), "x cannot be written")
    assert f": {tmp_path} is d" in message


def test_limits_are_named_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (12345, 12345))
    assert "12345 bytes" in fault(OSError(errno.EFBIG, "File too large"), "x")
    assert "12345 bytes" in fault(MemoryError(), "x")
    assert "12345 are allowed" in fault(OSError(errno.EMFILE, "Too many open files"), "x")


def test_what_a_lack_of_memory_looks_like_elsewhere() -> None:
    for error in (
        MemoryError(),
        ImportError("libtorch.so: failed to map segment from shared object"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("can't start new thread"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"),
    ):
        assert is_fault(error)
        assert "used up" in fault(error, "x") or "no more threads" in fault(error, "x")


def test_only_faults_are_taken(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="x cannot be read: No such file") as caught, faults_as(StoreError, "x cannot be read"):
        (tmp_path / "none").read_bytes()
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(MissingInput), faults_as(StoreError, "x"):
        raise MissingInput("nothing there")
    with pytest.raises(ValueError, match="bug"), faults_as(UsageError, "x"):
        raise ValueError("bug")
    with pytest.raises(OSError, match="not a regular file"), faults_as(UsageError, "x"):
        raise OSError("not a regular file")


def test_control_characters_are_escaped_and_lines_stay() -> None:
    assert printable("Bär\n2") == "Bär\n2"
    assert printable("a\x1b[31m\x9b\r\u202eb\udcff") == r"a\x1b[31m\x9b\r\u202eb\udcff"
