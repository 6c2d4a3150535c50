"""Where work on an archive is done: in this process, in threads or processes of it, or wherever an executor sends it.

What is mapped on them are functions of one piece of work that touch nothing else, so that it makes no difference which it is.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from threading import Thread
from typing import Any, TypeVar

from medssl.archive.limits import limit_memory
from medssl.errors import ArchiveError, PluginError

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """An executor that can be started, and started again where it broke."""

    start: Callable[[], AbstractContextManager[Executor]] | None
    """None: the caller does the work itself."""
    ahead: int = 1
    """Tasks that are handed over before the first of them is done: enough to keep all busy, few enough to be held in memory."""
    died: tuple[type[BaseException], ...] = (BrokenExecutor,)
    """What a task ends with that killed its worker."""


HERE = Workers(None)
"""The process that asks does the work."""


@contextmanager
def processes(count: int, begin: Callable[[], None] = limit_memory) -> Iterator[Executor]:
    """Processes of this machine, which may be killed, and which end with this one; `begin` is called in each, to limit its memory."""
    # Forking spares scripts the `if __name__ == "__main__"` that a fresh interpreter would need.
    method = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(method)
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(begin,))
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _begin(begin: Callable[[], None]) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    begin()


def _end_with_parent() -> None:
    """A pool whose process was killed would leave its workers behind, waiting for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def local(count: int, begin: Callable[[], None] = limit_memory) -> Workers:
    """So many processes of this machine; one is the caller itself."""
    return Workers(lambda: processes(count, begin), 2 * count + 2) if count > 1 else HERE


def threads(count: int) -> Workers:
    """So many threads of this process, for work that cannot be sent anywhere."""
    return Workers(lambda: ThreadPoolExecutor(count, "medssl"), count)


def given(executor: Executor) -> Workers:
    """An executor of the caller's, who also ends it."""
    return Workers(lambda: nullcontext(executor), 256, (BrokenExecutor, *_deaths_on_a_cluster()))


@contextmanager
def cluster(address: str, timeout: float = 30) -> Iterator[Executor]:
    """The workers of a Dask cluster, by the address of its scheduler; raises `PluginError` without `medssl[cluster]`."""
    try:
        from distributed import Client
    except ImportError as error:
        raise PluginError('a cluster needs the package "distributed". Install it with: pip install "medssl[cluster]"') from error
    try:
        client = Client(address, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ArchiveError(f"no Dask scheduler answers at {address}. Start one, or give the address that it printed.") from error
    with client:
        # A task that kills its worker would be sent to others and kill these too: it is done here instead, apart from all others.
        yield client.get_executor(retries=0, pure=False)


def _deaths_on_a_cluster() -> tuple[type[BaseException], ...]:
    if "distributed" not in sys.modules:
        return ()
    from distributed import KilledWorker

    return (KilledWorker,)


def mapped(
    work: Callable[[Any], Result],
    tasks: Iterable[Task],
    workers: Workers,
    alone: Callable[[Task], Result],
    sent: Callable[[Task], Any] = lambda task: task,
) -> Generator[tuple[Task, Result], None, None]:
    """Each of `tasks` with what `work` makes of it, as soon as that is done; no more than `workers.ahead` are taken before.

    `sent`: a task as it travels to a worker. A task whose worker died is done by `alone`, here, when the others at work are done.
    """
    if workers.start is None:
        yield from ((task, work(sent(task))) for task in tasks)
        return
    rest = iter(tasks)
    more = True
    while more:
        lost: list[Task] = []
        with ExitStack() as stack:
            executor = stack.enter_context(workers.start())
            more = yield from _until_broken(executor, work, rest, workers, sent, lost)
        yield from ((task, alone(task)) for task in lost)


def _until_broken(
    executor: Executor,
    work: Callable[[Any], Result],
    rest: Iterator[Task],
    workers: Workers,
    sent: Callable[[Task], Any],
    lost: list[Task],
) -> Generator[tuple[Task, Result], None, bool]:
    """Returns whether the executor broke before all was done; what its workers died of is appended to `lost`."""
    running: dict[Future[Result], Task] = {}
    broken = False
    while True:
        for task in islice(rest, 0 if broken else workers.ahead - len(running)):
            try:
                running[executor.submit(work, sent(task))] = task
            except BrokenExecutor:
                broken = True
                lost.append(task)
        if not running:
            return broken
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            # The task is kept until it is done: what a source unpacked for it goes with it.
            task = running.pop(future)
            try:
                yield task, future.result()
            except workers.died as error:
                broken = broken or isinstance(error, BrokenExecutor)
                lost.append(task)
