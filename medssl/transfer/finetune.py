"""Fine-tuning: a plain MONAI network, labelled volumes, DiceCE, Dice on validation cases, best and last checkpoints.

The engine is the one of pretraining (`medssl.train.loop.StepEngine`, a `monai.engines.Trainer`), the evaluator is MONAI's
`SupervisedEvaluator`, so any MONAI or ignite handler attaches. Randomness is a function of (seed, step, place in the batch), so a
resumed run equals one that was never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medssl.config import check, load_config, with_overrides
from medssl.errors import CheckpointError, UsageError
from medssl.networks import as_spec
from medssl.networks.difference import head_tensors
from medssl.plugins import Plugins
from medssl.run import RunState
from medssl.train.checkpoint import Checkpoint, newest_good, save_checkpoint
from medssl.train.device import choose_device, choose_dtype
from medssl.train.handlers import CheckpointWriter, Clock, Recorder
from medssl.train.loop import Skip, StepEngine, StepSettings, grouped, run_steps
from medssl.train.optim import learning_rate_at, load_optimizer, make_optimizer, optimizer_tensors, parameter_groups
from medssl.train.progress import ProgressDisplay
from medssl.train.run_folder import LABELLED, begin_run, continue_run, holds_run, locked
from medssl.train.stopping import Stopped, StopRequest, stop_on_signals
from medssl.transfer.objective import SegmentationLoss
from medssl.transfer.options import FinetuneConfig
from medssl.transfer.segment import Windows
from medssl.transfer.start import Plan, first_weights, make_plan
from medssl.transfer.validation import Best, CaseBatches, Validate, make_evaluator
from medssl.volumes import CropLoader, LabelledOptions, on_device

if TYPE_CHECKING:
    from medssl.transfer.load import LoadReport

REPORT = "load_report.json"
FREE = frozenset({"train.keep", "train.checkpoint_every", "train.device", "data.threads", "data.ahead"})
"""Keys that may differ when a run is resumed: they change no number."""


@dataclass
class FineTuned:
    """One fine-tuning with its folder. `medssl_handlers(run)` receives it before the first step."""

    folder: Path
    config: FinetuneConfig
    """The resolved configuration."""
    objective: SegmentationLoss
    """What is trained; `objective.network` is the plain network."""
    state: RunState
    report: LoadReport | None = None
    """What was loaded from the pretrained checkpoint; None from scratch or after a resume. Also in `load_report.json`."""
    best: Best = field(default_factory=Best)
    """The best evaluation on the validation cases; step 0 where there are none."""

    @property
    def network(self) -> nn.Module:
        """The plain MONAI network: after the run with its best weights where there are validation cases, else with its last."""
        return self.objective.network


def fine_tune(
    network: Any = None,
    data: LabelledOptions | Mapping[str, Any] | str | Path | None = None,
    pretrained: str | Path | None = None,
    out: str | Path | None = None,
    *,
    labelled: int | None = None,
    config: str | Path | Mapping[str, Any] | FinetuneConfig | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    resume: bool = False,
    handlers: Sequence[Any] = (),
    plugins: Plugins | None = None,
    **train: Any,
) -> FineTuned:
    """Fine-tune a segmentation network on labelled volumes and return the run; `out` becomes its folder.

    Give a `config` (a YAML file or a mapping) or the parts: `network` as for `medssl.pretrain` (left out: the pretrained
    one), `data` as options or a folder with `dataset.json`, further keywords as options of `train`, such as `steps=300`.

    Raises:
        ConfigError: unknown keys, a crop the network cannot take, a preparation or spacing other than the pretrained one's.
        DataError: labels that do not fit their images or the network.
        TransferError: too little of the checkpoint fits.
        Stopped: SIGINT or SIGTERM came; a checkpoint was written before.
    """
    if out is None:
        raise UsageError("fine_tune needs out, the folder of the run.")
    given = _parts(network, data, pretrained, labelled, seed, train)
    checked = _configuration(config, given, overrides)
    with locked(out) as folder, stop_on_signals() as request:
        plan = make_plan(checked, folder / LABELLED)
        run, resumed = _open_run(plan, folder, resume)
        _train(plan, run, resumed, request, handlers, plugins)
    return run


def _parts(network: Any, data: Any, pretrained: Any, labelled: int | None, seed: int | None, train: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a configuration that were given as arguments."""
    given: dict[str, Any] = {}
    if network is not None:
        given["network"] = as_spec(network)
    if data is not None or labelled is not None:
        given["data"] = _data(data, labelled)
    if pretrained is not None:
        given["pretrained"] = str(pretrained)
    if seed is not None:
        given["seed"] = seed
    if train:
        given["train"] = dict(train)
    return given


