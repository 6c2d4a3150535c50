"""How a run is going, on standard error: losses, samples/s, share of the time spent waiting for data, time left.

A live bar on a terminal; elsewhere (a batch system's log file) a plain line every so often.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from medssl.errors import printable

logger = logging.getLogger("medssl.train")
QUIET_SECONDS = 15.0
"""Time between two lines where standard error is no terminal."""


class _Console(Console):
    """rich ends the process at a closed pipe unless told otherwise; a training goes on, in silence."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


@contextmanager
def counting(doing: str, console: Console | None = None, verbose: bool = True) -> Iterator[Callable[[int, int | None], None]]:
    """A function to call with how much is done and, where known, how much there is: a bar on a terminal, elsewhere a line now and then.

    Without `verbose` the lines are messages of the logger `medssl.train` at level INFO.
    """
    shown = console or _console(verbose)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[pace]}"))
    bar = Progress(*columns, console=shown, disable=not shown.is_terminal, transient=True)
    task, printed = bar.add_task(doing, total=None, pace=""), time.monotonic()
    began, last = printed, 0

    def report(done: int, total: int | None) -> None:
        nonlocal printed, began, last
        # What is counted from the start again, as files inside of archives after all others, has a pace of its own.
        began, last = (time.monotonic() if done < last else began), done
        shown_pace = pace(done, total, time.monotonic() - began)
        bar.update(task, completed=done, total=total, pace=shown_pace)
        if not shown.is_terminal and time.monotonic() - printed >= QUIET_SECONDS:
            printed = time.monotonic()
            with _while_somebody_reads(shown):
                line = f"{doing} {done}{'' if total is None else f'/{total}'}{' | ' if shown_pace else ''}{shown_pace}"
                shown.print(printable(line), highlight=False, markup=False)

    def stop() -> None:
        with _while_somebody_reads(shown):
            bar.stop()

    with ExitStack() as stack:
        with _while_somebody_reads(shown):
            bar.start()
            stack.callback(stop)
        yield report


def pace(done: int, total: int | None, seconds: float) -> str:
    """`312/s | 0:12:34 left`; empty before anything is done."""
    if not done or seconds <= 0:
        return ""
    left = "" if total is None else f" | {_clock(seconds / done * (total - done))} left"
    return f"{done / seconds:.3g}/s{left}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


@contextmanager
def _while_somebody_reads(console: Console) -> Iterator[None]:
    """A pipe that was closed or a terminal that is gone ends the talking, not the training."""
    try:
        yield
    except OSError:
        console.quiet = True


class _Logged(io.StringIO):
    """A console's file whose lines are messages of a logger."""

    def write(self, text: str) -> int:
        """Text comes a line at a time."""
        if text.strip():
            logger.info("%s", text.rstrip())
        return len(text)


def _console(verbose: bool) -> Console:
    """Standard error for people; for libraries the logger."""
    if verbose:
        return _Console(stderr=True)
    return Console(file=_Logged(), width=10_000, force_terminal=False, force_jupyter=False)  # whatever the environment asks for


class ProgressDisplay:
    """A context manager that is told of each step. `console=None` writes to standard error."""

    def __init__(self, title: str, steps: int, first: int = 0, console: Console | None = None, verbose: bool = True) -> None:
        """Without `verbose` nothing is shown: every line is a message of the logger `medssl.train` at level INFO."""
        self._console = console or _console(verbose)
        self._title, self._steps, self._first = title, steps, first
        self._began = self._printed = time.monotonic()
        self._bar = _bar(self._console) if self._console.is_terminal else None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._printed = float("-inf")
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._steps, completed=self._first, shown="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            with _while_somebody_reads(self._console):
                self._bar.stop()

    def step(self, step: int, losses: Mapping[str, float], samples_per_second: float, waiting: float) -> None:
        """After step `step` of the run (counted from 1); `waiting` is the share 0 .. 1 of the time spent waiting for data."""
        shown = describe(losses, samples_per_second, waiting, self._seconds_left(step))
        if self._bar is not None and self._task is not None:
            with _while_somebody_reads(self._console):
                self._bar.update(self._task, completed=step, shown=shown)
        elif time.monotonic() - self._printed >= QUIET_SECONDS or step == self._steps:
            self._printed = time.monotonic()
            self.say(f"{self._title} step {step}/{self._steps} {shown}")

    def say(self, text: str) -> None:
        """A line that stays, above the bar where there is one."""
        with _while_somebody_reads(self._console):
            self._console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    def _seconds_left(self, step: int) -> float:
        done = max(step - self._first, 1)
        return (time.monotonic() - self._began) / done * (self._steps - step)


def describe(losses: Mapping[str, float], samples_per_second: float, waiting: float, seconds_left: float) -> str:
    """One line: `loss 0.312 inpainting 0.298 | 12.3 samples/s | 1 % waiting for data | 0:12:34 left`.

    The share of samples that can be answered is shown where it is not all of them.
    """
    numbers = " ".join(f"{name} {value:.4g}" for name, value in losses.items() if not (name.endswith("/answerable") and value >= 1))
    left = f"{_clock(seconds_left)} left"
    return f"{numbers} | {samples_per_second:.3g} samples/s | {waiting:.0%} waiting for data | {left}"


def _bar(console: Console) -> Progress:
    text = TextColumn("{task.description} {task.completed}/{task.total}")
    return Progress(text, BarColumn(bar_width=20), TextColumn("{task.fields[shown]}"), console=console)
