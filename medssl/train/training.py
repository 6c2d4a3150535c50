"""One training, whatever it trains: a pretraining and a fine-tuning differ in what they make ready, and in nothing of this.

`run_training` opens the run's folder, goes on from its newest good checkpoint or begins, takes the steps, writes rows, pictures
and checkpoints, stops on a signal, and hands the run back.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from pydantic import BaseModel
from torch import Tensor

from medssl.contracts import Crops
from medssl.errors import CheckpointError, ConfigError
from medssl.files import FolderLock
from medssl.learn import Objective, citations, freeze_unreached, pictures, small_batch, trivial
from medssl.networks.difference import head_tensors
from medssl.plugins import Plugins
from medssl.run import Best, Run, RunState
from medssl.train.answerable import AnswerableWatch
from medssl.train.checkpoint import Checkpoint, newest_good, save_checkpoint
from medssl.train.config import TrainOptions
from medssl.train.device import choose_device, choose_dtype
from medssl.train.handlers import CheckpointWriter, Clock, FolderWatch, Recorder, plugin_handlers
from medssl.train.loop import Skip, StepEngine, StepSettings, grouped, run_steps, seeded
from medssl.train.optim import learning_rate_at, load_optimizer, make_optimizer, optimizer_tensors, parameter_groups
from medssl.train.pictures import write_sheet
from medssl.train.progress import ProgressDisplay
from medssl.train.run_folder import PICTURES, begin_run, check_room, check_same_run, continue_run, holds_run, locked, refuse_other_run
from medssl.train.stopping import Stopped, StopRequest, stop_on_signals
from medssl.volumes import on_device

logger = logging.getLogger("medssl.train")
NETWORK = "network."
FREE = frozenset(
    {
        "data.threads",
        "data.ahead",
        "data.store",
        "data.unfinished",
        "train.checkpoint_every",
        "train.device",
        "train.keep",
        "train.log_every",
        "train.picture_every",
        "unlabelled.unfinished",
    }
)
"""Keys that may differ when a run is resumed: they change no number."""

Batches = AbstractContextManager[Iterable[tuple[int, int, Crops]]]
Save = Callable[[int], None]


@dataclass(frozen=True)
class Training:
    """What a run trains and on what: made ready and checked by what the run is for."""

    kind: str
    """What its checkpoints call it: "pretrain" or "finetune"."""
    title: str
    """What people call it."""
    config: BaseModel
    """Resolved."""
    options: TrainOptions
    seed: int
    objective: Objective
    """With its first weights."""
    loader: Callable[[int], Batches]
    """Crops as (step, micro, `Crops`) from a step on."""
    batch: int
    """Crops in a micro batch."""
    data: str
    """Fingerprint of what it is trained on: a resumed run must find it again."""
    document: Mapping[str, Any]
    """What a checkpoint says of images and terms beside network, lineage and versions."""
    plugins: Plugins
    origin: Checkpoint | None = None
    """Whose weights it began with."""
    report: Any = None
    """What was loaded of them."""
    attach: Callable[[StepEngine, Run, Save], None] | None = None
    """Attaches what only this kind of run has; `Save` writes its best weights."""
    notes: Sequence[str] = ()
    """Lines that are said before the first step."""
    cases: Mapping[int, str] = field(default_factory=dict)
    """What people call a sample (`Crops.sample`), where they have a name for it."""

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The runs that its weights come from, oldest first."""
        if self.origin is None:
            return []
        state = self.origin.state
        return [
            *(state.get("lineage") or []),
            {"kind": state.get("kind"), "step": self.origin.step, "network": state.get("files", {}).get("network.safetensors")},
        ]


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


def run_training(out: str | Path, prepare: Callable[[Path], Training], *, resume: bool = False, handlers: Sequence[Any] = ()) -> Run:
    """Train into the folder `out` and return the run; `prepare(out)` makes the training ready, before the folder is opened.

    With `resume` the folder's run goes on from its newest good checkpoint, or begins. Raises `Stopped` where a signal ended it.
    """
    goes_on = resume and holds_run(out)
    if not goes_on:
        refuse_other_run(out)
    training = prepare(Path(out))
    if goes_on:
        check_same_run(out, training.config, FREE)
    start = try_out(training)
    check_room(out, checkpoint_bytes(training.objective) * (training.options.keep + 1))
    with locked(out) as held, stop_on_signals() as request:
        resumed = _open_folder(held.folder, training, resume)
        state = RunState(training.options.steps)
        run = Run(held.folder, training.config, training.objective, state, training.report if resumed is None else None)
        if resumed is not None:
            _restore(training, run, resumed)
        _train(training, run, start, resumed, _Control(held, request), handlers)
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
) -> StepEngine:
    """The engine that trains `objective`, moved to its device, on `batches` as `CropLoader` yields them, from `state.step` on."""
    device = choose_device(options.device)
    objective.to(device)

    def rate(step: int) -> float:
        return learning_rate_at(step, options.steps, options.learning_rate, options.warmup, options.schedule)

    return StepEngine(
        objective,
        make_optimizer(parameter_groups(objective, options.weight_decay), options.optimizer, options.learning_rate, options.momentum),
        on_device(grouped(batches, options.accumulate), device),
        state or RunState(options.steps),
        StepSettings(device, rate, choose_dtype(options.precision, device), options.clip, seed, options.max_skipped),
        on_skip=on_skip,
        handlers=handlers,
    )


