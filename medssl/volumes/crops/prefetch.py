"""Work done ahead of the loop on threads, in order, with the time that the loop waited.

A thread's exception surfaces in the loop at the batch it belongs to; nothing is left to hang.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Batch = TypeVar("Batch")
Pending = tuple[Sequence["Future[Any]"], Callable[[], Batch]]


class Prefetch(Generic[Batch]):
    """`start(number, executor)` submits the parts of batch `number` and says how to finish it once they are done."""

    def __init__(self, start: Callable[[int, Executor], Pending[Batch]], threads: int, ahead: int) -> None:
        self._start, self._ahead = start, ahead
        self._pool = ThreadPoolExecutor(threads, "medssl-reader")
        self._pending: deque[Pending[Batch]] = deque()
        self._number = 0
        self._closed = False
        self.waited = 0.0
        """Seconds that the loop stood still for data."""

    def next(self) -> Batch:
        """The next batch; raises what a reader raised, after which the prefetch is closed."""
        if self._closed:
            raise RuntimeError("the loader is closed")
        while len(self._pending) <= self._ahead:
            self._pending.append(self._start(self._number, self._pool))
            self._number += 1
        parts, finish = self._pending.popleft()
        started = time.perf_counter()
        try:
            for part in parts:
                part.result()
        except BaseException:
            self.close()
            raise
        self.waited += time.perf_counter() - started
        return finish()

    def close(self) -> None:
        """Stop the threads and wait for what they are at; closing twice does nothing."""
        if not self._closed:
            self._closed = True
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pending.clear()
