"""CPU and wall seconds of a command or a call, and other jobs beside them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from statistics import median

BUSY = "while True: pass"


@dataclass(frozen=True)
class Spent:
    """What one run cost."""

    cpu: float
    """Seconds of all threads, user and system, child processes that were waited for included."""
    wall: float


def bind(cpus: int) -> int:
    """Bind this process and its children to at most that many CPUs, where the system can; returns how many they may use now."""
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count() or 1
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])
    return len(os.sched_getaffinity(0))


@contextmanager
def busy(jobs: int) -> Iterator[None]:
    """That many endless loops beside the block, on the CPUs of this process."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(jobs)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def command_cost(command: Sequence[str], environment: Mapping[str, str]) -> Spent:
    """Run a command to its end; a failure is a `CalledProcessError` after its messages."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=dict(environment), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode:
        sys.stderr.write(said)
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return Spent(usage.ru_utime + usage.ru_stime, wall)


def call_cost(call: Callable[[], object]) -> Spent:
    """Run a call in this process; CPU seconds of all its threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Spent(time.process_time() - cpu, time.perf_counter() - wall)


def whole_cost(call: Callable[[], object]) -> Spent:
    """As `call_cost`, with the worker processes that ended within the call."""

    def total() -> float:
        return sum(usage.ru_utime + usage.ru_stime for usage in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))

    cpu, wall = total(), time.perf_counter()
    call()
    return Spent(total() - cpu, time.perf_counter() - wall)


def alternately(measured: Mapping[str, Callable[[], Spent]], repeat: int) -> dict[str, Spent]:
    """The medians of `repeat` runs of each, taken in turns so that what changes on the machine meets all of them."""
    found: dict[str, list[Spent]] = {name: [] for name in measured}
    for _ in range(repeat):
        for name, run in measured.items():
            found[name].append(run())
    return {name: Spent(median(run.cpu for run in runs), median(run.wall for run in runs)) for name, runs in found.items()}
