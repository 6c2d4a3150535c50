"""Views of crops, and bringing what the network made of them together for consistency losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from medssl.augment import ViewOptions, identity, invert, resample, shown_by, view_of
from medssl.contracts import Crops, Draw, PretextTask, Views
from medssl.learn.heads import BuiltHead
from medssl.learn.questions import View, restored
from medssl.learn.reading import Reading


def clean_view(crops: Crops, compared: bool = False) -> View:
    """The crops as they are, as a view of themselves."""
    return View(crops, identity(len(crops), crops.spatial_dims, crops.images.device), compared, moved=False)


def make_views(crops: Crops, options: ViewOptions, seed: int, step: int, compared: bool) -> Iterator[View]:
    """The views, nothing asked about them yet; without losses that compare them the crops alone."""
    if not compared:
        yield clean_view(crops)
        return
    for number in range(options.count):
        if number == 0 and options.clean:
            yield clean_view(crops, compared=True)
            continue
        draw = Draw(seed, step, crops.index, "views", crops.images.device).fork(f"view {number}")
        view, affine = view_of(crops, options, draw)
        yield View(view, affine, compared=True, moved=True)


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
        affines=torch.stack([view.affine for view, _ in pairs]),
        task_embeddings={
            key: tuple(reading.task_embeddings[key] for reading in readings if key in reading.task_embeddings)
            for key in tasks
            if key in shown_tasks
        },
        shown=shown_by_all([view for view, _ in pairs], crops) if answers or "feature_maps" in needs else None,
        progress=progress,
    )


def _comparable(key: str, view: View, reading: Reading, head: BuiltHead) -> Tensor:
    """A task's answer on the grid of the crops: first what was moved to show it is moved back, then what the view moved."""
    answer = restored(view, head, key, reading.answers[key])
    return on_crops(answer, view.affine) if head.dense and view.moved else answer


def on_crops(answer: Tensor, affine: Tensor) -> Tensor:
    """(B, K, *size) on the grid of the crops, from a dense answer on the grid of the view; differentiable."""
    return resample(answer, invert(affine))


def shown_by_all(views: Sequence[View], crops: Crops) -> Tensor:
    """(B, 1, *size) bool: the voxels of the crops that every view shows."""
    shown = torch.ones((len(crops), 1, *crops.size), dtype=torch.bool, device=crops.images.device)
    for view in views:
        if view.moved:
            shown = shown & shown_by(view.affine, crops.size)
    return shown
