"""Whose fault it is that a task's loss cannot take a label: found by asking the task a question of its own.

A task says in no attribute what its targets look like: class numbers, values, angles. But it makes them, so that the form of a label
can be compared with that of its own, and a loss that takes its own label and not the caller's was handed a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from medssl.contracts import Crops, DenseHead, Draw, PretextBatch, PretextTask
from medssl.errors import DataError, MedsslError, PluginError
from medssl.learn.promises import calling, check_batch, task_loss
from medssl.monai.crops import Unsaid, crops_of

ROWS = 2
SIDES = (4, 8, 12, 16, 24, 32)
"""Sides of the images that a pooled task is tried on, in strides of its network."""
DENSE_SIDES = (32, 64)
"""Likewise of a dense one, in voxels, where it asks nothing about an image as small as its answer."""
HAND_OVER = "Hand over what PretextTaskd put beside the image."


def loss_of(task: PretextTask, prediction: Tensor, batch: PretextBatch) -> Tensor:
    """(B,) the task's loss; `DataError` where it fails on this label and takes one that the task made itself."""
    try:
        return task_loss(task, task.name, prediction, batch)
    except PluginError as error:
        own = own_label(task, prediction)
        if own is None or not _takes(task, prediction, own):
            raise
        cause = error.__cause__ or error
        told = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}"
        raise DataError(f"the loss of '{task.name}' cannot take this label ({told}). {_compared(own, batch)}. {HAND_OVER}") from cause


def check_label(task: PretextTask, prediction: Tensor, batch: PretextBatch) -> None:
    """`DataError` for a label with other axes or channels than the task's own, which its loss would broadcast."""
    own = own_label(task, prediction)
    if own is None:
        return
    for name, mine, theirs in _pairs(own, batch):
        wrong = _other_form(mine, theirs, name, _is_dense(task))
        if wrong is not None:
            raise DataError(f"{name} of this label {wrong}, and '{task.name}' was asked for another. {_compared(own, batch)}. {HAND_OVER}")


def refuse_unsaid(task: PretextTask) -> None:
    """`ConfigError` for a task that reads of crops what no item of a pipeline says, before the first item does it."""
    for crops in _noise(task):
        try:
            _asked(task, crops)
        except Unsaid:
            raise
        except MedsslError:
            continue
        return


def own_label(task: PretextTask, prediction: Tensor) -> PretextBatch | None:
    """What the task asks of noise that the network could have answered with such a prediction; None where it asks noise nothing."""
    for crops in _noise(task, prediction):
        try:
            batch = _asked(task, crops)
            check_batch(batch, task, task.name, crops, task.head())
        except MedsslError:
            continue
        return batch
    return None


def _is_dense(task: PretextTask) -> bool:
    return isinstance(task.head(), DenseHead)


def _noise(task: PretextTask, prediction: Tensor | None = None) -> Iterator[Crops]:
    """Crops of the sizes that are tried; for a dense `prediction` (B, K, *size) of its own size first, and on its device."""
    network, random = task.network, torch.Generator().manual_seed(0)
    sides = DENSE_SIDES if _is_dense(task) else [side * max(network.strides) for side in SIDES]
    own = [tuple(prediction.shape[2:])] if prediction is not None and _is_dense(task) else []
    for size in (*own, *((side,) * network.spatial_dims for side in sides)):
        images = torch.randn((ROWS, network.channels, *size), generator=random)
        yield crops_of(images if prediction is None else images.to(prediction.device), body="body" in task.needs)


def _asked(task: PretextTask, crops: Crops) -> PretextBatch:
    with torch.no_grad(), calling(task, task.name, "make"):
        return task.make(crops, Draw(0, 0, crops.index, task.name, crops.images.device))


def _takes(task: PretextTask, prediction: Tensor, own: PretextBatch) -> bool:
    """Whether the task's loss takes its own label, beside noise in the prediction's form."""
    dims = task.network.spatial_dims
    rest = (prediction.shape[1], *own.target.shape[-dims:]) if _is_dense(task) else prediction.shape[1:]
    noise = torch.randn((ROWS, *rest), generator=torch.Generator().manual_seed(1))
    try:
        with torch.no_grad():
            task_loss(task, task.name, noise.to(prediction.device, prediction.dtype), own)
    except MedsslError:
        return False
    return True


def _pairs(own: PretextBatch, given: PretextBatch) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What both labels hold, by name, the target first."""
    theirs = _named(given)
    for name, mine in _named(own).items():
        if name in theirs:
            yield name, mine, theirs[name]


def _named(batch: PretextBatch) -> dict[str, Tensor]:
    held: Mapping[str, Any] = {"target": batch.target, **{f"target_{name}": rows for name, rows in batch.extra.items()}}
    return {name: rows for name, rows in held.items() if isinstance(rows, Tensor)}


def _other_form(mine: Tensor, theirs: Tensor, name: str, dense: bool) -> str | None:
    """How `theirs` is of another form; None where it is not. The grid of a dense label may be any."""
    if mine.dim() != theirs.dim():
        return f"has {theirs.dim()} axes"
    if dense and name == "target" and mine.dim() > 2 and mine.shape[1] != theirs.shape[1] and mine.is_floating_point():
        return f"has {theirs.shape[1]} channels"
    return None


def _compared(own: PretextBatch, given: PretextBatch) -> str:
    """Both labels, in a few words each."""
    return "; ".join(f"{name} is {_told(theirs)}, the task's own {_told(mine)}" for name, mine, theirs in _pairs(own, given))


def _told(tensor: Tensor) -> str:
    rest = ", ".join(map(str, tensor.shape[1:]))
    between = f" from {tensor.min().item()} to {tensor.max().item()}" if tensor.numel() and not tensor.is_floating_point() else ""
    return f"{str(tensor.dtype).removeprefix('torch.')} (B{', ' if rest else ','}{rest}){between}"
