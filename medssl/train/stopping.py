"""Stopping on a signal: the step is finished, a checkpoint is written, and the process ends with the usual code.

SIGINT gives 130, SIGTERM 143, SIGUSR1 (which SLURM sends ahead of its time limit) 138 on Linux. A second SIGINT ends at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Stopped(SystemExit):
    """The run was stopped by a signal after it wrote a checkpoint. A `SystemExit`, so the process ends with code 128 + signal."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(128 + number)
        self.signal = number
        self.message = message or f"stopped by {signal.Signals(number).name}"

    def __str__(self) -> str:
        return self.message


@dataclass
class StopRequest:
    """What a loop asks between two steps."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise Stopped(number, "stopped at once by a second SIGINT; the last checkpoint is good")
        self.signal = number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch the signals for the length of the block and remember the first; the handlers that were there come back afterwards.

    Python lets only the main thread catch signals: elsewhere the request never becomes true and the signals act as before.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {number: signal.signal(number, request._receive) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
