"""Where work on an archive is done: in this process, in processes of this machine, or wherever an executor sends it.

What is mapped on them are functions of a shard that touch nothing else, so that it makes no difference which it is.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from medssl.archive.limits import limit_memory
from medssl.errors import ArchiveError, PluginError


@dataclass(frozen=True)
class Workers:
    """An executor that can be started, and started again where it broke."""

    start: Callable[[], AbstractContextManager[Executor]] | None
    """None: the caller does the work itself."""
    ahead: int = 1
    """Shards that are handed over before the first of them is done: enough to keep all busy, few enough to be held in memory."""
    died: tuple[type[BaseException], ...] = (BrokenExecutor,)
    """What a shard ends with that killed its worker."""


HERE = Workers(None)
"""The process that asks does the work."""


@contextmanager
def processes(count: int) -> Iterator[Executor]:
    """Processes of this machine with a limit of their memory, which may be killed."""
    # Forking spares scripts the `if __name__ == "__main__"` that a fresh interpreter would need.
    method = "fork" if sys.platform == "linux" else "spawn"
    executor = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context(method), initializer=limit_memory)
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def local(count: int) -> Workers:
    """So many processes of this machine; one is the caller itself."""
    return Workers(lambda: processes(count), 2 * count + 2) if count > 1 else HERE


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
        # A shard that kills its worker is sent to others, which it kills too; it is then read here, file by file.
        yield client.get_executor(retries=0, pure=False)


def _deaths_on_a_cluster() -> tuple[type[BaseException], ...]:
    if "distributed" not in sys.modules:
        return ()
    from distributed import KilledWorker

    return (KilledWorker,)
