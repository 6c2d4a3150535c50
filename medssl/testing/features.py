"""What a network would give a task, drawn at random: features, a teacher's lesson, a prediction."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from medssl.contracts import Crops, DenseHead, ModuleHead, NetworkHead, NetworkInfo, PooledHead, PretextBatch, PretextTask, Taught


def random_features(
    info: NetworkInfo, names: Iterable[str], rows: int, size: tuple[int, ...], visible: Tensor | None = None, seed: int = 7
) -> dict[str, Tensor]:
    """The named features of `rows` inputs of `size`; a row is the same whatever the number of rows."""
    shapes = {name: _shape(info, name, size, visible) for name in names}
    return {
        name: torch.stack([torch.randn(shape, generator=_generator(seed, place, row)) for row in range(rows)])
        for place, (name, shape) in enumerate(shapes.items())
    }


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(number * 1009**place for place, number in enumerate(numbers)))


def _shape(info: NetworkInfo, name: str, size: tuple[int, ...], visible: Tensor | None) -> tuple[int, ...]:
    if name in ("tokens", "class_token"):
        count = info.tokens if visible is None else visible.shape[1]
        return (count, info.embedding_width) if name == "tokens" else (info.embedding_width,)
    if name == "output":
        return (2, *size)
    if name.startswith("level "):
        level = info.levels[int(name.removeprefix("level "))]
        return (level.width, *_grid(size, level.strides))
    width, strides = (info.feature_width, info.feature_strides) if name == "feature_map" else (info.embedding_width, info.strides)
    return (width, *_grid(size, strides))


def _grid(size: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side // stride for side, stride in zip(size, strides, strict=True))


def with_lesson(task: PretextTask, batch: PretextBatch, crops: Crops) -> PretextBatch:
    """The batch of a task that needs a teacher, with what a teacher might have given; other batches as they are."""
    if not {"teacher", "teacher_answer"} & task.needs:
        return batch
    features = random_features(task.network, task.teacher_reads(), len(crops), crops.size, seed=11)
    answer = prediction_for(task, batch, crops, seed=13).detach() if "teacher_answer" in task.needs else None
    own = dict(task.named_children())
    modules = {name: deepcopy(own[name]).requires_grad_(False) for name in task.teacher_follows}
    return replace(batch, teacher=Taught(features, answer, modules))


def prediction_for(task: PretextTask, batch: PretextBatch, crops: Crops, seed: int = 7) -> Tensor:
    """A random prediction of the shape that the task's head gives, with a gradient."""
    head, rows = task.head(), len(crops)
    size = crops.size if batch.inputs is None else tuple(batch.inputs.shape[2:])
    shown = rows if batch.inputs is None else batch.inputs.shape[0]
    if isinstance(head, ModuleHead):
        features = random_features(task.network, head.features, shown, size, batch.visible, seed)
        read = [features[name] for name in head.features]
        with torch.no_grad():
            answer: Tensor = head.module(*read, batch) if head.sees_batch else head.module(*read)
        return answer.detach().clone().requires_grad_()
    shape: tuple[int, ...]
    if isinstance(head, PooledHead):
        shape = (rows, head.outputs) if head.join == "concat" or head.parts == 1 else (rows, head.parts, head.outputs)
    elif isinstance(head, DenseHead):
        shape = (shown, head.channels, *size)
    else:
        assert isinstance(head, NetworkHead)
        shape = (shown, 2, *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
