"""One training, whatever it trains: a pretraining and a fine-tuning differ in what they make ready, and in nothing of this.

`run_training` opens the run's folder, goes on from its newest good checkpoint or begins, takes the steps, writes rows, pictures
and checkpoints, stops on a signal, and hands the run back.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor

from medssl.contracts import Crops
from medssl.errors import RESUME
from medssl.files import FolderLock
from medssl.learn import Objective, citations, freeze_unreached, pictures, small_batch, trivial
from medssl.networks.difference import head_tensors
from medssl.run import Run, RunState
from medssl.train.answerable import AnswerableWatch
from medssl.train.checkpoint import Checkpoint, save_checkpoint
from medssl.train.config import TrainOptions
from medssl.train.connected import GradientWatch
from medssl.train.definition import Save, Training
from medssl.train.device import choose_device, choose_dtype
from medssl.train.handlers import CheckpointWriter, Clock, FolderWatch, Recorder, plugin_handlers
from medssl.train.loop import Skip, StepEngine, StepSettings, grouped, run_steps, seeded
from medssl.train.optim import learning_rate_at, load_optimizer, make_optimizer, optimizer_tensors, parameter_groups
from medssl.train.pictures import write_sheet
from medssl.train.progress import ProgressDisplay
from medssl.train.resuming import (
    NETWORK,
    Form,
    check_forms,
    check_resumable,
    check_taken,
    computing,
    open_folder,
    restore,
    tensor_forms,
    warn_of_other_computing,
)
from medssl.train.run_folder import PICTURES, check_room, holds_run, locked, refuse_other_run
from medssl.train.stopping import Stopped, StopRequest, stop_on_signals
from medssl.volumes import on_device

logger = logging.getLogger("medssl.train")


@dataclass
class _Start:
    """What is known when the first step is about to be taken."""

    crops: Crops
    """The run's first batch: what pictures show."""
    trivial: dict[str, float] = field(default_factory=dict)
    """By task: the loss of the answer that needs no learning."""


@dataclass(frozen=True)
class _Control:
    """What may end a run from outside."""

    folder: FolderLock
    request: StopRequest


def run_training(
    out: str | Path, prepare: Callable[[Path], Training], *, resume: bool = False, handlers: Sequence[Any] = (), verbose: bool = True
) -> Run:
    """Train into the folder `out` and return the run; `prepare(out)` makes the training ready, before the folder is opened.

    With `resume` the folder's run goes on from its newest good checkpoint, or begins. Raises `Stopped` where a signal ended it.
    """
    goes_on = resume and holds_run(out)
    if not goes_on:
        refuse_other_run(out)
    training = prepare(Path(out))
    if goes_on:
        check_resumable(out, training)
    start = try_out(training)
    # One more while it is written, and one before steps that were skipped.
    check_room(out, checkpoint_bytes(training.objective) * (training.options.keep + 2))
    with locked(out) as held, stop_on_signals() as request:
        state = RunState(training.options.steps)
        resumed = open_folder(held.folder, training, resume, state)
        run = Run(held.folder, training.config, training.objective, state, training.report if resumed is None else None)
        if resumed is not None:
            restore(training, run, resumed)
            warn_of_other_computing(resumed, computing(training.options.device, training.options.precision))
        _train(training, run, start, resumed, _Control(held, request), handlers, verbose)
        check_taken(state, held.folder)
    return run


def try_out(training: Training) -> _Start:
    """The first batch through everything, before a step is taken: a run of days should not end in its first minute."""
    objective = training.objective
    small = small_batch(objective, training.batch)
    if small is not None:
        warnings.warn(small, stacklevel=2)
    with training.loader(0) as crops:
        first = next(iter(crops))[2]
    with seeded(training.seed, 0, 0, torch.device("cpu")):
        frozen = freeze_unreached(objective, first)
        logger.info("not trained, since no term reaches them: %s", ", ".join(frozen) or "none")
        start = _Start(first, trivial(objective, first, 0))
        if training.options.picture_every:
            pictures(objective, first, 0)
    return start


def make_engine(
    objective: Objective,
    batches: Iterable[tuple[int, int, Crops]],
    options: TrainOptions,
    state: RunState | None = None,
    seed: int = 0,
    on_skip: Callable[[Skip], None] | None = None,
    handlers: Sequence[Any] | None = None,
    rate: Callable[[int], float] | None = None,
    scales: Mapping[str, float] | None = None,
) -> StepEngine:
    """The engine that trains `objective`, moved to its device, on `batches` as `CropLoader` yields them, from `state.step` on.

    `rate` and `scales` as in `Training`, by the objective's names.
    """
    device = choose_device(options.device)
    objective.to(device)

    def usual(step: int) -> float:
        return learning_rate_at(step, options.steps, options.learning_rate, options.warmup, options.schedule)

    return StepEngine(
        objective,
        make_optimizer(
            parameter_groups(objective, options.weight_decay, scales), options.optimizer, options.learning_rate, options.momentum
        ),
        on_device(grouped(batches, options.accumulate), device),
        state or RunState(options.steps),
        StepSettings(device, rate or usual, choose_dtype(options.precision, device), options.clip, seed, options.max_skipped),
        on_skip=on_skip,
        handlers=handlers,
    )


