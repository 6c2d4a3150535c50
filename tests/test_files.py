"""Files are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medssl.files import write_atomically


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


def test_a_private_file_is_its_owners_alone_and_another_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "public", b"")
        write_atomically(tmp_path / "private", b"", private=True)
    finally:
        os.umask(before)
    assert (tmp_path / "public").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
