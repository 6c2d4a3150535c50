"""A pretext task's loss for MONAI's engines and for plain training loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal

import torch
from monai.losses import DeepSupervisionLoss as MonaiDeepSupervisionLoss
from torch import Tensor, nn
from torch.nn import functional

from medssl.config import check
from medssl.contracts import DenseHead, PretextBatch, PretextTask
from medssl.errors import ConfigError, DataError
from medssl.learn.objective import part_of_mean
from medssl.learn.promises import check_own_rows, check_prediction, weight_problem
from medssl.monai import given
from medssl.monai.labels import HAND_OVER, check_label, loss_of
from medssl.monai.tasks import build_task, head_of, known_network, task_class, unknown_network

Modes = Literal["same", "exp", "two"]
"""How deep supervision weighs its outputs."""


class PretextLoss(nn.Module):
    """A pretext task's loss: `loss(prediction, label)` is one number, the mean over the samples that can be answered.

    `label` is the batch that a loader makes of `PretextTaskd`'s items, as `prepare_pretext_batch` hands it to MONAI's engines; for tasks
    whose loss needs nothing but target and weight it may be that pair. `outputs` is the number of channels (dense tasks) or values
    (pooled tasks) that the network must give.

    Args:
        task: name of an installed pretext task, or its class.
        spatial_dims: of the images; read from what is predicted where it is not said.
        channels: of the images.
        target_key, weight_key: where `PretextTaskd` put target and weight.
        network: the network that answers, as anything that `medssl.pretrain` takes; in place of `spatial_dims` and `channels`.
        options: the task's own options.
    """

    def __init__(
        self,
        task: str | type[PretextTask],
        *,
        spatial_dims: int | None = None,
        channels: int = 1,
        target_key: str = "target",
        weight_key: str = "weight",
        network: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.target_key, self.weight_key = target_key, weight_key
        cls, known = task_class(task), known_network(network)
        given.count_given(channels, "channels")
        dims = (2, 3) if spatial_dims is None else (given.count_given(spatial_dims, "spatial_dims", 2, 3),)
        if known is not None and known.spatial_dims not in dims:
            raise ConfigError(
                f"spatial_dims is {spatial_dims}, and the network has {known.spatial_dims}. Leave spatial_dims out beside network=."
            )
        checked = check(cls.Options, options, f"options of '{cls.name}'")
        dims = dims if known is None else (known.spatial_dims,)
        self.tasks = nn.ModuleDict({str(each): build_task(cls, checked, known or unknown_network(each, channels)) for each in dims})
        self._tried = False

    @property
    def outputs(self) -> int:
        """Channels of a dense answer, values of a pooled one; `ConfigError` where that depends on the dimensions and nobody said them."""
        found = {dims: _outputs(task) for dims, task in self._by_dims().items()}
        if len(set(found.values())) > 1:
            listed = " and ".join(f"{outputs} in {dims}D" for dims, outputs in found.items())
            raise ConfigError(f"the network's outputs are {listed}. Give PretextLoss spatial_dims=2 or 3, or network=.")
        return next(iter(found.values()))

    def forward(self, prediction: Tensor, label: Any, weight: Tensor | None = None) -> Tensor:
        """() mean of the task's losses over the samples that can be answered; `label` as above, or the target with `weight` beside it."""
        if not isinstance(prediction, Tensor):
            raise DataError(f"the network gave {type(prediction).__name__}, not one tensor: DeepSupervisionLoss(loss) takes several.")
        answer = given.real_given(prediction, "the network's answer", "Give what the network answers to a batch of images.")
        batch = self._batch(label, weight)
        given.same_place({"the answer": answer, "`target`": batch.target, "`weight`": batch.weight, **batch.extra})
        # Engines move networks and batches to their device, and never a loss.
        task = self._task_for(answer, batch).to(answer.device)
        losses = self._losses(task, answer, batch)
        if batch.answerable is None:
            return losses.mean()
        return part_of_mean(losses, batch.answerable, batch.answerable.sum())

    def _losses(self, task: PretextTask, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) the task's loss of an answer that fits the target; the first label's form is compared with the task's own."""
        key = task.name
        check_prediction(prediction, task, key, batch.target)
        if not self._tried:
            check_label(task, prediction, batch)
            _rehearse(task, prediction, batch)
        losses = loss_of(task, prediction, batch)
        if not self._tried:
            check_own_rows(task.loss, task, key, prediction.detach(), batch)
            self._tried = True
        return losses

    def _batch(self, label: Any, weight: Tensor | None) -> PretextBatch:
        label = _as_item(label, self)
        item = label if isinstance(label, Mapping) else {self.target_key: label}
        if isinstance(label, Mapping) and self.target_key not in label:
            there = ", ".join(map(str, label)) or "nothing"
            raise DataError(f"the batch has no '{self.target_key}', but {there}. Give PretextLoss the target_key of PretextTaskd.")
        to_do = "Give PretextLoss the batch, with the target_key of PretextTaskd, or the pair (target, weight), both tensors."
        target = given.tensor_given(item[self.target_key], f"the label's '{self.target_key}'", to_do)
        weight = item.get(self.weight_key) if weight is None else weight
        if weight is None:
            raise DataError(
                f"the answer comes without '{self.weight_key}', which says where it counts. Give PretextLoss the whole batch (in MONAI's "
                "engines: prepare_batch=medssl.monai.prepare_pretext_batch), the pair (target, weight), or the weight_key of PretextTaskd."
            )
        further = self._further(item)
        _check_answerable(further["answerable"], target)
        return PretextBatch(None, target, _fitting(weight, target), **further)

    def _further(self, item: Mapping[Any, Any]) -> dict[str, Any]:
        """What `PretextTaskd` put beside the target."""
        beside = f"{self.target_key}_"
        extra = {
            str(key).removeprefix(beside): given.plain(value)
            for key, value in item.items()
            if str(key).startswith(beside) and key != self.weight_key and isinstance(value, Tensor)
        }
        return {"answerable": extra.pop("answerable", None), "extra": _Extra(extra)}

    def _task_for(self, prediction: Tensor, batch: PretextBatch) -> Any:
        """The task in the dimensions of what is predicted."""
        tasks = self._by_dims()
        if len(tasks) == 1:
            return next(iter(tasks.values()))
        if isinstance(tasks[3].head(), DenseHead):
            return tasks.get(prediction.dim() - 2, tasks[3])
        fitting = [task for task in tasks.values() if prediction.shape[-1] == _outputs(task)]
        if not fitting:
            expected = ", ".join(f"{_outputs(task)} in {dims}D" for dims, task in tasks.items())
            raise DataError(f"the network answers with {tuple(prediction.shape)}, and '{tasks[3].name}' takes {expected} values a sample.")
        return fitting[-1]

    def _by_dims(self) -> dict[int, Any]:
        return {int(dims): task for dims, task in self.tasks.items()}


