"""When a request may be made: so many at once, so many a second, at these hours. Over all processes of one user on one machine.

Locked files hold it together: workers that share nothing else see them, and the system unlocks what a killed process held.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from pathlib import Path

from medssl.errors import ArchiveError
from medssl_dicomweb.settings import DAY, Window

logger = logging.getLogger(__name__)
_LOOK_AGAIN = 0.01
"""Seconds between two looks for a free connection."""
_LOOK_AT_CLOCK = 60.0
"""Seconds of sleep at most until an hour has come: clocks are set, and machines sleep."""
_LONGEST_WAIT = 3600.0
"""Seconds that the turns given to others may lie ahead: what is beyond is a clock that was set."""


@dataclass(frozen=True)
class Gate:
    """What holds requests to one server back."""

    server: str
    connections: int
    rate: float = 0.0
    hours: tuple[Window, ...] = ()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """One request is made within the block."""
        self._await_hours()
        with self._connection():
            self._await_turn()
            yield

    def _await_hours(self) -> None:
        said = False
        while (minutes := minutes_until(self.hours, _now())) > 0:
            if not said:
                logger.warning("the PACS is asked at the hours of MEDSSL_DICOMWEB_HOURS only: waiting for %d minutes", minutes)
                said = True
            _sleep(min(minutes * 60.0, _LOOK_AT_CLOCK))

    @contextmanager
    def _connection(self) -> Iterator[None]:
        folder = _folder()
        names = [folder / f"{self._name}-{number}" for number in range(self.connections)]
        random.shuffle(names)
        while True:
            for name in names:
                descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                try:
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        continue
                    yield
                    return
                finally:
                    os.close(descriptor)
            _sleep(_LOOK_AGAIN)

    def _await_turn(self) -> None:
        if self.rate > 0:
            _sleep(self._turn())

    def _turn(self) -> float:
        """Seconds until the next request may begin, which is then ours."""
        descriptor = os.open(_folder() / f"{self._name}-turn", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            written, now = os.pread(descriptor, 8, 0), time.time()
            free = struct.unpack("<d", written)[0] if len(written) == 8 else now
            start = free if now < free < now + _LONGEST_WAIT else now
            os.pwrite(descriptor, struct.pack("<d", start + 1 / self.rate), 0)
        finally:
            os.close(descriptor)
        return start - now

    @property
    def _name(self) -> str:
        return blake2b(self.server.encode(), digest_size=8).hexdigest()


def minutes_until(hours: Sequence[Window], now: datetime) -> int:
    """Minutes until one of the windows begins; 0 within one, and where there are none."""
    minute = now.hour * 60 + now.minute
    if not hours or any((minute - first) % DAY < ((last - first) % DAY or DAY) for first, last in hours):
        return 0
    return min((first - minute) % DAY for first, _ in hours)


def _now() -> datetime:
    return datetime.now()


def _sleep(seconds: float) -> None:
    time.sleep(max(seconds, 0.0))


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"medssl-dicomweb-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        there = folder.lstat()
    except OSError as error:
        raise ArchiveError(f"the locks in {folder} cannot be made ({error.strerror}). Set TMPDIR to a folder of your own.") from error
    if there.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink() or there.st_mode & 0o022:
        raise ArchiveError(f"{folder} is not a folder of yours alone. Set TMPDIR to a folder of your own.")
    return folder
