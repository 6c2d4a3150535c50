"""The engine of one training step: of an objective, whatever its terms are.

`StepEngine` is a `monai.engines.Trainer`: one ignite iteration is one optimizer step, `engine.state.iteration` counts steps from
1, the whole run is one epoch, `engine.state.output` is MONAI's list of one dictionary, name of the loss -> value. Any MONAI or ignite
handler attaches.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any

import torch
from monai.engines import Trainer
from torch.nn.parallel import DistributedDataParallel

from medssl.contracts import Crops
from medssl.errors import RESUME, TrainingError
from medssl.learn import Objective
from medssl.learn.joining import rank, summed, world
from medssl.run import RunState
from medssl.train.device import fit_threads
from medssl.train.optim import clip_gradients, set_learning_rate

logging.getLogger("medssl.train").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class StepSettings:
    """What a step needs to know beside the objective."""

    device: torch.device
    rate: Callable[[int], float]
    """Step counted from 0 -> learning rate."""
    dtype: torch.dtype | None = None
    """Of autocast; None: fp32."""
    clip: float | None = None
    seed: int = 0
    max_skipped: int = 10


@dataclass(frozen=True)
class Skip:
    """A step that was not taken."""

    step: int
    terms: tuple[str, ...]
    """Which losses were not finite; ("gradient",) where all losses were finite and the gradient was not."""
    batches: Sequence[Crops]


class StepEngine(Trainer):  # type: ignore[misc]
    """Takes steps: forward and backward over micro-batches, clip, optimizer, `commit`.

    `batches` yields for each step the sequence of its micro-batches, beginning at `state.step`. A step whose loss or gradient is
    not finite leaves everything as it was and goes to `on_skip`; more than `max_skipped` end the run with a `TrainingError`.
    Random numbers that a network draws itself (dropout) depend on seed, step and micro-batch alone.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        batches: Iterable[Sequence[Crops]],
        state: RunState,
        settings: StepSettings,
        *,
        on_skip: Callable[[Skip], None] | None = None,
        handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(settings.device, max_epochs=1, data_loader=batches, epoch_length=state.steps, decollate=False, handlers=handlers)
        self.logger = logging.getLogger("medssl.train")
        self.objective, self.optimizer, self.run_state, self.settings = objective, optimizer, state, settings
        self.module: Any = _distributed(objective) if world() > 1 else objective
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self._running = [buffer for part in (objective.network, objective.heads, objective.tasks) for buffer in part.buffers()]
        self.on_skip = on_skip
        self.state.iteration = state.step
        self.gradient_norm = self.learning_rate = 0.0
        self.last_skip: Skip | None = None

    def _iteration(self, engine: Any, batches: Sequence[Any]) -> list[dict[str, float]]:
        step = self.state.iteration - 1
        self.learning_rate = self.settings.rate(step)
        set_learning_rate(self.optimizer, self.learning_rate)
        self.optimizer.zero_grad(set_to_none=True)
        running = [buffer.clone() for buffer in self._running]
        values, bad = self._gradients(step, batches)
        self.last_skip = None
        if not bad:
            self.gradient_norm = clip_gradients(self.parameters, self.settings.clip)
            bad = () if math.isfinite(self.gradient_norm) else ("gradient",)
        if bad:
            for buffer, before in zip(self._running, running, strict=True):
                buffer.copy_(before)
            self._skip(Skip(self.state.iteration, bad, batches))
        else:
            self.optimizer.step()
            self.objective.commit(step / self.run_state.steps)
            self.run_state.skipping = 0
        self.run_state.step = self.state.iteration
        self.run_state.metrics = values
        return [values]

    def _gradients(self, step: int, batches: Sequence[Crops]) -> tuple[dict[str, float], tuple[str, ...]]:
        """Every loss and measure over the micro batches and ranks, gradients added up; and the names of losses that are not finite."""
        asked = [self.objective.ask(crops, step, step / self.run_state.steps) for crops in batches]
        totals = self.objective.totals(asked)
        values: dict[str, float] = {}
        for micro, one in enumerate(asked):
            number, last = micro * world() + rank(), micro == len(asked) - 1
            with nullcontext() if last or self.module is self.objective else self.module.no_sync():
                with seeded(self.settings.seed, step, number, self.settings.device), self._autocast():
                    terms = self.module(one, totals)
                parts = summed(torch.stack([value.detach().float() for value in terms.values()])).tolist()
                values = {name: values.get(name, 0.0) + part for name, part in zip(terms, parts, strict=True)}
                if not all(map(math.isfinite, parts)):
                    break
                if terms["loss"].requires_grad:
                    # The parts add up to the mean, over ranks too, where DDP takes the mean of the gradients.
                    torch.autograd.backward(terms["loss"] * world())
        named = tuple(name for name, value in values.items() if not math.isfinite(value))
        return values, tuple(name for name in named if name != "loss") or named

    def _autocast(self) -> torch.autocast:
        dtype = self.settings.dtype
        return torch.autocast(self.settings.device.type, dtype=dtype, enabled=dtype is not None)

    def _skip(self, skip: Skip) -> None:
        self.gradient_norm = math.nan
        self.last_skip = skip
        self.run_state.skipped += 1
        self.run_state.skipping += 1
        self.optimizer.zero_grad(set_to_none=True)
        if self.on_skip is not None:
            self.on_skip(skip)
        if self.run_state.skipped > self.settings.max_skipped:
            what = "the gradient" if skip.terms == ("gradient",) else "the loss of " + ", ".join(f"'{name}'" for name in skip.terms)
            raise TrainingError(
                f"{what} is not finite at step {skip.step}, and {self.run_state.skipped} steps were skipped for such a reason "
                f"(train.max_skipped: {self.settings.max_skipped}). skipped.jsonl names the samples. Lower train.learning_rate, set "
                f"train.precision: fp32 or raise train.max_skipped, and go on with {RESUME} from the checkpoint before these steps."
            )


def _distributed(objective: Objective) -> DistributedDataParallel:
    """Looks for parameters without a gradient only where a term may leave some out, as annealed ones do: it costs a walk of the graph."""
    return DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=objective.sometimes_unreached)


@contextmanager
def seeded(seed: int, step: int, micro: int, device: torch.device) -> Iterator[None]:
    """Global random numbers inside the block (dropout) are a function of the arguments; outside nothing changes."""
    digest = blake2b(f"{seed}/{step}/{micro}/network".encode(), digest_size=8).digest()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)
        yield


def grouped(loader: Iterable[tuple[int, int, Any]], accumulate: int) -> Iterator[list[Any]]:
    """(step, micro, batch) triples as one list of `accumulate` batches a step."""
    iterator = iter(loader)
    while group := list(islice(iterator, accumulate)):
        yield [batch for _, _, batch in group]


def run_steps(engine: StepEngine) -> None:
    """Run the engine from where its state stands to its last step, or until a handler ends it."""
    fit_threads()
    if engine.run_state.step >= engine.run_state.steps:
        return
    try:
        engine.run()
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the device ran out of memory at step {engine.state.iteration}. Lower data.batch (and raise train.accumulate to keep the "
            "same number of samples a step), lower data.size, or use train.precision: bf16 where the device has units for it."
        ) from error