def _train(
    training: Training,
    run: Run,
    start: _Start,
    resumed: Checkpoint | None,
    control: _Control,
    handlers: Sequence[Any],
    verbose: bool,
) -> None:
    options, state, objective = training.options, run.state, training.objective
    with ExitStack() as stack:
        crops = stack.enter_context(training.loader(state.step))
        display = stack.enter_context(ProgressDisplay(training.title, options.steps, state.step, verbose=verbose))
        clock = Clock(training.batch * options.accumulate)
        recorder = Recorder(run.folder, options.log_every, clock, display)
        stack.callback(recorder.close)

        def on_skip(skip: Skip) -> None:
            samples = [int(sample) for crops in skip.batches for sample in crops.sample]
            recorder.skip(skip, samples, sorted({training.cases[sample] for sample in samples if sample in training.cases}))

        objective.sometimes_unreached |= training.staged
        scales = {NETWORK + name: scale for name, scale in training.scales.items()}
        engine = make_engine(objective, crops, options, state, training.seed, on_skip, rate=training.rate, scales=scales)
        if resumed is not None:
            load_optimizer(engine.optimizer, objective, resumed.tensors.get("optimizer", {}))
        for note in [*training.notes, *_changes(state)]:
            display.say(note)
        _say_trivial(start.trivial, display)
        clock.attach(engine)
        FolderWatch(control.folder).attach(engine)
        forms = tensor_forms(objective)
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=state.step + 1), lambda: check_forms(objective, forms))
        AnswerableWatch(display.say).attach(engine)
        GradientWatch(objective, display.say).attach(engine)
        if training.attach is not None:
            training.attach(engine, run, _saver(training, run, forms, "best", 1))
        recorder.attach(engine)
        if options.picture_every:
            _attach_pictures(engine, objective, start.crops.to(engine.settings.device), run.folder, options.picture_every)
        for handler in handlers:
            handler.attach(engine)
        with plugin_handlers(engine, training.plugins, run):
            save = _saver(training, run, forms, "step", options.keep, recorder, engine.optimizer)
            CheckpointWriter(save, options.checkpoint_every, control.request).attach(engine)
            run_steps(engine)
        if control.request.signal is not None:
            written = ", a checkpoint is written" if state.step else ""
            stopped = Stopped(control.request.signal, f"stopped at step {state.step}{written}; go on with the same command and {RESUME}")
            display.say(str(stopped))
            raise stopped


def _say_trivial(trivial: Mapping[str, float], display: ProgressDisplay) -> None:
    losses = {name: f"{loss:.4g}" for name, loss in trivial.items() if "/" not in name}
    for name, value in trivial.items():
        task, _, measure = name.partition("/")
        if measure:
            losses[task] += f" ({measure} {value:.4g})"
    if losses:
        found = ", ".join(f"{name} {said}" for name, said in losses.items())
        display.say(f"to beat, the loss of the answer that needs no learning: {found}")


def _changes(state: RunState) -> list[str]:
    """What was changed now that the run goes on."""
    new = [one for one in state.changed if one["step"] == state.step]
    return [f"from step {state.step} on {one['key']} is {one['now']} instead of {one['before']}" for one in new]


def _attach_pictures(engine: StepEngine, objective: Objective, crops: Crops, folder: Path, every: int) -> None:
    """Sheets of the same crops and questions each time, so that they can be compared."""

    def draw(engine: Any) -> None:
        step = engine.state.iteration
        if step % every and step != engine.run_state.steps:
            return
        shown: dict[str, dict[str, Tensor]] = {}
        for name, images in pictures(objective, crops, 0).items():
            task, _, what = name.partition("/")
            shown.setdefault(task, {})[what] = images
        for task, columns in shown.items():
            write_sheet(folder / PICTURES / f"step-{step:08d}-{task}.png", columns, f"{task}, step {step}")

    engine.add_event_handler(Events.ITERATION_COMPLETED, draw)


def _saver(
    training: Training,
    run: Run,
    forms: Mapping[str, Form],
    series: str,
    keep: int,
    recorder: Recorder | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Save:
    """`save(step)`: with an optimizer a checkpoint to resume from, without one the network alone."""
    objective = training.objective

    def save(step: int) -> None:
        check_forms(objective, forms)
        if recorder is not None:
            recorder.sync()
        tensors: dict[str, Mapping[str, Tensor]] = {"network": objective.network.state_dict()}
        if optimizer is not None:
            rest = {name: tensor for name, tensor in objective.state_dict().items() if not name.startswith(NETWORK)}
            tensors |= {"objective": rest} if rest else {}
            tensors |= {"optimizer": optimizer_tensors(optimizer, objective)}
        save_checkpoint(run.folder, step, tensors, checkpoint_state(training, run), keep=keep, series=series)

    return save


def checkpoint_state(training: Training, run: Run) -> dict[str, Any]:
    """What a checkpoint says beside its tensors: all that transfer, prediction, a further round and resuming need."""
    spec = training.objective.spec
    return {
        "kind": training.kind,
        "network": spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        "head": list(head_tensors(spec)),
        "data": training.data,
        **training.document,
        "citations": citations(training.objective),
        "seed": training.seed,
        "lineage": training.lineage,
        "versions": {name: version(name) for name in ("medssl", "torch", "monai")},
        "compute": computing(training.options.device, training.options.precision),
        "changed": run.state.changed,
        "skipped": run.state.skipped,
        "skipping": run.state.skipping,
        "best": {"dice": run.state.best.dice, "step": run.state.best.step},
    }


def checkpoint_bytes(objective: Objective) -> int:
    """At most: every tensor, and two moments of every parameter."""
    sizes = [tensor.nbytes for tensor in objective.state_dict().values()]
    return int(sum(sizes) + 2 * sum(parameter.nbytes for parameter in objective.parameters()))
