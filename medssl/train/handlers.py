"""ignite handlers that every run has: clock, rows, progress, checkpoints. Each has `attach(engine)`, like any of MONAI's."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ignite.engine import Events

from medssl.errors import GO_ON, RESUME, TrainingError
from medssl.faults import faults_as
from medssl.files import FolderLock
from medssl.plugins import Plugins, blame
from medssl.run import Run
from medssl.train.loop import Skip, StepEngine
from medssl.train.progress import ProgressDisplay
from medssl.train.run_folder import METRICS, SKIPPED, TIMINGS, Rows
from medssl.train.stopping import StopRequest


class Clock:
    """An ignite handler that measures samples/s over the last steps and the share of time spent waiting for data."""

    def __init__(self, samples_per_step: int, window: int = 20) -> None:
        self._samples = samples_per_step
        self._ends: deque[float] = deque(maxlen=window + 1)
        self._waits: deque[float] = deque(maxlen=window)
        self._asked = self.began = time.monotonic()

    def attach(self, engine: Any) -> None:
        """Start with the engine; call before other handlers that read it."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._ask)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._got)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end)

    def _start(self) -> None:
        self.began = time.monotonic()
        self._ends.append(self.began)

    def _ask(self) -> None:
        self._asked = time.monotonic()

    def _got(self) -> None:
        self._waits.append(time.monotonic() - self._asked)

    def _end(self) -> None:
        self._ends.append(time.monotonic())

    @property
    def samples_per_second(self) -> float:
        """Over the last steps."""
        return self._samples * (len(self._ends) - 1) / max(self._ends[-1] - self._ends[0], 1e-9)

    @property
    def waiting(self) -> float:
        """Share 0 .. 1 of the time, over the last steps."""
        return min(sum(self._waits) / max(self._ends[-1] - self._ends[0], 1e-9), 1.0)


class Recorder:
    """Writes `metrics.jsonl` (reproducible), `timings.jsonl` (not) and `skipped.jsonl`, and moves the progress display."""

    def __init__(self, folder: Path, every: int, clock: Clock, display: ProgressDisplay) -> None:
        self._metrics, self._timings, self._skipped = Rows(folder / METRICS), Rows(folder / TIMINGS), Rows(folder / SKIPPED)
        self._every, self._clock, self._display = every, clock, display

    def attach(self, engine: StepEngine) -> None:
        """Attach after the clock."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)

    def _completed(self, engine: StepEngine) -> None:
        step, losses = engine.state.iteration, engine.state.output[0]
        if step % self._every == 0 or engine.last_skip is not None:
            row = {"step": step, **losses, "learning_rate": engine.learning_rate, "gradient_norm": engine.gradient_norm}
            self._metrics.append(row if engine.last_skip is None else {**row, "skipped": list(engine.last_skip.terms)})
            speed, waiting = round(self._clock.samples_per_second, 3), round(self._clock.waiting, 4)
            seconds = round(time.monotonic() - self._clock.began, 3)
            self._timings.append({"step": step, "seconds": seconds, "samples_per_second": speed, "waiting": waiting})
        self._display.step(step, losses, self._clock.samples_per_second, self._clock.waiting)

    def skip(self, skip: Skip, samples: list[Any], cases: Sequence[str] = ()) -> None:
        """Note a step that was not taken, and what it showed: the samples, and the names that people have for them."""
        row = {"step": skip.step, "terms": list(skip.terms), "samples": samples}
        self._skipped.append({**row, "cases": list(cases)} if cases else row)
        self._display.say(f"step {skip.step} skipped: {', '.join(skip.terms)} not finite")

    def sync(self) -> None:
        """Put all rows on the disk: a checkpoint must never be ahead of them."""
        for rows in (self._metrics, self._timings, self._skipped):
            rows.sync()

    def close(self) -> None:
        """Close the files."""
        for rows in (self._metrics, self._timings, self._skipped):
            rows.close()


class FolderWatch:
    """An ignite handler: ends a run whose folder was renamed or replaced, before anything of it is written elsewhere."""

    def __init__(self, held: FolderLock) -> None:
        self._held = held

    def attach(self, engine: Any) -> None:
        """Attach before whatever writes."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._look)

    def _look(self) -> None:
        with faults_as(TrainingError, f"the run folder {self._held.folder} cannot be looked at", GO_ON):
            moved = self._held.moved()
        if moved is not None:
            raise TrainingError(
                f"the run folder {moved} while the run was going on. Its checkpoints are good: put it back or name it anew, and go on "
                f"with {RESUME}."
            )


@contextmanager
def plugin_handlers(engine: StepEngine, plugins: Plugins, run: Run) -> Iterator[None]:
    """Attach what plugins bring for the run; an exception out of one of their handlers becomes a `PluginError` with its package."""
    found = plugins.handlers(run)
    for provider, handler in found:
        with blame(provider, "attaching its handler"):
            handler.attach(engine)
    try:
        yield
    except Exception as error:
        raised_in = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
        for provider, handler in found:
            if any(owner is handler for owner in raised_in):
                with blame(provider, f"its handler {type(handler).__name__}"):
                    raise
        raise


class CheckpointWriter:
    """An ignite handler: calls `save(step)` every so many steps, at the last one, and when a signal asks the run to stop."""

    def __init__(self, save: Callable[[int], None], every: int, request: StopRequest) -> None:
        self._save, self._every, self._request = save, every, request

    def attach(self, engine: StepEngine) -> None:
        """Attach last, so that a checkpoint is written after everything else of its step."""
        engine.add_event_handler(Events.STARTED, self._end_if_asked)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._completed)

    def _completed(self, engine: StepEngine) -> None:
        step = engine.state.iteration
        if step % self._every == 0 or step == engine.run_state.steps or self._request:
            self._save(step)
        self._end_if_asked(engine)

    def _end_if_asked(self, engine: StepEngine) -> None:
        if self._request:
            engine.terminate()
