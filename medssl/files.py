"""Files that are there whole or not at all and that their owner alone can read, and files of others: read only where they are
regular files of a bearable size.

What medssl makes is private: folders 0700, files 0600. Only in a folder that is set for its group and for nobody else (2770, as
`share_with_group` makes it) the group reads and writes what is made. Temporary files have random names and are never written
through a link; what a killed process leaves of them is swept by the next one that locks the folder.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO
from uuid import uuid4

from medssl.errors import UsageError
from medssl.faults import faults_as

JSON_LIMIT = 2**28
"""Bytes of a JSON file that is read: a row of a store with many labels has some megabytes."""
LOCK = ".lock"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_OF_SYSTEMS = re.compile(r"\.DS_Store|\.snapshot|lost\+found|\.nfs[0-9a-f]+")
"""What file systems put into folders by themselves."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_NEW = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class OpenFolder(UserWarning):
    """A folder that others may open, although what is written there should be its owner's alone."""


class UnlockedFolder(UserWarning):
    """A folder on a disk without locks: nothing keeps a second process out."""


class Busy(Exception):
    """Another process holds the folder's lock; says which."""


def is_shared(folder: Path) -> bool:
    """Whether a folder is set for its group and for nobody else."""
    return stat.S_IMODE(folder.stat().st_mode) & 0o2077 == 0o2070


def share_with_group(folder: str | Path) -> None:
    """Make a folder, or take one that is still empty, in which what is made belongs to its group too; `UsageError` for any other."""
    path = Path(folder)
    with faults_as(UsageError, f"the folder {path} cannot be shared with its group"):
        path.mkdir(parents=True, exist_ok=True)
        if is_shared(path):
            return
        if any(path.iterdir()):
            raise UsageError(f"{path} is not empty and is not shared with its group. Share what is there: chmod -R g+rwX,g+s,o= {path}")
        path.chmod(0o2770)
        if not is_shared(path):
            raise UsageError(f"the disk of {path} does not take the mode 2770, so it cannot be shared. Name a folder elsewhere.")


def as_paths(given: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """One path is as good as a list of one."""
    return [given] if isinstance(given, str | Path) else list(given)


def take_folder(folder: Path) -> None:
    """Make the folder, or take the one that is there: its owner's alone, unless it, or what it lies in, is set for its group.

    Where that cannot be, because it belongs to another user or the disk knows no permissions, an `OpenFolder` warning says so.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(folder):
        make_folder(folder)
    folder.mkdir(exist_ok=True)
    if is_shared(folder):
        return
    with suppress(PermissionError):
        folder.chmod(0o700)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if sys.platform != "win32" and mode & 0o077:
        warnings.warn(
            f"{folder} cannot be made private (it is {mode:04o}): others may open what is written there.", OpenFolder, stacklevel=2
        )


def make_folder(folder: Path) -> Path:
    """A folder inside one of ours, made where it is missing, with who may use it as there; a link in its place is an `OSError`."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise
    else:
        if is_shared(folder.parent):
            folder.chmod(0o2770)
    return folder


def others_in(folder: Path, own: Callable[[str], bool]) -> list[str]:
    """What a folder holds, hidden files included, that is not `own` by its name; [] where there is no folder.

    Links are never ours. Our temporary files, and what file systems put there themselves, do not count.
    """
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_symlink() or not (own(entry.name) or _passes(entry.name)))


def _passes(name: str) -> bool:
    return bool(_TEMPORARY.fullmatch(name) or _OF_SYSTEMS.fullmatch(name))


def temporary_beside(path: Path) -> Path:
    """A name that nobody can guess, which `sweep` knows."""
    return path.with_name(f".{path.name}.{uuid4().hex}.tmp")


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that a killed process left; only for who holds the lock."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def create_file(path: Path) -> BinaryIO:
    """A new file, opened for writing; whatever is there already, a link too, is an `OSError`."""
    return os.fdopen(_opened(path, _NEW | os.O_EXCL), "wb")


def append_to(path: Path) -> FileIO:
    """The file, made where it is missing, opened for appending without a buffer; a link in its place is an `OSError`."""
    return os.fdopen(_opened(path, _NEW | os.O_APPEND), "ab", buffering=0)


def _opened(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags, 0o600)
    with suppress(PermissionError):  # another of the group made it, and as it should be
        if sys.platform != "win32" and is_shared(path.parent):
            os.fchmod(descriptor, 0o660)
    return descriptor


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream that becomes `path` when the block ends well, synced and renamed; until then, and else, what was there stays."""
    waiting = temporary_beside(path)
    try:
        with create_file(waiting) as stream:
            yield stream
            sync(stream)
        waiting.replace(path)
    finally:
        # Gone after the rename; still there after a fault or an interruption.
        waiting.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """All of `content` under `path`, or what was there before. Raises `OSError`, of which `faults_as` makes a message."""
    with replacing(path) as stream:
        stream.write(content)


def sync(stream: BinaryIO) -> None:
    """What was written, on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """The names in a folder, on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


Identity = tuple[int, int]
"""Device and number of a folder."""


@dataclass
class _Held:
    """What this process holds of one folder, by however many of its threads."""

    process: int
    descriptor: int
    alone: bool
    users: int = 1


_HELD: dict[Identity, _Held] = {}
"""The system's locks are between processes, and end with the first descriptor of the file that is closed: so each folder has one."""
_GUARD = Lock()