def _as_item(label: Any, loss: PretextLoss) -> Any:
    """A pair (target, weight) as the item that it is short for; anything else as it is."""
    return (
        dict(zip((loss.target_key, loss.weight_key), label, strict=True)) if isinstance(label, list | tuple) and len(label) == 2 else label
    )


class _Extra(dict[str, Tensor]):
    """What a loss may ask for by name; what the caller did not hand over is named as such."""

    def __missing__(self, name: str) -> Tensor:
        raise DataError(f"the task's loss needs '{name}' beside target and weight. Give PretextLoss the whole batch.")


def prepare_pretext_batch(
    batch: Mapping[Any, Any], device: torch.device | str | None = None, non_blocking: bool = False, *, image_key: str = "image", **_: Any
) -> tuple[Tensor, dict[Any, Any]]:
    """`prepare_batch` of MONAI's engines: what the network is shown, and the batch, in which `PretextLoss` finds all that it needs."""
    if not isinstance(batch, Mapping):
        raise DataError(f"the batch is a {type(batch).__name__}, not a dictionary, as a loader makes of PretextTaskd's items.")
    if image_key not in batch:
        raise DataError(
            f"the batch has no '{image_key}': functools.partial(prepare_pretext_batch, image_key=...) says where the images are."
        )
    given.tensor_given(batch[image_key], f"the batch's '{image_key}'", "Load it with a loader that makes batches of tensors.")
    moved = {key: value.to(device, non_blocking=non_blocking) for key, value in batch.items() if isinstance(value, Tensor)}
    return moved.pop(image_key), moved


def _outputs(task: PretextTask) -> int:
    head = head_of(task)
    return head.channels if isinstance(head, DenseHead) else head.outputs


def _fitting(weight: Any, target: Tensor) -> Tensor:
    """`weight`, if it lies on the target's grid: of one channel, or as many as the target has."""
    fits = isinstance(weight, Tensor)
    problem = weight_problem(weight, target) if fits else f"`weight` is a {type(weight).__name__}"
    if problem is not None:
        raise DataError(f"{problem}. {HAND_OVER}")
    fitting: Tensor = given.plain(weight)
    return fitting


