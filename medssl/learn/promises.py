"""What plugins promise, checked where they are called: the one place for training, MONAI pipelines and the contract suites.

Each check raises a `PluginError` that names the plugin, so that what a plugin gives wrongly is neither broadcast into something
plausible nor found deep inside medssl or torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from medssl.config import BaseOptions
from medssl.contracts import (
    Compares,
    ConsistencyLoss,
    Crops,
    DenseHead,
    Head,
    ModuleHead,
    Needs,
    NetworkHead,
    NetworkInfo,
    PooledHead,
    PretextBatch,
    PretextTask,
    TaskNeeds,
)
from medssl.errors import DataError, PluginError
from medssl.plugins import blame, provider_of

NAME = r"^[A-Za-z0-9][A-Za-z0-9 _-]*$"
"""What a term may be called: a word of metrics, file names and checkpoints, so no dots and no slashes."""
RESERVED = frozenset({"name", "weight", "as", "as_"})
"""Keys of every term, which no option of its own may be called."""


@dataclass(frozen=True)
class Who:
    """How a message names a term of a run and the package that it comes from, which is looked up where a message is made and no sooner."""

    term: nn.Module
    key: str

    def __str__(self) -> str:
        kind = "task" if isinstance(self.term, PretextTask) else "consistency loss"
        return f"{kind} '{self.key}' ({provider_of(type(self.term))})"


@contextmanager
def calling(term: nn.Module, key: str, what: str, crops: Crops | None = None) -> Iterator[None]:
    """Around a call of a term's method `what`: blames its package for what it raises, and for `crops` that it changes in place."""
    before = _versions(crops)
    with blame(type(term), f"{what} of {'task' if isinstance(term, PretextTask) else 'consistency loss'} '{key}'"):
        yield
    changed = [name for name, version in _versions(crops).items() if version != before[name]]
    if changed:
        raise PluginError(
            f"{Who(term, key)}: {what} changes crops.{changed[0]} in place, and other terms are shown the same crops. "
            "Work on a copy: operations without a trailing underscore, or .clone()."
        )


def _versions(crops: Crops | None) -> dict[str, int]:
    """How often each tensor was written to; a tensor of inference mode does not count."""
    tensors = {} if crops is None else vars(crops)
    return {name: value._version for name, value in tensors.items() if isinstance(value, Tensor) and not value.is_inference()}


def check_class(cls: Any, base: type[nn.Module]) -> None:
    """The class attributes of a pretext task or consistency loss, whichever `base` is."""
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise PluginError(f"{cls!r} is no subclass of medssl.contracts.{base.__name__}, and is offered as one.")
    attributes: Any = cls
    is_task, provider = base is PretextTask, provider_of(attributes)
    options, name = getattr(cls, "Options", None), getattr(cls, "name", None)
    if not isinstance(name, str) or len(name) > 64 or not re.match(NAME, name):
        raise PluginError(
            f"{provider}: {cls.__name__} is named {name!r}; a name is up to 64 letters, digits, spaces, hyphens and underscores, without "
            "dots, and begins with a letter or digit."
        )
    if not (isinstance(options, type) and issubclass(options, BaseOptions)):
        raise PluginError(
            f"{provider}: the Options of '{name}' must be a class that derives from medssl.config.BaseOptions, not {options!r}."
        )
    taken = sorted(RESERVED & set(options.model_fields))
    if taken:
        raise PluginError(f"'{name}' of {provider} has an option {taken}: `name`, `weight` and `as` belong to every term.")
    offered = frozenset(get_args(TaskNeeds if is_task else Needs))
    needs = getattr(cls, "needs", None)
    wrong = {
        f"needs = {needs!r}, not a frozenset of some of {sorted(offered)}": not (isinstance(needs, set | frozenset) and needs <= offered),
        f"compares = {attributes.compares!r}, not one of {sorted(get_args(Compares))}": attributes.compares not in get_args(Compares),
        f"teacher_follows = {attributes.teacher_follows!r}, not a tuple of names": not _are_names(attributes.teacher_follows),
        f"citation = {attributes.citation!r}, not a text": not isinstance(attributes.citation, str),
    }
    if is_task:
        answer, same = getattr(cls, "answer", None), attributes.same_for_views
        wrong[f"answer = {answer!r}, not 'values' or 'logits'"] = answer not in ("values", "logits")
        wrong[f"same_for_views = {same!r}, neither True nor False"] = not isinstance(same, bool)
    found = [what for what, is_wrong in wrong.items() if is_wrong]
    if found:
        raise PluginError(f"'{name}' of {provider} has the class attribute {'; and '.join(found)}.")


