"""Stopping on a signal: the step is finished, a checkpoint is written, and the process ends with the usual code.

SIGINT gives 130, SIGTERM 143, SIGUSR1 (which SLURM sends ahead of its time limit) 138 on Linux, SIGHUP (a closed terminal) 129 unless
it was ignored (nohup). A second SIGINT ends at once, but one that comes with the first is the same keystroke.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

SAME_KEYSTROKE = 0.1
"""Seconds within which a second SIGINT is the first one again: terminals and launchers send it twice."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


class Stopped(SystemExit):
    """The run was stopped by a signal after it wrote a checkpoint. A `SystemExit`, so the process ends with code 128 + signal."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(128 + number)
        self.signal = number
        self.message = message or f"stopped by {signal.Signals(number).name}"

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, str]]:
        return Stopped, (self.signal, self.message)


@dataclass
class StopRequest:
    """What a loop asks between two steps."""

    signal: int | None = None
    received: float = 0.0
    """When, in seconds of the monotonic clock."""

    def __bool__(self) -> bool:
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.signal == number and now - self.received < SAME_KEYSTROKE:
            return
        if number == signal.SIGINT and self.signal is not None:
            raise Stopped(number, "stopped at once by a second SIGINT; the last checkpoint is good")
        self.signal, self.received = number, now


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch the signals for the length of the block and remember the first; the handlers that were there come back afterwards.

    Python lets only the main thread catch signals: elsewhere the request never becomes true and the signals act as before.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    hangup = getattr(signal, "SIGHUP", None)
    caught = [number for number in SIGNALS if number != hangup or signal.getsignal(number) != signal.SIG_IGN]
    before: dict[int, Any] = {number: signal.signal(number, request._receive) for number in caught}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
