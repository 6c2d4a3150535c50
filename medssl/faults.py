"""What the operating system refuses, as one message: what could not be done, why, to whom, and what helps."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medssl.errors import MedsslError

if sys.platform != "win32":
    # At once: when they are needed there may be no memory left to load them.
    import pwd
    import resource

_ELSEWHERE = "Make room there, or name a folder on another disk."
_BROKEN = "Look after the disk, or the network that it is reached by."
_OPEN_FILES = "Raise the limit (ulimit -n)."
_ADVICE = {
    errno.ENOSPC: _ELSEWHERE,
    errno.EDQUOT: _ELSEWHERE,
    errno.EFBIG: "Raise the limit (ulimit -f), or name a folder on a disk that takes larger files.",
    errno.EACCES: "Have its owner permit it, or name another.",
    errno.EPERM: "Have its owner permit it, or name another.",
    errno.EROFS: "Name a folder on a disk that can be written.",
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.EIO: _BROKEN,
    errno.ESTALE: _BROKEN,
}
# The last is what oneDNN says.
_MEMORY = re.compile(
    r"failed to map segment|can(not|'t|’t) allocate memory|not enough memory|bad_alloc|could not create a primitive", re.IGNORECASE
)
_THREADS = re.compile(r"can't start new thread", re.IGNORECASE)


def is_fault(error: BaseException) -> bool:
    """Whether it was the system that refused, rather than a program that erred: a disk, a permission, a limit, the memory."""
    return not isinstance(error, MedsslError) and ((isinstance(error, OSError) and error.errno is not None) or _lacks(error) is not None)


def fault(error: BaseException, doing: str, then: str = "") -> str:
    """One message: `doing` says what could not be done and to which file, `then` what to do after the fault is mended."""
    lacking = _lacks(error)
    if lacking is not None:
        cause, advice = lacking
    else:
        number = error.errno if isinstance(error, OSError) else None
        cause, advice = _cause(error), _ADVICE.get(number or 0, "")
    return " ".join(part for part in (f"{doing}: {cause}.", advice, then) if part)


@contextmanager
def faults_as(kind: type[MedsslError], doing: str, then: str = "") -> Iterator[None]:
    """Whatever the system refuses in the block becomes one error of this kind, with the message of `fault`."""
    try:
        yield
    except Exception as error:
        if not is_fault(error):
            raise
        raise kind(fault(error, doing, then)) from error


def _cause(error: BaseException) -> str:
    said = str(error) or type(error).__name__
    if not isinstance(error, OSError) or not error.strerror:
        return said
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"{error.strerror} for {_user()}{_barrier(error.filename)}"
    if error.errno == errno.EFBIG:
        return f"{error.strerror}{_limit('RLIMIT_FSIZE', ': files may have at most {} bytes here')}"
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return f"{error.strerror}{_limit('RLIMIT_NOFILE', ': {} are allowed')}"
    return error.strerror


def _lacks(error: BaseException) -> tuple[str, str] | None:
    """What of a machine is used up, and what helps; None where it is something else."""
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return "the memory of the GPU is used up", "Lower data.batch or data.size, or leave the GPU to this run alone."
    if _THREADS.search(str(error)):
        return "no more threads may be started", "Raise the limits (ulimit -u and -v), or ask for fewer threads and workers."
    # A limit of the address space shows as a library that cannot be loaded, too.
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or _MEMORY.search(str(error)):
        limit = _limit("RLIMIT_AS", "; this process may have at most {} bytes of it (ulimit -v)")
        return f"the memory is used up{limit}", "Raise the limit where there is one, use a machine with more, or ask for less at a time."
    return None


def _limit(name: str, text: str) -> str:
    if sys.platform == "win32":
        return ""
    limit = resource.getrlimit(getattr(resource, name))[0]
    return "" if limit == resource.RLIM_INFINITY else text.format(limit)


def _user() -> str:
    return "this user" if sys.platform == "win32" else f"user {_name(os.geteuid())}"


def _name(uid: int) -> str:
    if sys.platform == "win32":
        return str(uid)
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"with uid {uid}"


def _may_enter(folder: Path) -> bool:
    return os.access(folder, os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def _barrier(name: object) -> str:
    """What does not let in, on the way to a file: a folder that may not be entered, the file, or the folder it should be made in."""
    if not isinstance(name, str | os.PathLike):
        return ""
    path = Path(os.path.abspath(os.fspath(name)))  # noqa: PTH100 - `absolute` keeps `..`, through which nothing can be said
    closed = [folder for folder in reversed(path.parents) if os.path.lexists(folder) and not _may_enter(folder)]
    found = closed[0] if closed else next(place for place in (path, *path.parents) if os.path.lexists(place))
    try:
        there = found.stat()
    except OSError:
        return f": {found}"
    return f": {found} is {stat.filemode(there.st_mode)}, of user {_name(there.st_uid)}"