def _are_names(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(name, str) for name in value)


def check_built(term: nn.Module, key: str) -> None:
    """That its `__init__` went through the base class's."""
    if not isinstance(vars(term).get("network"), NetworkInfo) or "options" not in vars(term):
        raise PluginError(f"{Who(term, key)}: its __init__ must call super().__init__(options, network) and leave both as they are.")


def check_head(head: Head, task: nn.Module, key: str) -> None:
    """That `head()` gave a head that can be built: sizes of at least 1, a module, names of features."""
    problem = None
    if isinstance(head, DenseHead):
        problem = _no_count("channels", head.channels)
    elif isinstance(head, PooledHead):
        problem = _no_count("outputs", head.outputs) or _no_count("parts", head.parts)
        if head.join not in ("concat", "each"):
            problem = f"join={head.join!r}; 'concat' or 'each' is needed"
    elif isinstance(head, ModuleHead):
        problem = _no_count("parts", head.parts)
        module: Any = head.module
        if not isinstance(module, nn.Module):
            problem = f"module={type(module).__name__}; a torch.nn.Module is needed"
        elif not _are_names(head.features) or not head.features:
            problem = f"reads={head.reads!r}; the name of a feature, or a tuple of one or more, is needed"
    elif not isinstance(head, NetworkHead):
        raise PluginError(f"{Who(task, key)}: head() gave {type(head).__name__}, not a DenseHead, PooledHead, ModuleHead or NetworkHead.")
    if problem is not None:
        raise PluginError(f"{Who(task, key)}: head() gave a {type(head).__name__} with {problem}.")


def _no_count(what: str, value: Any) -> str | None:
    fine = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return None if fine else f"{what}={value!r}; a whole number of 1 or more is needed"


def check_batch(batch: Any, task: PretextTask, key: str, crops: Crops, head: Head) -> None:
    """That what `make` gave is a question about these crops: rows, shapes, types and places that cannot be taken for others."""
    name, rows = Who(task, key), len(crops)
    if not isinstance(batch, PretextBatch):
        raise PluginError(f"{name}: make() gave {type(batch).__name__}, not a PretextBatch.")
    parts = head.parts if isinstance(head, PooledHead | ModuleHead) else 1
    given: dict[str, Any] = {what: getattr(batch, what) for what in ("inputs", "target", "weight", "answerable", "visible")}
    given |= {f"extra['{what}']": value for what, value in batch.extra.items()}
    for what, value in given.items():
        if value is None and what != "target":
            continue
        _check_tensor(name, what, value, crops.images.device)
        wanted = rows * parts if what in ("inputs", "visible") else rows
        if value.dim() == 0 or len(value) != wanted:
            of = f"{parts} parts for each of {rows} crops" if parts > 1 and wanted != rows else f"one for each of {rows} crops"
            raise PluginError(f"{name}: make() gave {what} of shape {tuple(value.shape)}; its head needs {of}.")
    if batch.inputs is not None:
        _check_inputs(name, batch.inputs, crops)
    if batch.answerable is not None and (batch.answerable.dtype, batch.answerable.dim()) != (torch.bool, 1):
        told = f"{batch.answerable.dtype} of shape {tuple(batch.answerable.shape)}"
        raise PluginError(f"{name}: `answerable` is {told}; one bool a sample, ({rows},), is needed.")
    if is_dense(head) and not {"teacher", "teacher_answer"} & set(task.needs):
        _check_grid(name, batch.target, tuple(crops.size if batch.inputs is None else batch.inputs.shape[2:]))
    if batch.weight is not None:
        _check_weight(name, batch.weight, batch.target)


def is_dense(head: Head) -> bool:
    """Whether it answers for every voxel."""
    return head.dense if isinstance(head, ModuleHead) else isinstance(head, DenseHead | NetworkHead)


def _check_tensor(name: Who, what: str, value: Any, device: torch.device) -> None:
    if not isinstance(value, Tensor):
        raise PluginError(f"{name}: {what} is {type(value).__name__}; a tensor is needed.")
    if value.device != device:
        raise PluginError(
            f"{name}: {what} is on {value.device} and the crops are on {device}. Make tensors with device=crops.images.device."
        )


def _check_inputs(name: Who, inputs: Tensor, crops: Crops) -> None:
    if inputs.dim() != crops.images.dim():
        raise PluginError(
            f"{name}: inputs have shape {tuple(inputs.shape)}; {crops.spatial_dims} sides behind rows and channels are needed."
        )
    if inputs.dtype != crops.images.dtype:
        raise PluginError(f"{name}: inputs are {inputs.dtype} and the crops {crops.images.dtype}. Keep the type of crops.images.")