@dataclass(frozen=True)
class FolderLock:
    """A folder that this process holds until it releases it or ends, however it ends; processes that it starts do not inherit it."""

    folder: Path
    descriptor: int
    """Of the lock's file."""
    identity: Identity

    def release(self) -> None:
        """Let others have it."""
        with _GUARD:
            held = _HELD[self.identity]
            held.users -= 1
            if not held.users:
                os.close(held.descriptor)
                del _HELD[self.identity]

    def moved(self) -> str | None:
        """What happened to the folder since it was locked; None where it is still at its place."""
        try:
            there = self.folder.stat()
        except FileNotFoundError:
            there = None
        if there is not None and (there.st_dev, there.st_ino) == self.identity:
            return None
        try:
            now: Path | None = Path(f"/proc/self/fd/{self.descriptor}").readlink().parent
        except OSError:
            now = None
        return f"{self.folder} was renamed or removed{f' and is now {now}' if now is not None and now.is_dir() else ''}"


def lock_folder(folder: Path, *, alone: bool = True, swept: Sequence[str] = ("",)) -> FolderLock:
    """Hold the folder for this process, `alone` or beside others that are not alone either; raises `Busy`.

    Whoever finds nobody else sweeps the folders `swept` below it.
    """
    here = folder.stat()
    identity = here.st_dev, here.st_ino
    with _GUARD:
        held = _HELD.get(identity)
        if held is not None and held.process == os.getpid():
            if alone or held.alone:
                raise Busy(f"process {held.process}")
            held.users += 1
            return FolderLock(folder, held.descriptor, identity)
        descriptor = _lock_file(folder / LOCK)
        try:
            _hold(folder, descriptor, alone, swept)
        except BaseException:
            os.close(descriptor)
            raise
        _HELD[identity] = _Held(os.getpid(), descriptor, alone)
    return FolderLock(folder, descriptor, identity)


def _lock_file(path: Path) -> int:
    descriptor = _opened(path, _NEW & ~os.O_WRONLY | os.O_RDWR)
    there = os.fstat(descriptor)
    if not stat.S_ISREG(there.st_mode) or there.st_nlink != 1:
        os.close(descriptor)
        raise OSError(errno.EEXIST, "it is no file of its own, but a link or a device", str(path))
    return descriptor


def _hold(folder: Path, descriptor: int, alone: bool, swept: Sequence[str]) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            warnings.warn(f"the disk of {folder} has no locks: start no second process there.", UnlockedFolder, stacklevel=4)
            return
        if error.errno not in {errno.EACCES, errno.EAGAIN}:
            raise
        if alone:
            raise Busy(os.pread(descriptor, 100, 0).decode("ascii", "replace").strip() or "unknown") from error
        fcntl.lockf(descriptor, fcntl.LOCK_SH)
        return
    for name in swept:
        sweep(folder / name)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)
    if not alone:
        fcntl.lockf(descriptor, fcntl.LOCK_SH)


def open_regular(path: str | Path) -> BinaryIO:
    """The file opened for reading; a pipe, a socket or a device raises `OSError` at once, where opening it would wait or act."""
    descriptor, _ = _opened_regular(path)
    # As `os.fdopen` would, which also asks whether it is a terminal.
    return BufferedReader(FileIO(descriptor, "rb"))


def read_start(path: str | Path, count: int) -> tuple[os.stat_result, bytes]:
    """What the system says of a regular file, and its first `count` bytes or all; raises `OSError` as `open_regular` does."""
    descriptor, found = _opened_regular(path)
    try:
        content = os.read(descriptor, count)
        # A system may give less at once than there is; only nothing is the end.
        while len(content) < count and len(content) != found.st_size and (more := os.read(descriptor, count - len(content))):
            content += more
    finally:
        os.close(descriptor)
    return found, content


def _opened_regular(path: str | Path) -> tuple[int, os.stat_result]:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return descriptor, found


def holds_file(path: Path) -> bool:
    """Whether a regular file is there; raises `OSError` where that may not be known."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises `OSError`, or `ValueError` for what is no JSON, too large or nested too deeply."""
    with open_regular(path) as file:
        content = file.read(JSON_LIMIT + 1)
    if len(content) > JSON_LIMIT:
        raise ValueError(f"it is larger than {JSON_LIMIT} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_plain_name(name: object) -> bool:
    """Is this a name of one file and nothing else: letters, digits, dot, dash and underscore, no path and not hidden?"""
    return isinstance(name, str) and _PLAIN_NAME.fullmatch(name) is not None
