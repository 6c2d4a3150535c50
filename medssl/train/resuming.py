"""Going on with a run: from which checkpoint, what may differ from the run that was begun, and what is put back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medssl.errors import RESUME, CheckpointError, ConfigError, PluginError, TrainingError
from medssl.learn import Objective
from medssl.learn.joining import world
from medssl.plugins import provider_of
from medssl.run import Best, Run, RunState
from medssl.train.checkpoint import Checkpoint, before_skips, newest_good
from medssl.train.definition import Training
from medssl.train.device import choose_device, choose_dtype, fit_threads
from medssl.train.run_folder import SKIPPED, begin_run, check_same_run, continue_run, holds_run

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
CHANGEABLE = frozenset({"train.clip", "train.learning_rate", "train.max_skipped", "train.precision", "train.steps", "train.validate_every"})
"""Keys that may be changed when a run is resumed, so that one that diverged or was too short can go on; the run says so."""

Form = tuple[tuple[int, ...], torch.dtype]


class ResumeWarning(UserWarning):
    """A resumed run computes otherwise than before, so that it does not end in the same bits."""


def check_resumable(out: str | Path, training: Training) -> None:
    """`ConfigError` naming the keys where the folder's run is another one; nothing in it is touched."""
    check_same_run(out, training.config, FREE | CHANGEABLE)


def open_folder(folder: Path, training: Training, resume: bool, state: RunState) -> Checkpoint | None:
    """Begin a run in the folder, or find the checkpoint to go on from; `state` learns what was changed."""
    if not (resume and holds_run(folder)):
        begin_run(folder, training.config)
        return None
    newest = newest_good(folder)
    resumed = before_skips(folder, newest) if newest is not None else None
    if resumed is not None:
        _check_origin(resumed, training)
    step = resumed.step if resumed is not None else 0
    changed = continue_run(folder, training.config, FREE, CHANGEABLE, step)
    state.changed = [*(resumed.state.get("changed") or [] if resumed is not None else []), *({"step": step, **one} for one in changed)]
    return resumed


def _check_origin(resumed: Checkpoint, training: Training) -> None:
    if resumed.state.get("kind") != training.kind:
        raise CheckpointError(f"{resumed.path} is no checkpoint of a {training.title}. Give another folder.")
    if resumed.state.get("data") != training.data:
        raise ConfigError(
            f"the volumes here are not those that {resumed.path} was trained on: there are others, or they are prepared otherwise. "
            "Name the same, or start another run elsewhere that builds on its weights."
        )
    if resumed.step > training.options.steps:
        raise ConfigError(
            f"train.steps is {training.options.steps}, and {resumed.step} steps are done in {resumed.path}. Give as many or more."
        )


def computing(device: str, precision: str) -> dict[str, Any]:
    """What decides the last bits of a run beside its configuration: the same here and there, and it ends in the same weights."""
    fit_threads()
    place = choose_device(device)
    dtype = choose_dtype(precision, place)
    threads = {"threads": torch.get_num_threads()} if place.type == "cpu" else {}
    return {"torch": torch.__version__, "device": place.type, "precision": str(dtype or "fp32"), "processes": world(), **threads}


def warn_of_other_computing(checkpoint: Checkpoint, now: Mapping[str, Any]) -> None:
    """A `ResumeWarning` where the checkpoint was computed otherwise than will be gone on."""
    before = checkpoint.state.get("compute") or {}
    words = {"threads": "compute threads (OMP_NUM_THREADS)", "torch": "torch", "device": "device", "precision": "precision"}
    different = [
        f"{words.get(key, key)} {before[key]} there, {now.get(key, 'none')} here"
        for key in before
        if key in {*words, "processes"} and before[key] != now.get(key)
    ]
    if different:
        warnings.warn(
            f"{checkpoint.path} was computed otherwise ({'; '.join(different)}): the run goes on, and does not end in the same bits as one "
            "that nothing interrupted.",
            ResumeWarning,
            stacklevel=2,
        )


def restore(training: Training, run: Run, checkpoint: Checkpoint) -> None:
    """Put back where the run stood, its weights and what its terms keep."""
    checkpoint.need("skipped", "best")
    state = checkpoint.state
    run.state.step, run.state.skipped, run.state.skipping = checkpoint.step, state["skipped"], state.get("skipping") or 0
    run.state.best = Best(**state["best"])
    network = {NETWORK + name: tensor for name, tensor in checkpoint.tensors.get("network", {}).items()}
    try:
        training.objective.load_state_dict({**network, **checkpoint.tensors.get("objective", {})})
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.path} does not fit the objective of this configuration: {str(error)[:500]}. It was written with "
            f"{state.get('versions')}: use the same versions, or start another run that builds on its weights."
        ) from error


def tensor_forms(objective: Objective) -> dict[str, Form]:
    """Shape and type of everything that a checkpoint holds of an objective."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in objective.state_dict().items()}


def check_forms(objective: Objective, before: Mapping[str, Form]) -> None:
    """Raise `PluginError` where what a term keeps has changed its shape: a new objective could not take it from a checkpoint."""
    now = tensor_forms(objective)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if not changed:
        return
    name = changed[0]
    kind, key, own = [*name.split(".", 2), "", ""][:3]
    term = objective.by_key("losses" if kind == "losses" else "tasks").get(key)
    whose = f"'{own}' of '{key}' ({provider_of(type(term))})" if term is not None else f"'{name}'"
    raise PluginError(
        f"{whose} had {_form(before.get(name))} when the run began and has {_form(now.get(name))} now, so no checkpoint of it could be "
        "resumed. What a term keeps has to have its full size from the start, with a count of what is filled."
    )


def _form(form: Form | None) -> str:
    return "not been there" if form is None else f"shape {list(form[0])} ({str(form[1]).removeprefix('torch.')})"


def check_taken(state: RunState, folder: Path) -> None:
    """Raise `TrainingError` where every step was skipped: such a run has taught nothing."""
    if state.step and state.skipped >= state.step:
        raise TrainingError(
            f"none of {state.step} steps was taken: each time a loss or the gradient was not finite, so the network is as it was. "
            f"{folder / SKIPPED} names the samples. Lower train.learning_rate or set train.precision: fp32, raise train.steps, and go on "
            f"with {RESUME}."
        )