def _check_grid(name: Who, target: Tensor, grid: tuple[int, ...]) -> None:
    problem = grid_problem(target, grid)
    if problem is not None:
        raise PluginError(f"{name}: {problem}")


def grid_problem(target: Tensor, grid: tuple[int, ...]) -> str | None:
    """Why a target does not lie on the grid of a dense answer: (B, channels, *grid), or class numbers (B, *grid)."""
    channels = target.dim() == len(grid) + 2
    classes = target.dim() == len(grid) + 1 and not target.is_floating_point()
    if tuple(target.shape[-len(grid) :]) != grid if channels or classes else target.dim() > 2:
        return (
            f"the target of a dense answer has shape {tuple(target.shape)} and the answer's grid is {grid}. Give it "
            "(B, channels, *grid), or class numbers as (B, *grid) of whole numbers."
        )
    return None


def _check_weight(name: Who, weight: Tensor, target: Tensor) -> None:
    problem = weight_problem(weight, target)
    if problem is not None:
        raise PluginError(f"{name}: {problem}. Give it the target's shape, or one channel.")


def weight_problem(weight: Tensor, target: Tensor) -> str | None:
    """Why a weight does not fit; one axis alone may be 1 for all: that of channels, which is the second one, or the last of tokens."""
    one_for_all = [mine for mine, theirs in zip(weight.shape, target.shape, strict=False) if mine != theirs]
    if weight.dim() == target.dim() and one_for_all in ([], [1]):
        return None
    return f"`weight` has shape {tuple(weight.shape)} and the target {tuple(target.shape)}"


def cleaned(task: PretextTask, key: str, crops: Crops) -> Tensor:
    """What `clean` gives: an input of the network for each crop."""
    with calling(task, key, "clean", crops):
        clean = task.clean(crops)
    name = Who(task, key)
    _check_tensor(name, "what clean() gave", clean, crops.images.device)
    if clean.dim() != crops.images.dim() or len(clean) != len(crops) or tuple(clean.shape[2:]) != crops.size:
        raise PluginError(
            f"{name}: clean() gave shape {tuple(clean.shape)}; (B, channels, *size) is needed for crops {tuple(crops.images.shape)}."
        )
    if clean.dtype != crops.images.dtype:
        raise PluginError(f"{name}: clean() gave {clean.dtype} and the crops are {crops.images.dtype}. Keep the type of crops.images.")
    return clean


def check_restored(restored: Any, answer: Tensor, task: PretextTask, key: str, crops: Crops) -> None:
    """That `restore` gave the answer on the grid of the crops."""
    _check_tensor(Who(task, key), "what restore() gave", restored, answer.device)
    if restored.shape[:2] != answer.shape[:2] or tuple(restored.shape[2:]) != crops.size:
        raise PluginError(
            f"{Who(task, key)}: restore() gave shape {tuple(restored.shape)} for an answer of {tuple(answer.shape)}; "
            f"the grid of the crops, {crops.size}, is needed."
        )


def check_answer(answer: Any, task: PretextTask, key: str) -> None:
    """That a task's own module gave a tensor."""
    if not isinstance(answer, Tensor) or answer.dim() == 0:
        shown = "a single number" if isinstance(answer, Tensor) else type(answer).__name__
        raise PluginError(f"{Who(task, key)}: the module of its head gave {shown}; a tensor with a row a sample is needed.")


def check_loss(value: Any, term: nn.Module, key: str, what: str, rows: Tensor) -> None:
    """That a loss or measure is one real number a sample, beside `rows` (B, ...) such as the crops' images."""
    batch = len(rows)
    if not isinstance(value, Tensor) or tuple(value.shape) != (batch,):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise PluginError(f"{Who(term, key)}: {what} gave {shape}; one value a sample, ({batch},), is needed.")
    if not value.is_floating_point():
        raise PluginError(f"{Who(term, key)}: {what} gave {value.dtype}, which has no gradient; floating point numbers are needed.")
    _check_tensor(Who(term, key), f"what {what} gave", value, rows.device)


def task_loss(task: PretextTask, key: str, prediction: Tensor, batch: PretextBatch, crops: Crops | None = None) -> Tensor:
    """(B,) the task's loss, which must leave the `crops` as they are."""
    with calling(task, key, "loss", crops):
        value = task.loss(prediction, batch)
    check_loss(value, task, key, "loss()", batch.target)
    return value