def _check_answerable(answerable: Tensor | None, target: Tensor) -> None:
    if answerable is None:
        return
    given.same_place({"`target`": target, "`target_answerable`": answerable})
    if tuple(answerable.shape) != (len(target),):
        raise DataError(f"`target_answerable` has shape {tuple(answerable.shape)}, and there are {len(target)} samples. {HAND_OVER}")


def _rehearse(task: PretextTask, prediction: Tensor, batch: PretextBatch) -> None:
    """The first loss of an accelerator once on the CPU: there a class number out of range is an error, here the end of the process."""
    if prediction.device.type == "cpu":
        return
    held: dict[str, Any] = {name: rows.cpu() for name, rows in vars(batch).items() if isinstance(rows, Tensor)}
    there = replace(batch, **held, extra=_Extra({name: rows.cpu() for name, rows in batch.extra.items()}))
    with torch.no_grad():
        loss_of(deepcopy(task).cpu(), prediction.detach().cpu().float(), there)


class DeepSupervisionLoss(nn.Module):
    """`PretextLoss` of every output of a network with deep supervision, weighted as MONAI's loss of that name weighs them.

    Target, weight and whatever else lies on the target's grid are brought to the grid of each output.

    Args:
        loss: of each output.
        weight_mode, weights: as of `monai.losses.DeepSupervisionLoss`.
    """

    def __init__(self, loss: PretextLoss, weight_mode: Modes = "exp", weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not isinstance(loss, PretextLoss):
            raise ConfigError(f"DeepSupervisionLoss is around a PretextLoss, not {type(loss).__name__}; monai.losses has one for others.")
        given.one_of(weight_mode, Modes, "weight_mode")
        self.loss = loss
        self._given = None if weights is None else len(weights)
        # Of MONAI's class the weights alone: its own module would register the loss a second time.
        self._weights = MonaiDeepSupervisionLoss(nn.Identity(), weight_mode, None if weights is None else list(weights)).get_weights

    def forward(self, predictions: Tensor | Sequence[Tensor], label: Mapping[Any, Any] | Sequence[Tensor]) -> Tensor:
        """() of one output, a list of them, or of several stacked behind the batch (DynUNet)."""
        item = self._item(label)
        target = item[self.loss.target_key]
        if isinstance(predictions, Tensor):
            predictions = predictions.unbind(1) if predictions.dim() == target.dim() + 1 else [predictions]
        if not isinstance(predictions, Sequence) or not predictions or not all(isinstance(one, Tensor) for one in predictions):
            held = ", ".join(type(one).__name__ for one in predictions) if isinstance(predictions, Sequence) else ""
            raise DataError(f"the network gave {type(predictions).__name__} of [{held}]. Give its outputs: a tensor, or a list of them.")
        if self._given is not None and self._given < len(predictions):
            raise ConfigError(f"{self._given} weights were given for {len(predictions)} outputs. Give as many, or leave weights out.")
        weights = self._weights(levels=len(predictions))
        grid = target.shape[2:]
        parts = [
            weight * self.loss(prediction, {key: _on_grid(value, grid, prediction.shape[2:]) for key, value in item.items()})
            for weight, prediction in zip(weights, predictions, strict=True)
        ]
        return torch.stack(parts).sum()

    def _item(self, label: Any) -> dict[Any, Any]:
        keys = self.loss.target_key, self.loss.weight_key
        label = _as_item(label, self.loss)
        if not isinstance(label, Mapping) or not isinstance(label.get(keys[0]), Tensor):
            what = f"a dictionary of {', '.join(map(str, label)) or 'nothing'}" if isinstance(label, Mapping) else type(label).__name__
            raise DataError(
                f"the label is {what}. Give the batch of PretextTaskd, with '{keys[0]}' and '{keys[1]}', or that pair of tensors."
            )
        return dict(label)


def _on_grid(value: Any, grid: torch.Size, wanted: torch.Size) -> Any:
    """A tensor on `grid` brought to the `wanted` one: the mean of what falls into a voxel, of classes and masks the nearest."""
    if not isinstance(value, Tensor) or value.shape[2:] != grid or grid == wanted:
        return value
    value = given.plain(value)
    if value.is_floating_point():
        return functional.interpolate(value, size=wanted, mode="area")
    return functional.interpolate(value.float(), size=wanted, mode="nearest-exact").to(value.dtype)
