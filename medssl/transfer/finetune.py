"""Fine-tuning: a plain MONAI network, labelled volumes, Dice on validation cases, best and last checkpoints.

It is a training as any other (`medssl.train.training`): segmentation is one term of an objective, its crops come from a store, and
pretext tasks, consistency losses and unlabelled volumes may train beside it. The evaluator is MONAI's `SupervisedEvaluator`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from medssl.errors import GO_ON, TrainingError, UsageError
from medssl.faults import faults_as
from medssl.files import write_atomically
from medssl.learn import check_crop
from medssl.learn.build import assemble
from medssl.learn.joining import rank, world
from medssl.learn.objective import Objective
from medssl.learn.terms import Term, resolve_losses, resolve_tasks
from medssl.networks import NetworkSpec, as_spec, parts_by_depth
from medssl.plugins import Plugins
from medssl.run import Run
from medssl.train.checkpoint import newest_good
from medssl.train.config import read_config
from medssl.train.definition import Batches, Save, Training
from medssl.train.device import choose_dtype
from medssl.train.loop import StepEngine
from medssl.train.run_folder import LABELLED
from medssl.train.setup import documents, store_fingerprint, trained_on
from medssl.train.training import run_training
from medssl.train.weights import Source, origin_given, origin_path
from medssl.transfer.crops import Beside, check_unlabelled
from medssl.transfer.load import LoadReport, Stem
from medssl.transfer.options import FinetuneConfig
from medssl.transfer.recipes import Recipe, Stages
from medssl.transfer.segment import Windows
from medssl.transfer.segmentation import Segmentation
from medssl.transfer.start import Plan, first_weights, make_plan
from medssl.transfer.validation import CaseBatches, Validate, make_evaluator
from medssl.volumes import CropLoader, DataOptions, LabelledOptions, Preparation, Store, describe_patients

REPORT = "load_report.json"


def fine_tune(
    network: Any = None,
    data: LabelledOptions | Mapping[str, Any] | str | Path | None = None,
    pretrained: Source | None = None,
    out: str | Path | None = None,
    *,
    labelled: int | None = None,
    config: str | Path | Mapping[str, Any] | FinetuneConfig | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    stem: Stem | None = None,
    preparation: Preparation | Mapping[str, Any] | None = None,
    unseen_modality: bool | None = None,
    resume: bool = False,
    verbose: bool = True,
    handlers: Sequence[Any] = (),
    plugins: Plugins | None = None,
    **train: Any,
) -> Run:
    """Fine-tune a segmentation network on labelled volumes and return the run; `out` becomes its folder.

    Give a `config` (a YAML file or a mapping) or the parts: `network` as for `medssl.pretrain` (left out: the pretrained one; `stem` says
    what becomes of its first layers for another number of channels), `data` as options or a folder with `dataset.json`, `pretrained` a run,
    a checkpoint, a file of weights or a state dict (the last two with `network`), further keywords as options of `train`, such as
    `steps=300`. Images are prepared as those of the pretraining; where transforms of your own had made these, `preparation` says what
    makes the same of files. A modality that the pretraining never saw needs `unseen_modality=True`.

    Raises:
        ConfigError: unknown keys, a crop the network cannot take, a preparation or spacing other than the pretrained one's.
        DataError: labels that do not fit their images or the network, images in another unit than the pretraining's.
        TransferError: too little of the checkpoint fits.
        Stopped: SIGINT or SIGTERM came; a checkpoint was written before.
    """
    if out is None:
        raise UsageError("fine_tune needs out, the folder of the run.")
    origin = origin_path(origin_given(pretrained, config, "pretrained"), out, resume)
    given = _parts(network, data, origin, labelled, train) | {
        key: value
        for key, value in (("seed", seed), ("stem", stem), ("preparation", preparation), ("unseen_modality", unseen_modality))
        if value is not None
    }
    checked = read_config(FinetuneConfig, config, overrides, given, "fine-tuning")
    run = run_training(out, partial(_ready, checked, plugins or Plugins.load(), verbose), resume=resume, handlers=handlers, verbose=verbose)
    _take_best(run)
    return run


def _parts(network: Any, data: Any, pretrained: str | None, labelled: int | None, train: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a configuration that were given as arguments."""
    given: dict[str, Any] = {}
    if network is not None:
        given["network"] = as_spec(network)
    if data is not None or labelled is not None:
        given["data"] = _data(data, labelled)
    if pretrained is not None:
        given["pretrained"] = pretrained
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


