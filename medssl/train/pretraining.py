"""Pretraining: `Pretrainer`, the engine, and `pretrain`, the run around it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor

from medssl.contracts import Crops
from medssl.errors import CheckpointError, ConfigError, UsageError
from medssl.learn import Objective, freeze_unreached, pictures, trivial
from medssl.networks import NetworkSpec
from medssl.networks.difference import head_tensors
from medssl.plugins import Plugins
from medssl.run import Run, RunState
from medssl.train.checkpoint import Checkpoint, newest_good, save_checkpoint
from medssl.train.config import PretrainConfig, TrainOptions
from medssl.train.device import choose_device, choose_dtype
from medssl.train.handlers import CheckpointWriter, Clock, Recorder, plugin_handlers
from medssl.train.loop import Skip, StepEngine, StepSettings, grouped, run_steps, seeded
from medssl.train.optim import learning_rate_at, load_optimizer, make_optimizer, optimizer_tensors, parameter_groups
from medssl.train.pictures import write_sheet
from medssl.train.progress import ProgressDisplay
from medssl.train.run_folder import PICTURES, begin_run, check_room, check_same_run, continue_run, holds_run, locked, refuse_other_run
from medssl.train.setup import Plan, given_parts, make_plan, store_fingerprint
from medssl.train.stopping import Stopped, StopRequest, stop_on_signals
from medssl.volumes import on_device

FREE = frozenset(
    {
        "data.threads",
        "data.ahead",
        "data.store",
        "train.checkpoint_every",
        "train.device",
        "train.keep",
        "train.log_every",
        "train.picture_every",
    }
)
"""Keys that may differ when a run is resumed: they change no number."""
NETWORK = "network."
logger = logging.getLogger("medssl.train")


class Pretrainer(StepEngine):
    """The engine of a pretraining: a `monai.engines.Trainer` over an `Objective`, so any MONAI or ignite handler attaches.

    `batches` yields (step, micro, `Crops`) as `CropLoader` does, beginning at `state.step`. One iteration is one optimizer step.
    """

    def __init__(
        self,
        objective: Objective,
        batches: Iterable[tuple[int, int, Crops]],
        options: TrainOptions,
        state: RunState | None = None,
        seed: int = 0,
        on_skip: Callable[[Skip], None] | None = None,
        handlers: Sequence[Any] | None = None,
    ) -> None:
        device = choose_device(options.device)
        objective.to(device)
        state = state or RunState(options.steps)
        groups = parameter_groups(objective, options.weight_decay)

        def rate(step: int) -> float:
            return learning_rate_at(step, options.steps, options.learning_rate, options.warmup, options.schedule)

        super().__init__(
            objective,
            make_optimizer(groups, options.optimizer, options.learning_rate, options.momentum),
            on_device(grouped(batches, options.accumulate), device),
            state,
            StepSettings(device, rate, choose_dtype(options.precision, device), options.clip, seed, options.max_skipped),
            on_skip=on_skip,
            handlers=handlers,
        )


def pretrain(
    network: Any = None,
    data: Any = None,
    tasks: Any = None,
    consistency: Any = None,
    out: str | Path | None = None,
    *,
    size: Sequence[int] | None = None,
    batch: int | None = None,
    views: Any = None,
    seed: int | None = None,
    from_: str | Path | None = None,
    config: str | Path | Mapping[str, Any] | PretrainConfig | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    handlers: Sequence[Any] = (),
    plugins: Plugins | None = None,
    **train: Any,
) -> Run:
    """Pretrain a network on a store and return the run; `out` becomes its folder.

    Give a `config` (a YAML file or a mapping), or the parts, or both (the parts win): `network` is a `NetworkSpec`, a name, or a
    callable taking `out_channels`, such as `partial(SegResNet, ...)`; `data` a store's folder with `size` (voxels) and `batch`, or
    the options of `data:`; `tasks` and `consistency` lists of names, mappings, classes or objects; `from_` an earlier run that
    this round goes on from; further keywords are options of `train:`, such as `steps=1000`. With `resume` the run goes on from
    its newest good checkpoint, or starts.

    Raises:
        ConfigError: unknown keys, values out of range, a network that does not fit the store.
        PluginError: a task that is not installed, or one that failed, with its package.
        Stopped: SIGINT, SIGTERM or SIGUSR1 came; a checkpoint was written before.
    """
    if out is None:
        raise UsageError("pretrain needs out, the folder of the run.")
    given = given_parts(network, data, tasks, consistency, size, batch, views, seed, from_, train)
    plan = make_plan(config, overrides, given, plugins or Plugins.load())
    if resume and holds_run(out):
        check_same_run(out, plan.config, FREE)
    else:
        refuse_other_run(out)
    objective, looked_at = plan.objective(), plan.first_crops()
    check_room(out, _checkpoint_bytes(objective) * (plan.config.train.keep + 1))
    with seeded(plan.config.seed, 0, 0, torch.device("cpu")):
        frozen = freeze_unreached(objective, looked_at)
        logger.info("not trained, since no term reaches them: %s", ", ".join(frozen) or "none")
        to_beat = trivial(objective, looked_at, 0)
        if plan.config.train.picture_every:
            pictures(objective, looked_at, 0)  # a task whose picture fails should say so now, not hours later
    with locked(out) as folder, stop_on_signals() as request:
        resumed = _open_folder(folder, plan, resume)
        run = Run(folder, plan.config, objective, RunState(plan.config.train.steps))
        _train(plan, run, objective, looked_at, to_beat, resumed, request, handlers)
    return run


def _open_folder(folder: Path, plan: Plan, resume: bool) -> Checkpoint | None:
    """Begin a run in the folder, or find the checkpoint to go on from."""
    if not (resume and holds_run(folder)):
        begin_run(folder, plan.config)
        return None
    resumed = newest_good(folder)
    if resumed is not None and resumed.state.get("kind") != "pretrain":
        raise CheckpointError(f"{resumed.path} is no checkpoint of a pretraining. Give another --out.")
    if resumed is not None and resumed.state.get("store") not in (None, store_fingerprint(plan.store)):
        raise ConfigError(
            f"{plan.config.data.store} is not the store that {resumed.path} was trained on: it holds other volumes, or prepares them "
            "otherwise. Name that store, or start another run elsewhere with `from: RUN_DIR`."
        )
    continue_run(folder, plan.config, FREE, resumed.step if resumed is not None else 0)
    return resumed


def _train(
    plan: Plan,
    run: Run,
    objective: Objective,
    looked_at: Crops,
    to_beat: Mapping[str, float],
    resumed: Checkpoint | None,
    request: StopRequest,
    handlers: Sequence[Any],
) -> None:
    options, state = plan.config.train, run.state
    if resumed is not None:
        _restore(objective, resumed)
        state.step, state.skipped = resumed.step, resumed.state["skipped"]
    with ExitStack() as stack:
        crops = stack.enter_context(plan.loader(state.step))
        display = stack.enter_context(ProgressDisplay("pretraining", options.steps, state.step))
        clock = Clock(plan.config.data.batch * options.accumulate)
        recorder = Recorder(run.folder, options.log_every, clock, display)
        stack.callback(recorder.close)
        on_skip: Callable[[Skip], None] = lambda skip: recorder.skip(skip, _samples(skip))  # noqa: E731
        engine = Pretrainer(objective, crops, options, state, plan.config.seed, on_skip)
        if resumed is not None:
            load_optimizer(engine.optimizer, objective, resumed.tensors["optimizer"])
        _say_trivial(to_beat, display)
        clock.attach(engine)
        recorder.attach(engine)
        if options.picture_every:
            _attach_pictures(engine, objective, looked_at.to(engine.settings.device), run.folder, options.picture_every)
        for handler in handlers:
            handler.attach(engine)
        with plugin_handlers(engine, plan.plugins, run):
            CheckpointWriter(_saver(plan, run, objective, engine, recorder), options.checkpoint_every, request).attach(engine)
            run_steps(engine)
        if request.signal is not None:
            written = ", a checkpoint is written" if state.step else ""
            stopped = Stopped(request.signal, f"stopped at step {state.step}{written}; go on with the same command and --resume")
            display.say(str(stopped))
            raise stopped


def _samples(skip: Skip) -> list[int]:
    return [int(sample) for crops in skip.batches for sample in crops.sample]


def _say_trivial(to_beat: Mapping[str, float], display: ProgressDisplay) -> None:
    found = ", ".join(f"{name} {loss:.4g}" for name, loss in to_beat.items())
    if found:
        display.say(f"to beat, the loss of the answer that needs no learning: {found}")


def _attach_pictures(engine: Pretrainer, objective: Objective, crops: Crops, folder: Path, every: int) -> None:
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


def _saver(plan: Plan, run: Run, objective: Objective, engine: Pretrainer, recorder: Recorder) -> Callable[[int], None]:
    def save(step: int) -> None:
        recorder.sync()
        everything = objective.state_dict()
        tensors = {
            "network": objective.network.state_dict(),
            "objective": {name: tensor for name, tensor in everything.items() if not name.startswith(NETWORK)},
            "optimizer": optimizer_tensors(engine.optimizer, objective),
        }
        save_checkpoint(run.folder, step, tensors, checkpoint_state(plan, run, objective.spec), keep=plan.config.train.keep)

    return save


def _restore(objective: Objective, checkpoint: Checkpoint) -> None:
    network = {NETWORK + name: tensor for name, tensor in checkpoint.tensors.get("network", {}).items()}
    try:
        objective.load_state_dict({**network, **checkpoint.tensors.get("objective", {})})
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.path} does not fit the objective of this configuration: {error}. It was written with "
            f"{checkpoint.state.get('versions')}: use the same versions, or start a further round with `from:`."
        ) from error


def _checkpoint_bytes(objective: Objective) -> int:
    """At most: every tensor, and two moments of every parameter."""
    sizes = [tensor.nbytes for tensor in objective.state_dict().values()]
    return int(sum(sizes) + 2 * sum(parameter.nbytes for parameter in objective.parameters()))


def checkpoint_state(plan: Plan, run: Run, spec: NetworkSpec) -> dict[str, Any]:
    """What a pretraining checkpoint says beside its tensors: all that transfer, a further round and resuming need."""
    origin = plan.origin
    lineage = list(origin.state.get("lineage") or []) if origin is not None else []
    if origin is not None:
        network = origin.state.get("files", {}).get("network.safetensors")
        lineage.append({"kind": origin.state.get("kind"), "step": origin.step, "network": network})
    config = plan.config
    return {
        "kind": "pretrain",
        "network": spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        "head": list(head_tensors(spec)),
        "store": store_fingerprint(plan.store),
        "preparation": plan.store.preparation.model_dump(mode="json"),
        "spacing": plan.store.manifest.spacing,
        "channels": len(plan.store.channels),
        "channel_names": list(plan.store.channels),
        "size": list(config.data.size),
        "tasks": [term.model_dump(mode="json") for term in config.tasks],
        "consistency": [term.model_dump(mode="json") for term in config.consistency],
        "seed": config.seed,
        "lineage": lineage,
        "versions": {name: version(name) for name in ("medssl", "torch", "monai")},
        "skipped": run.state.skipped,
    }