def _open_folder(folder: Path, training: Training, resume: bool) -> Checkpoint | None:
    """Begin a run in the folder, or find the checkpoint to go on from."""
    if not (resume and holds_run(folder)):
        begin_run(folder, training.config)
        return None
    resumed = newest_good(folder)
    if resumed is not None and resumed.state.get("kind") != training.kind:
        raise CheckpointError(f"{resumed.path} is no checkpoint of a {training.title}. Give another --out.")
    if resumed is not None and resumed.state.get("data") != training.data:
        raise ConfigError(
            f"the volumes here are not those that {resumed.path} was trained on: there are others, or they are prepared otherwise. "
            "Name the same, or start another run elsewhere that builds on its weights."
        )
    continue_run(folder, training.config, FREE, resumed.step if resumed is not None else 0)
    return resumed


def _train(training: Training, run: Run, start: _Start, resumed: Checkpoint | None, control: _Control, handlers: Sequence[Any]) -> None:
    options, state, objective = training.options, run.state, training.objective
    with ExitStack() as stack:
        crops = stack.enter_context(training.loader(state.step))
        display = stack.enter_context(ProgressDisplay(training.title, options.steps, state.step))
        clock = Clock(training.batch * options.accumulate)
        recorder = Recorder(run.folder, options.log_every, clock, display)
        stack.callback(recorder.close)

        def on_skip(skip: Skip) -> None:
            samples = [int(sample) for crops in skip.batches for sample in crops.sample]
            recorder.skip(skip, samples, sorted({training.cases[sample] for sample in samples if sample in training.cases}))

        engine = make_engine(objective, crops, options, state, training.seed, on_skip)
        if resumed is not None:
            load_optimizer(engine.optimizer, objective, resumed.tensors["optimizer"])
        for note in training.notes:
            display.say(note)
        _say_trivial(start.trivial, display)
        clock.attach(engine)
        FolderWatch(control.folder).attach(engine)
        AnswerableWatch(display.say).attach(engine)
        if training.attach is not None:
            training.attach(engine, run, _saver(training, run, "best", 1))
        recorder.attach(engine)
        if options.picture_every:
            _attach_pictures(engine, objective, start.crops.to(engine.settings.device), run.folder, options.picture_every)
        for handler in handlers:
            handler.attach(engine)
        with plugin_handlers(engine, training.plugins, run):
            save = _saver(training, run, "step", options.keep, recorder, engine.optimizer)
            CheckpointWriter(save, options.checkpoint_every, control.request).attach(engine)
            run_steps(engine)
        if control.request.signal is not None:
            written = ", a checkpoint is written" if state.step else ""
            stopped = Stopped(control.request.signal, f"stopped at step {state.step}{written}; go on with the same command and --resume")
            display.say(str(stopped))
            raise stopped


def _say_trivial(trivial: Mapping[str, float], display: ProgressDisplay) -> None:
    found = ", ".join(f"{name} {loss:.4g}" for name, loss in trivial.items())
    if found:
        display.say(f"to beat, the loss of the answer that needs no learning: {found}")


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
    series: str,
    keep: int,
    recorder: Recorder | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Save:
    """`save(step)`: with an optimizer a checkpoint to resume from, without one the network alone."""
    objective = training.objective

    def save(step: int) -> None:
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
        "skipped": run.state.skipped,
        "best": {"dice": run.state.best.dice, "step": run.state.best.step},
    }


def _restore(training: Training, run: Run, checkpoint: Checkpoint) -> None:
    run.state.step, run.state.skipped = checkpoint.step, checkpoint.state["skipped"]
    run.state.best = Best(**checkpoint.state["best"])
    network = {NETWORK + name: tensor for name, tensor in checkpoint.tensors.get("network", {}).items()}
    try:
        training.objective.load_state_dict({**network, **checkpoint.tensors.get("objective", {})})
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.path} does not fit the objective of this configuration: {error}. It was written with "
            f"{checkpoint.state.get('versions')}: use the same versions, or start a further round with `from:`."
        ) from error


def checkpoint_bytes(objective: Objective) -> int:
    """At most: every tensor, and two moments of every parameter."""
    sizes = [tensor.nbytes for tensor in objective.state_dict().values()]
    return int(sum(sizes) + 2 * sum(parameter.nbytes for parameter in objective.parameters()))
