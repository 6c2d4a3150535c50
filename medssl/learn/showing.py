"""What the network is shown: tasks that show the same input share one forward, target-only tasks ride on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from medssl.contracts import Crops, Draw, PooledHead, PretextBatch, PretextTask
from medssl.errors import NetworkError, PluginError
from medssl.learn.heads import Answerer
from medssl.plugins import blame, provider_of


@dataclass(frozen=True)
class Question:
    """One task's question about one view."""

    name: str
    task: PretextTask
    batch: PretextBatch


@dataclass
class Showing:
    """One forward of the network: its inputs and every question that reads it."""

    inputs: Tensor
    parts: int = 1
    asked: list[Question] = field(default_factory=list)
    host: PretextBatch | None = None
    """The batch of the task that brought the inputs; None where they are the view itself."""
    for_consistency: bool = False
    """Whether the consistency losses read embeddings and feature maps from here."""


def ask(name: str, task: PretextTask, crops: Crops, draw: Draw, answerer: Answerer) -> Question:
    """The question, checked: what a plugin gives back is not believed."""
    with blame(type(task), f"make of task '{name}'"):
        batch = task.make(crops, draw)
    who = f"task '{name}' ({provider_of(type(task))})"
    if not isinstance(batch, PretextBatch):
        raise PluginError(f"{who}: make() gave {type(batch).__name__}, not a PretextBatch.")
    if batch.visible is not None and not task.network.tokens:
        raise NetworkError(f"{who} leaves tokens out, and this network's encoder does not work on tokens. Take ViT or UNETR.")
    if batch.inputs is not None:
        parts = answerer.kind.parts if isinstance(answerer.kind, PooledHead) else None
        rows = batch.inputs.shape[0]
        if rows % len(crops) or (parts is not None and rows != parts * len(crops)):
            expected = f"{parts} parts for each of {len(crops)} crops" if parts else f"a multiple of {len(crops)} crops"
            raise PluginError(f"{who}: make() gave {rows} inputs; its head needs {expected}.")
    return Question(name, task, batch)


def arrange(questions: Sequence[Question], view: Tensor, *, embeddings: bool, feature_maps: bool) -> list[Showing]:
    """The forwards that answer all `questions` about one view (B, C, *size), and give embeddings where losses need them.

    Crops cut into parts give no embedding of the whole crop, and moved voxels no feature map on its grid: where only such
    tasks ask, the view itself is shown once more to the encoder.
    """
    showings: list[Showing] = []
    riders = [question for question in questions if question.batch.inputs is None]
    for question in questions:
        if question.batch.inputs is not None:
            _place(question, question.batch.inputs, view.shape[0], showings)
    if riders:
        hosts = [showing for showing in showings if showing.parts == 1]
        host = hosts[0] if hosts else _show_view(view, showings)
        host.asked.extend(riders)
    if embeddings or feature_maps:
        fit = [showing for showing in showings if showing.parts == 1 and not (feature_maps and _moved(showing))]
        chosen = fit[0] if fit else _show_view(view, showings)
        chosen.for_consistency = True
    return showings


def _place(question: Question, inputs: Tensor, batch: int, showings: list[Showing]) -> None:
    for showing in showings:
        if _same(showing.inputs, inputs):
            showing.asked.append(question)
            return
    showings.append(Showing(inputs, inputs.shape[0] // batch, [question], question.batch))


def _show_view(view: Tensor, showings: list[Showing]) -> Showing:
    showing = Showing(view)
    showings.append(showing)
    return showing


def _moved(showing: Showing) -> bool:
    return showing.host is not None and showing.host.restore is not None


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether both are the same numbers in memory; equal copies count as different, comparing them would cost more than it saves."""
    return one is other or (one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride())
