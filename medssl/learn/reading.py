"""Running the network on what it is shown, and letting every head answer; for the student and for the teacher."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from medssl.contracts import ModuleHead
from medssl.errors import DataError, PluginError
from medssl.learn.heads import BuiltHead
from medssl.learn.ops import by_part, pool
from medssl.learn.promises import Who
from medssl.learn.questions import ForwardPass, Question, View, expected_shape
from medssl.networks import Trunk


@dataclass
class Reading:
    """What the network made of one view."""

    answers: dict[str, Tensor] = field(default_factory=dict)
    """By task, as its head gave them."""
    task_embeddings: dict[str, Tensor] = field(default_factory=dict)
    """By task: (B, E), or (B, P, E) of its parts, of what the task shows."""
    embedding: Tensor | None = None
    """(B, E) of the view itself."""
    feature_map: Tensor | None = None
    """(B, F, *grid) of the view itself."""

    def tensors(self) -> list[Tensor]:
        """Everything in it."""
        own = [tensor for tensor in (self.embedding, self.feature_map) if tensor is not None]
        return [*self.answers.values(), *self.task_embeddings.values(), *own]


def read(
    view: View,
    trunk: Trunk,
    heads: Mapping[str, BuiltHead],
    modules: Mapping[str, nn.Module],
    tasks: Collection[str],
    needs: frozenset[str],
) -> Reading:
    """One pass of `trunk` for each of the view's that anything is needed of.

    `modules` are the heads that answer (the teacher has copies), `tasks` those whose answers are wanted, and `needs` what
    consistency losses ask for ("embeddings", "feature_maps", "task_embeddings").
    """
    reading = Reading()
    for one in view.passes:
        asked = [question for question in one.questions if question.key in tasks]
        wanted = {name for question in asked for name in heads[question.key].reads}
        end = "encoder_end" if one.visible is None else "tokens"
        if "task_embeddings" in needs and one.questions:
            wanted.add(end)
        if view.compared and one.is_view:
            wanted |= {"encoder_end"} if "embeddings" in needs else set()
            wanted |= {"feature_map"} if "feature_maps" in needs else set()
        if not wanted:
            continue
        features = trunk(one.inputs, wanted, one.visible)
        if view.compared and one.is_view:
            reading.embedding = pool(features["encoder_end"].float()) if "embeddings" in needs else None
            reading.feature_map = features["feature_map"].float() if "feature_maps" in needs else None
        for question in asked:
            head = heads[question.key]
            answer = head.answer(modules[question.key], features, question.task, question.key, question.batch)
            _check_answer(question, head, answer, one, trunk)
            reading.answers[question.key] = answer
        if "task_embeddings" in needs:
            embeddings = embedded(features[end], one) if one.questions else None
            reading.task_embeddings |= {question.key: embeddings for question in one.questions if embeddings is not None}
    return reading


def embedded(end: Tensor, one: ForwardPass) -> Tensor:
    """(B, E) or (B, P, E) of a pass, from its encoder's end (B * P, E, *grid) or its visible tokens (B * P, V, E)."""
    pooled = end.float().mean(dim=1) if one.visible is not None else pool(end.float())
    return by_part(pooled, one.parts) if one.parts > 1 else pooled


def _check_answer(question: Question, head: BuiltHead, answer: Tensor, one: ForwardPass, trunk: Trunk) -> None:
    grid = tuple(one.inputs.shape[2:])
    if isinstance(head.kind, ModuleHead) and head.dense and (len(answer) != len(one.inputs) or tuple(answer.shape[2:]) != grid):
        raise PluginError(
            f"{Who(question.task, question.key)}: the module of its dense head gave shape {tuple(answer.shape)} for inputs of shape "
            f"{tuple(one.inputs.shape)}; (B, channels, *grid) is needed."
        )
    expected = expected_shape(one, head)
    if expected is not None and tuple(answer.shape) != expected:
        raise DataError(
            f"{trunk.spec} answers '{question.key}' with {tuple(answer.shape)} where {expected} was asked. "
            "Take a crop whose sides the network can halve and double again."
        )