@torch.no_grad()
def task_measures(task: PretextTask, key: str, prediction: Tensor, batch: PretextBatch, crops: Crops) -> dict[str, Tensor]:
    """By name (B,) the task's own measures."""
    with calling(task, key, "measure", crops):
        found = task.measure(prediction, batch)
    for what, value in check_by_name(found, task, key, "measure").items():
        check_loss(value, task, key, f"measure()['{what}']", crops.images)
    return found


def check_prediction(prediction: Tensor, task: PretextTask, key: str, target: Tensor) -> None:
    """`DataError` where a network's answer is not what the task's head says: its loss would broadcast it against the target."""
    head, rows, shape = task.head(), len(target), tuple(prediction.shape)
    if isinstance(head, DenseHead):
        dims = task.network.spatial_dims
        grid = tuple(target.shape[-dims:]) if target.dim() > dims else shape[2:]
        wanted: tuple[int, ...] = (rows, head.channels, *grid)
    elif isinstance(head, PooledHead):
        wanted = (rows, head.outputs) if head.join == "concat" or head.parts == 1 else (rows, head.parts, head.outputs)
    else:
        return
    if shape != wanted:
        raise DataError(f"the network answers '{key}' with shape {shape}; for a target of shape {tuple(target.shape)} it is {wanted}.")
    problem = grid_problem(target, shape[2:]) if isinstance(head, DenseHead) else None
    if problem is not None:
        raise DataError(f"'{key}': {problem}")


def check_by_name(value: Any, term: nn.Module, key: str, what: str) -> Mapping[str, Any]:
    """A mapping from names, as `measure` and `picture` give it."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise PluginError(f"{Who(term, key)}: {what}() gave {type(value).__name__}, not a dictionary from names to tensors.")
    return value


def check_picture(image: Any, task: PretextTask, key: str, what: str, dims: int) -> None:
    """That a picture is (B, C, *size)."""
    if not isinstance(image, Tensor) or image.dim() != dims + 2 or min(image.shape) == 0:
        shown = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise PluginError(f"{Who(task, key)}: the picture '{what}' is {shown}; a tensor (B, C, *size) with {dims} sides is needed.")


def check_connected(reached: Collection[str], terms: Mapping[str, nn.Module]) -> None:
    """That the loss of each term has a gradient; one that keeps something from step to step may have none before it is filled."""
    for key, term in terms.items():
        base = PretextTask if isinstance(term, PretextTask) else ConsistencyLoss
        if key not in reached and not overrides(term, base, "commit"):
            raise PluginError(
                f"{Who(term, key)}: its loss is cut from the graph, so no gradient reaches the network and it teaches nothing. "
                "Take it from the prediction or the views, without detach(), comparisons, argmax() or rounding."
            )


def overrides(term: nn.Module, base: type[nn.Module], method: str) -> bool:
    """Whether a task or loss has its own `method`."""
    return getattr(type(term), method) is not getattr(base, method)


def check_own_rows(
    loss: Callable[[Tensor, PretextBatch], Tensor], task: PretextTask, key: str, prediction: Tensor, batch: PretextBatch
) -> None:
    """That a sample's loss does not change with what other samples are asked: where it does, shapes were broadcast against each other.

    Nothing is checked for tasks that compare samples, and where fewer than two can be told apart.
    """
    rows = range(len(batch.target)) if batch.answerable is None else batch.answerable.nonzero().flatten().tolist()
    if task.compares != "nothing" or len(batch.target) < 2 or not rows:
        return
    row = rows[0]
    with torch.no_grad():
        value, other = (loss(prediction, one)[row] for one in (batch, _asked_alike(batch, row)))
    finite = bool(torch.isfinite(value)) and bool(torch.isfinite(other))
    if finite and not torch.allclose(value, other, rtol=1e-4, atol=1e-5):
        shapes = {"prediction": prediction, "target": batch.target, "weight": batch.weight, **batch.extra}
        shown = ", ".join(f"{what} {tuple(tensor.shape)}" for what, tensor in shapes.items() if tensor is not None)
        raise PluginError(
            f"{Who(task, key)}: the loss of a sample changes with the target of others: shapes are broadcast against each other ({shown}). "
            "Give the target the axes of the prediction, or say by `compares` that samples are compared."
        )


def _asked_alike(batch: PretextBatch, row: int) -> PretextBatch:
    """The batch in which every sample is asked what sample `row` is asked."""

    def alike(rows: Tensor) -> Tensor:
        return rows[row : row + 1].expand_as(rows).contiguous()

    weight = None if batch.weight is None else alike(batch.weight)
    return replace(batch, target=alike(batch.target), weight=weight, extra={name: alike(rows) for name, rows in batch.extra.items()})
