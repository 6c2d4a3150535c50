"""What is looked at before and beside the steps: which crops fit, what no term reaches, answers that need no learning, pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from medssl.contracts import Crops
from medssl.learn import checks
from medssl.learn.objective import Asked, Objective, exact, part_of_mean
from medssl.learn.promises import (
    calling,
    check_by_name,
    check_connected,
    check_own_rows,
    check_picture,
    task_loss,
    task_measures,
)
from medssl.learn.questions import own_grid
from medssl.learn.reading import Reading
from medssl.learn.views import clean_view
from medssl.networks import check_crop as check_network

ENOUGH_TO_NORMALISE = 4
"""Crops of a batch that a norm over the batch needs."""


def check_crop(objective: Objective, size: Sequence[int], batch: int = 2) -> None:
    """Raise `NetworkError` naming the sides that work where the network cannot take whole crops of `size` for these terms."""
    reads = {name for head in objective.built_heads.values() if head.parts == 1 for name in head.reads}
    if reads & {"feature_map", "output"} or "feature_maps" in objective.needs:
        check_network(objective.spec, size, batch, plugins=objective.plugins)
    elif reads or objective.needs & {"embeddings", "task_embeddings"}:
        check_network(objective.spec, size, batch, ("encoder_end",), objective.plugins)


def freeze_unreached(objective: Objective, crops: Crops) -> list[str]:
    """Freeze the parameters of the network that nothing reads and return their names (its own head, a decoder no term needs).

    What a term reads counts as reached whether or not its loss counts yet, and a term's own parameters are left alone, so nothing
    that is annealed in, or waits for a queue to be full, stays frozen. Takes a few of the `crops`, before training, and so also
    finds a crop that is too small or a term that cannot run. Changes nothing else.
    """
    few = _first(crops, 2)
    checks.check_groups(crops, {**objective.by_key("tasks"), **objective.by_key("losses")})
    checks.check_clean(few, objective.by_key("tasks"))
    buffers = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    asked = objective.ask_for(objective.weights, few, 0)
    readings = [objective.read(view, asked.needs) for view in asked.views]
    network = dict(objective.network.named_parameters(prefix="network"))
    frozen = _without_gradient(network, [tensor for reading in readings for tensor in reading.tensors()])
    for name in frozen:
        network[name].requires_grad_(False)
    trained = {name: parameter for name, parameter in objective.named_parameters() if parameter.requires_grad}
    objective.reached.clear()
    losses = [objective(one)["loss"] for one in (asked, objective.ask_for(objective.weights, few, 0, 1.0))]
    check_connected(objective.reached, {**objective.by_key("tasks"), **objective.by_key("losses")})
    _check_own_rows(objective, asked, readings)
    objective.sometimes_unreached = objective.takes_turns or any(_without_gradient(trained, [loss]) for loss in losses)
    objective.forget()
    with torch.no_grad():
        for name, buffer in objective.named_buffers():
            buffer.copy_(buffers[name])
    return frozen


def _check_own_rows(objective: Objective, asked: Asked, readings: Sequence[Reading]) -> None:
    for view, reading in zip(asked.views, readings, strict=True):
        for key, question in view.questions.items():
            answer = own_grid(view, objective.built_heads[key], key, reading.answers[key]).detach()
            with exact(view.crops), calling(question.task, key, "loss"):
                check_own_rows(question.task.loss, question.task, key, answer, question.batch)


def small_batch(objective: Objective, batch: int) -> str | None:
    """What to say where a term normalises vectors over so small a batch that it hardly learns; None where all is well.

    Two rows through a batch norm are +1 and -1 whatever they were.
    """
    norms = (nn.BatchNorm1d, nn.SyncBatchNorm)
    terms = {**objective.by_key("tasks"), **objective.by_key("losses")}
    found = [key for key, term in terms.items() if any(isinstance(module, norms) for module in term.modules())]
    if not found or batch >= ENOUGH_TO_NORMALISE:
        return None
    return (
        f"{' and '.join(repr(key) for key in found)} normalises over the batch and hardly learns from {batch} crops: "
        f"set data.batch to {ENOUGH_TO_NORMALISE} or more."
    )


def pictures(objective: Objective, crops: Crops, step: int) -> dict[str, Tensor]:
    """What each task wants looked at: `task/what` -> (B, C, *size)."""
    found: dict[str, Tensor] = {}
    with looking(objective):
        asked = _asked(objective, crops, step)
        objective.teach(asked)
        view, reading = asked.views[0], objective.read(asked.views[0], asked.needs)
        for key, task in objective.by_key("tasks").items():
            answer = own_grid(view, objective.built_heads[key], key, reading.answers[key])
            with calling(task, key, "picture", view.crops):
                shown = task.picture(answer, view.questions[key].batch)
            for what, image in check_by_name(shown, task, key, "picture").items():
                check_picture(image, task, key, what, view.crops.spatial_dims)
                found[f"{key}/{what}"] = image.detach()
    return found


def trivial(objective: Objective, crops: Crops, step: int) -> dict[str, float]:
    """By task: its loss, and as `TASK/measure` its measures, for the answer that needs no learning; tasks without one are left out."""
    found: dict[str, float] = {}
    with looking(objective):
        asked = _asked(objective, crops, step)
        objective.teach(asked)
        for key, task in objective.by_key("tasks").items():
            batch, counted = asked.views[0].questions[key].batch, asked.answerable(key)[0]
            with calling(task, key, "trivial", crops):
                answer = task.trivial(batch)
            if answer is None or not bool(counted.any()):
                continue
            values = {key: task_loss(task, key, answer, batch, crops)}
            values |= {f"{key}/{what}": value for what, value in task_measures(task, key, answer, batch, crops).items()}
            found |= {what: float(part_of_mean(value, counted, counted.sum())) for what, value in values.items()}
    return found


def beside_trivial(objective: Objective, crops: Crops, step: int) -> dict[str, tuple[float, float | None]]:
    """By term: its loss and its measures on `crops`, and `loss`, each with that of the answer that needs no learning where there is one."""
    easy = trivial(objective, crops, step)
    with looking(objective):
        found = objective(objective.ask_for(objective.weights, crops, step, 1.0))
    objective.forget()
    return {name: (float(value), easy.get(name)) for name, value in found.items()}


def citations(objective: Objective) -> dict[str, str]:
    """By term: the paper to cite, for those that name one."""
    terms = {**objective.by_key("tasks"), **objective.by_key("losses")}
    return {key: term.citation for key, term in terms.items() if term.citation}


def _asked(objective: Objective, crops: Crops, step: int) -> Asked:
    """Every task's question about the crops as they are."""
    views = [objective.ask_about(clean_view(crops), list(objective.tasks), step)]
    return Asked(crops, step, 0.0, views, frozenset(objective.tasks), frozenset())


def _first(crops: Crops, count: int) -> Crops:
    few: dict[str, Any] = {name: value[:count] for name, value in vars(crops).items() if isinstance(value, Tensor)}
    return replace(crops, **few)


def _without_gradient(parameters: dict[str, nn.Parameter], values: Sequence[Tensor]) -> list[str]:
    """Names of the parameters that have no gradient from any of `values`."""
    found = [value.sum() for value in values if value.requires_grad]
    if not found:
        return list(parameters)
    gradients = torch.autograd.grad(torch.stack(found).sum(), list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]


@contextmanager
def looking(objective: Objective) -> Iterator[None]:
    """Without gradients and with the network as at test time, then back to the mode each module had."""
    modes = {module: module.training for module in objective.modules()}
    objective.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