def _ready(config: FinetuneConfig, plugins: Plugins, verbose: bool, out: Path) -> Training:
    """Cases in a store, the network with its first weights, segmentation and whatever trains beside it as one objective."""
    plan = make_plan(config, out / LABELLED, verbose)
    tasks = resolve_tasks([term.document() for term in config.tasks], plugins)
    losses = resolve_losses([term.document() for term in config.consistency], plugins)
    config = plan.config.model_copy(update={"tasks": documents(tasks), "consistency": documents(losses)})
    plan = replace(plan, config=config)
    unlabelled = _unlabelled_store(plan)
    objective, report = _objective(plan, tasks, losses, plugins)
    train = config.train
    recipe = Recipe(train.preset, parts_by_depth(plan.spec, plugins), train, train.decay_by_depth)
    document = {
        **plan.form.document(),
        **trained_on(plan.store, config.data.size, config.tasks, config.consistency),
        "label_values": plan.values.document(),
        "label_names": {str(number): name for number, name in sorted(plan.values.class_names().items())},
        "overlap": config.overlap,
    }
    return Training(
        kind="finetune",
        title="fine-tuning",
        config=config,
        options=config.train,
        seed=config.seed,
        objective=objective,
        loader=partial(_loader, plan, unlabelled, objective.wants_body),
        batch=config.data.batch + (config.unlabelled.batch if config.unlabelled is not None else 0),
        data="-".join(store_fingerprint(store) for store in (plan.store, unlabelled) if store is not None),
        document=document,
        plugins=plugins,
        origin=plan.origin,
        report=report,
        attach=partial(_attach, plan, recipe),
        rate=recipe.rate,
        scales=recipe.scales(),
        staged=recipe.is_staged,
        notes=(*([str(report)] if report is not None else []), describe_patients(plan.training, plan.validation)),
        cases=_names(plan),
    )


def _names(plan: Plan) -> dict[int, str]:
    """What the user calls each volume that is trained on, by its number."""
    called = {case.volume: case.name for case in plan.training}
    return {volume.sample: called[volume.volume] for volume in plan.store.volumes if volume.volume in called}


def _objective(
    plan: Plan, tasks: Sequence[Term[Any]], losses: Sequence[Term[Any]], plugins: Plugins
) -> tuple[Objective, LoadReport | None]:
    config, found = plan.config, list[Any]()
    options = Segmentation.Options(augment=config.augment, batch_dice=config.batch_dice)
    segmentation: Term[Any] = Term("tasks", Segmentation.name, Segmentation, options, 1.0)

    def first(_: NetworkSpec) -> nn.Module:
        network, report = first_weights(plan)
        found.append(report)
        return network

    terms = [segmentation, *tasks], losses
    built = assemble(plan.spec, *terms, config.views, config.seed, plugins, config.data.size, first, config.combine)
    check_crop(built, config.data.size, config.data.batch)
    return built, found[0]


def _unlabelled_store(plan: Plan) -> Store | None:
    if plan.config.unlabelled is None:
        return None
    store = Store(plan.config.unlabelled.store)
    if not plan.config.unlabelled.unfinished:
        store.check_finished("unlabelled.unfinished=true")
    check_unlabelled(store, plan.store)
    return store


def _loader(plan: Plan, unlabelled: Store | None, body: bool, first_step: int) -> Batches:
    config, accumulate = plan.config, plan.config.train.accumulate
    labelled = CropLoader(plan.store, config.data, config.seed, accumulate, first_step, rank(), world(), body=body)
    if unlabelled is None or config.unlabelled is None:
        return labelled
    options = DataOptions(
        store=config.unlabelled.store,
        batch=config.unlabelled.batch,
        size=config.data.size,
        threads=config.data.threads,
        ahead=config.data.ahead,
    )
    others = CropLoader(unlabelled, options, config.seed, accumulate, first_step, rank(), world(), body=body)
    return Beside(labelled, others, config.data.batch * accumulate * world())


def _attach(plan: Plan, recipe: Recipe, engine: StepEngine, run: Run, save_best: Save) -> None:
    """Stages of the recipe, validation, and what was loaded as a file of the run."""
    if recipe.is_staged:
        Stages(engine.objective, recipe, plan.config.train.frozen_norms == "train").attach(engine)
    if run.report is not None:
        with faults_as(TrainingError, f"{run.folder / REPORT} cannot be written", GO_ON):
            write_atomically(run.folder / REPORT, (json.dumps(run.report.document(), indent=1) + "\n").encode())
    if not plan.validation:
        return
    options, device = plan.config.train, engine.settings.device
    windows = Windows(plan.config.data.size, plan.config.overlap, choose_dtype(options.validate_precision, device))
    evaluator = make_evaluator(run.network, CaseBatches(plan.validation, plan.form), windows, plan.classes, plan.values, device)
    Validate(evaluator, options.validate_every, options.steps, run.best, save_best).attach(engine)


def _take_best(run: Run) -> None:
    best = newest_good(run.folder, "best")
    if best is not None and best.step != run.state.step:
        run.network.load_state_dict(best.tensors["network"])
