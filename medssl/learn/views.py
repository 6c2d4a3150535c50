"""Views of crops, and bringing what the network made of them together for consistency losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from medssl.augment import ViewOptions, identity, invert, is_identity, make_view, resample, shown_by, viewed
from medssl.contracts import Crops, Draw, PretextTask, Views
from medssl.learn.heads import BuiltHead
from medssl.learn.questions import View, restored
from medssl.learn.reading import Reading


def make_views(crops: Crops, options: ViewOptions, seed: int, step: int, compared: bool) -> Iterator[tuple[Crops, Tensor, bool]]:
    """The views as crops, their affines (B, D, D + 1), and whether losses compare them; without losses the crops alone."""
    same = identity(len(crops), crops.spatial_dims, crops.images.device)
    if not compared:
        yield crops, same, False
        return
    for number in range(options.count):
        if number == 0 and options.clean:
            yield crops, same, True
            continue
        draw = Draw(seed, step, crops.index, "views", crops.images.device).fork(f"view {number}")
        images, affine = make_view(crops.images, options, draw, crops.spacing)
        yield viewed(crops, images, affine), affine, True


def gather_views(
    crops: Crops,
    views: Sequence[View],
    readings: Sequence[Reading],
    tasks: Mapping[str, PretextTask],
    heads: Mapping[str, BuiltHead],
    needs: frozenset[str],
    progress: float,
) -> Views:
    """What was computed of the compared views, as consistency losses take it."""
    pairs = [(view, reading) for view, reading in zip(views, readings, strict=True) if view.compared]
    affines = [view.affine for view, _ in pairs]
    answers = {}
    if "answers" in needs:
        for key, task in tasks.items():
            if task.same_for_views and all(key in reading.answers for _, reading in pairs):
                answers[key] = tuple(_comparable(key, view, reading, heads[key]) for view, reading in pairs)
    shown_tasks = {key for reading in readings for key in reading.task_embeddings}
    return Views(
        crops=crops,
        answers=answers,
        kinds={key: task.answer for key, task in tasks.items() if key in answers},
        embeddings=tuple(reading.embedding for _, reading in pairs if reading.embedding is not None),
        feature_maps=tuple(reading.feature_map for _, reading in pairs if reading.feature_map is not None),
        affines=torch.stack(affines),
        task_embeddings={
            key: tuple(reading.task_embeddings[key] for reading in readings if key in reading.task_embeddings)
            for key in tasks
            if key in shown_tasks
        },
        shown=shown_by_all(affines, crops.size) if answers or "feature_maps" in needs else None,
        progress=progress,
    )


def _comparable(key: str, view: View, reading: Reading, head: BuiltHead) -> Tensor:
    """A task's answer on the grid of the crops: first what was moved to show it is moved back, then what the view moved."""
    answer = restored(view, head, key, reading.answers[key])
    return on_crops(answer, view.affine) if head.dense and not is_identity(view.affine) else answer


def on_crops(answer: Tensor, affine: Tensor) -> Tensor:
    """(B, K, *size) on the grid of the crops, from a dense answer on the grid of the view; differentiable."""
    return resample(answer, invert(affine))


def shown_by_all(affines: Sequence[Tensor], size: Sequence[int]) -> Tensor | None:
    """(B, 1, *size) bool: the voxels of the crops that every view shows; None where all do."""
    moved = [affine for affine in affines if not is_identity(affine)]
    if not moved:
        return None
    return torch.stack([shown_by(affine, size) for affine in moved]).all(dim=0)