def _data(data: Any, labelled: int | None) -> dict[str, Any]:
    if isinstance(data, LabelledOptions):
        values = data.model_dump(exclude_unset=True)
    elif isinstance(data, Mapping):
        values = dict(data)
    else:
        values = {} if data is None else {"dataset": str(data)}
    return values if labelled is None else {**values, "labelled": labelled}


def _configuration(config: Any, given: Mapping[str, Any], overrides: Sequence[str]) -> FinetuneConfig:
    """A configuration (a file, a mapping or nothing) with overrides, then the arguments, laid over it."""
    where = str(config) if isinstance(config, str | Path) else "fine-tuning configuration"
    if isinstance(config, FinetuneConfig):
        base: dict[str, Any] = {**config.model_dump(exclude_unset=True, by_alias=True), "network": config.network}
    else:
        base = dict(config or {}) if isinstance(config, Mapping) or config is None else load_config(config)
    base = with_overrides(base, overrides)
    for key, value in given.items():
        base[key] = {**(base.get(key) or {}), **value} if key in ("data", "train") else value
    return check(FinetuneConfig, base, where)


def _open_run(plan: Plan, folder: Path, resume: bool) -> tuple[FineTuned, Checkpoint | None]:
    """A new run with its first weights, or the run of the folder as its newest good checkpoint has it."""
    options = plan.config.train
    resumed = newest_good(folder) if resume else None
    if resume and holds_run(folder):
        continue_run(folder, plan.config, FREE, resumed.step if resumed is not None else 0)
    if resumed is not None:
        if resumed.state.get("kind") != "finetune":
            raise CheckpointError(f"{resumed.path} is no checkpoint of a fine-tuning. Give another --out.")
        network, report = plan.spec.build(seed=plan.config.seed), None
        network.load_state_dict(resumed.tensors["network"])
    else:
        network, report = first_weights(plan)
        if not (resume and holds_run(folder)):
            begin_run(folder, plan.config)
        if report is not None:
            (folder / REPORT).write_text(json.dumps(report.document(), indent=1) + "\n", encoding="utf-8")
    state, best = RunState(options.steps), Best()
    if resumed is not None:
        state.step, state.skipped = resumed.step, resumed.state["skipped"]
        best = Best(**resumed.state["best"])
    objective = SegmentationLoss(network, plan.config.augment, plan.config.seed)
    return FineTuned(folder, plan.config, objective, state, report, best), resumed


def _train(
    plan: Plan, run: FineTuned, resumed: Checkpoint | None, request: StopRequest, handlers: Sequence[Any], plugins: Plugins | None
) -> None:
    options = plan.config.train
    run.objective.to(choose_device(options.device))
    with ExitStack() as stack:
        crops = stack.enter_context(CropLoader(plan.store, plan.config.data, plan.config.seed, first_step=run.state.step))
        display = stack.enter_context(ProgressDisplay("fine-tuning", options.steps, run.state.step))
        clock = Clock(plan.config.data.batch)
        recorder = Recorder(run.folder, 1, clock, display)
        stack.callback(recorder.close)
        engine = _engine(plan, run, resumed, crops, recorder)
        clock.attach(engine)
        _attach_validation(plan, run, engine)
        recorder.attach(engine)
        for handler in [*handlers, *_plugin_handlers(plugins, run)]:
            handler.attach(engine)
        save = _saver(plan, run, engine.optimizer, "step", options.keep, before=recorder.sync)
        CheckpointWriter(save, options.checkpoint_every, request).attach(engine)
        run_steps(engine)
        if request.signal is not None:
            stopped = Stopped(
                request.signal, f"stopped at step {run.state.step}, a checkpoint is written; go on with the same command and --resume"
            )
            display.say(str(stopped))
            raise stopped
    _take_best(run)


