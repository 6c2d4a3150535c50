"""What the network is shown: views of the crops, the questions about each, and the forward passes that answer them.

Tasks that show the same input share one forward pass, and target-only tasks ride on one. Embeddings and feature maps are those of
the view itself, so they are the same whatever tasks there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from medssl.contracts import Crops, Draw, NetworkHead, PretextBatch, PretextTask
from medssl.errors import NetworkError
from medssl.learn.heads import BuiltHead
from medssl.learn.promises import Who, calling, check_batch, check_restored


@dataclass(frozen=True)
class Question:
    """One task's question about one view."""

    key: str
    """The task's name in this run."""
    task: PretextTask
    batch: PretextBatch


@dataclass
class ForwardPass:
    """One pass of the network: its inputs and every question that reads it."""

    inputs: Tensor
    parts: int = 1
    questions: list[Question] = field(default_factory=list)
    host: PretextBatch | None = None
    """The batch of the task that brought the inputs; None where they are the view itself."""
    is_view: bool = False
    """Whether the inputs are the view itself, which embeddings and feature maps are read from."""

    @property
    def visible(self) -> Tensor | None:
        """The tokens that the encoder sees; None: all."""
        return self.host.visible if self.host is not None else None


@dataclass
class View:
    """One view of the crops, what is asked about it and how it is shown."""

    crops: Crops
    affine: Tensor
    """(B, D, D + 1): voxel of the view -> voxel of the crop."""
    compared: bool
    """Whether consistency losses compare it; otherwise tasks alone ask about it."""
    moved: bool
    """Whether its voxels may lie elsewhere than the crop's; known without waiting for the device."""
    questions: dict[str, Question] = field(default_factory=dict)
    passes: list[ForwardPass] = field(default_factory=list)

    def pass_of(self, key: str) -> ForwardPass:
        """The pass that answers a task's question."""
        return next(one for one in self.passes if any(question.key == key for question in one.questions))


def ask(key: str, task: PretextTask, crops: Crops, draw: Draw, head: BuiltHead) -> Question:
    """The question, checked: what a plugin gives back is not believed."""
    with calling(task, key, "make", crops):
        batch = task.make(crops, draw)
    check_batch(batch, task, key, crops, head.kind)
    if batch.visible is not None and not task.network.tokens:
        raise NetworkError(f"{Who(task, key)} leaves tokens out, and this network's encoder does not work on tokens. Take ViT or UNETR.")
    return Question(key, task, replace(batch, progress=draw.progress))


def arrange(questions: Sequence[Question], clean: Tensor, *, show_view: bool) -> list[ForwardPass]:
    """The passes that answer all `questions` about one view; with `show_view` one of them shows the view itself.

    `clean` (B, C, *size) is the network's input for the uncorrupted view. Riders go with the first pass that shows whole crops.
    """
    passes: list[ForwardPass] = []
    for question in questions:
        if question.batch.inputs is not None:
            _place(question, question.batch.inputs, clean, passes)
    riders = [question for question in questions if question.batch.inputs is None]
    if riders:
        hosts = [one for one in passes if one.parts == 1 and one.visible is None]
        (hosts[0] if hosts else _view_pass(clean, passes)).questions.extend(riders)
    if show_view and not any(one.is_view for one in passes):
        _view_pass(clean, passes)
    return passes


def _place(question: Question, inputs: Tensor, clean: Tensor, passes: list[ForwardPass]) -> None:
    visible = question.batch.visible
    for one in passes:
        if _same(one.inputs, inputs) and one.visible is visible:
            one.questions.append(question)
            return
    batch = question.batch
    passes.append(ForwardPass(inputs, inputs.shape[0] // len(clean), [question], batch, is_view=visible is None and _same(inputs, clean)))


def _view_pass(clean: Tensor, passes: list[ForwardPass]) -> ForwardPass:
    passes.append(ForwardPass(clean, is_view=True))
    return passes[-1]


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether both are the same numbers in memory; equal copies count as different, comparing them would cost more than it saves."""
    return one is other or (one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride())


def restored(view: View, head: BuiltHead, key: str, answer: Tensor) -> Tensor:
    """A dense answer on the grid of the view's crops, whatever the task that was shown moved; other answers as they are."""
    one = view.pass_of(key)
    if one.host is None or one.host.restore is None or not head.dense:
        return answer
    asked = one.questions[0]
    with calling(asked.task, asked.key, "restore", view.crops):
        moved = one.host.restore(answer)
    check_restored(moved, answer, asked.task, asked.key, view.crops)
    return moved


def own_grid(view: View, head: BuiltHead, key: str, answer: Tensor) -> Tensor:
    """A task's answer on the grid that its own target has: a rider's goes through what its host restores."""
    rides = view.questions[key].batch.inputs is None
    return restored(view, head, key, answer) if rides else answer


def expected_shape(one: ForwardPass, head: BuiltHead) -> tuple[Any, ...] | None:
    """What a dense answer must look like; None for other heads."""
    channels = getattr(head.kind, "channels", None)
    if isinstance(head.kind, NetworkHead) or channels is None:
        return None
    return (one.inputs.shape[0], channels, *one.inputs.shape[2:])