def _engine(plan: Plan, run: FineTuned, resumed: Checkpoint | None, crops: CropLoader, recorder: Recorder) -> StepEngine:
    options, device = plan.config.train, choose_device(plan.config.train.device)
    groups = parameter_groups(run.objective, options.weight_decay)
    optimizer = make_optimizer(groups, options.optimizer, options.learning_rate, options.momentum)
    if resumed is not None:
        load_optimizer(optimizer, run.objective, resumed.tensors["optimizer"])

    def rate(step: int) -> float:
        return learning_rate_at(step, options.steps, options.learning_rate, options.warmup, options.schedule)

    def on_skip(skip: Skip) -> None:
        recorder.skip(skip, [int(sample) for crops in skip.batches for sample in crops.sample])

    dtype = choose_dtype(options.precision, device)
    settings = StepSettings(device, rate, dtype, options.clip, plan.config.seed, options.max_skipped)
    batches = on_device(grouped(crops, 1), device)
    return StepEngine(run.objective, run.objective, optimizer, batches, run.state, settings, on_skip=on_skip)


def _attach_validation(plan: Plan, run: FineTuned, engine: StepEngine) -> None:
    if not plan.validation:
        return
    options, device = plan.config.train, engine.settings.device
    windows = Windows(plan.config.data.size, plan.config.overlap, engine.settings.dtype)
    evaluator = make_evaluator(run.network, CaseBatches(plan.validation, plan.form), windows, plan.classes, device)
    Validate(evaluator, options.validate_every, options.steps, run.best, _saver(plan, run, None, "best", 1)).attach(engine)


def _plugin_handlers(plugins: Plugins | None, run: FineTuned) -> list[Any]:
    found = (plugins or Plugins.load()).hook.medssl_handlers(run=run)
    return [handler for handlers in found for handler in handlers]


def _saver(
    plan: Plan,
    run: FineTuned,
    optimizer: torch.optim.Optimizer | None,
    series: str,
    keep: int,
    before: Callable[[], None] = lambda: None,
) -> Callable[[int], None]:
    """`save(step)`: with an optimizer a checkpoint to resume from, without one the network alone."""

    def save(step: int) -> None:
        before()
        tensors: dict[str, Mapping[str, Tensor]] = {"network": run.network.state_dict()}
        if optimizer is not None:
            tensors["optimizer"] = optimizer_tensors(optimizer, run.objective)
        save_checkpoint(run.folder, step, tensors, checkpoint_state(plan, run), keep=keep, series=series)

    return save


def checkpoint_state(plan: Plan, run: FineTuned) -> dict[str, Any]:
    """What a fine-tuning checkpoint says beside its tensors: all that prediction, transfer and resuming need."""
    origin = plan.origin
    lineage = list(origin.state.get("lineage") or []) if origin is not None else []
    if origin is not None:
        network = origin.state.get("files", {}).get("network.safetensors")
        lineage.append({"kind": origin.state.get("kind"), "step": origin.step, "network": network})
    return {
        "kind": "finetune",
        "network": plan.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        "head": list(head_tensors(plan.spec)),
        **plan.form.document(),
        "size": list(plan.config.data.size),
        "overlap": plan.config.overlap,
        "lineage": lineage,
        "versions": {name: version(name) for name in ("medssl", "torch", "monai")},
        "skipped": run.state.skipped,
        "best": {"dice": run.best.dice, "step": run.best.step},
    }


def _take_best(run: FineTuned) -> None:
    best = newest_good(run.folder, "best")
    if best is not None and best.step != run.state.step:
        run.network.load_state_dict(best.tensors["network"])
