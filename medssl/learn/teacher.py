"""The teacher: an exponential moving average of the network, of heads and of terms' modules (Tarvainen and Valpola, NeurIPS 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import pairwise, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from medssl.contracts import TEACHER_MOMENTUM, ConsistencyLoss, PretextTask, Taught
from medssl.errors import ConfigError, PluginError
from medssl.learn.heads import BuiltHead
from medssl.learn.promises import calling, cleaned
from medssl.learn.questions import View
from medssl.learn.reading import Reading, read
from medssl.networks import NetworkSpec, Trunk
from medssl.plugins import Plugins, provider_of

Modules = Mapping[str, Mapping[str, nn.Module]]
"""By term: the modules that the teacher follows, by name."""
PROGRESS_TRIED = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where in the run it is tried before whether the terms agree about the momentum."""


@dataclass
class Lessons:
    """What the teacher made of each view: for consistency losses, and for tasks."""

    views: list[Reading] = field(default_factory=list)
    tasks: list[dict[str, Taught]] = field(default_factory=list)


class Teacher(nn.Module):
    """A copy that follows the student after each step that was taken, and never gets a gradient."""

    def __init__(self, network: nn.Module, spec: NetworkSpec, plugins: Plugins, heads: Mapping[str, nn.Module], followed: Modules) -> None:
        super().__init__()
        self.network = deepcopy(network)
        self.trunk = Trunk(self.network, spec, plugins)
        self.heads = nn.ModuleDict({name: deepcopy(head) for name, head in heads.items()})
        self.followed = nn.ModuleDict(
            {term: nn.ModuleDict({name: deepcopy(one) for name, one in modules.items()}) for term, modules in followed.items()}
        )
        self.requires_grad_(False)

    def modules_of(self, term: str) -> dict[str, nn.Module]:
        """The teacher's copies of the modules that a term names in `teacher_follows`."""
        found: Any = dict(self.followed.items()).get(term, {})
        return dict(found.items())

    @torch.no_grad()
    def follow(self, momentum: float, network: nn.Module, heads: Mapping[str, nn.Module], followed: Modules) -> None:
        """Move every parameter a little towards the student's; buffers are taken over."""
        pairs = [(self.network, network), *((self.heads[name], heads[name]) for name in self.heads)]
        pairs += [(copy, followed[term][name]) for term in self.followed for name, copy in self.modules_of(term).items()]
        for mine, theirs in pairs:
            move(mine, theirs, momentum)


class EMATeacher(nn.Module):
    """A copy of any module that follows it: `teacher(images)` answers without a gradient, `teacher.update(student)` follows a step.

    What medssl's own training keeps of network, heads and projectors, for a training loop of yours.
    """

    def __init__(self, student: nn.Module, momentum: float = TEACHER_MOMENTUM) -> None:
        super().__init__()
        if not isinstance(student, nn.Module):
            raise ConfigError(f"a teacher follows a module, such as a network, and {type(student).__name__} is none.")
        self.momentum = _momentum(momentum)
        self.module = deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        """What the copy makes of the inputs, cut from the graph."""
        return self.module(*inputs)

    def update(self, student: nn.Module, momentum: float | None = None) -> None:
        """Call it after each step that was taken."""
        pairs = zip_longest(_forms(self.module), _forms(student), fillvalue=("nothing", ()))
        different = next(((mine, theirs) for mine, theirs in pairs if mine[1] != theirs[1]), None)
        if different is not None:
            (mine, shape), (theirs, other) = different
            raise ConfigError(
                f"the teacher follows another module than this {type(student).__name__}: '{mine}' {shape} in the teacher, '{theirs}' "
                f"{other} here. Give the module that it was made of."
            )
        move(self.module, student, self.momentum if momentum is None else _momentum(momentum))


def _momentum(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"a teacher's momentum of {value!r} cannot be; it lies between 0 and 1.")
    return float(value)


def _forms(module: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of all that a teacher follows, in its order: wrappers put a prefix before all names."""
    if not isinstance(module, nn.Module):
        raise ConfigError(f"a teacher follows a module, such as a network, and {type(module).__name__} is none.")
    return [(name, tuple(tensor.shape)) for name, tensor in (*module.named_parameters(), *module.named_buffers())]


@torch.no_grad()
def move(mine: nn.Module, theirs: nn.Module, momentum: float) -> None:
    """Every parameter of `mine` a little towards that of `theirs`; buffers are taken over."""
    for kept, new in zip(mine.parameters(), theirs.parameters(), strict=True):
        kept.lerp_(new, 1 - momentum)
    for held, given in zip(mine.buffers(), theirs.buffers(), strict=True):
        held.copy_(given)


def make_teacher(
    network: nn.Module,
    spec: NetworkSpec,
    plugins: Plugins,
    heads: Mapping[str, BuiltHead],
    tasks: Mapping[str, PretextTask],
    losses: Mapping[str, ConsistencyLoss],
) -> Teacher | None:
    """A teacher with all that the terms need of it; None where none needs one."""
    terms = taught_terms({**tasks, **losses})
    if not terms:
        return None
    for progress in PROGRESS_TRIED:
        momentum_at(progress, terms)
    answers = any({"teacher", "answers"} <= loss.needs for loss in losses.values())
    needed = {key for key, task in tasks.items() if "teacher_answer" in task.needs or (answers and task.same_for_views)}
    return Teacher(network, spec, plugins, {key: heads[key].module for key in needed}, followed_modules(terms))


def taught_terms(terms: Mapping[str, PretextTask | ConsistencyLoss]) -> dict[str, PretextTask | ConsistencyLoss]:
    """Those that need the teacher."""
    return {key: term for key, term in terms.items() if {"teacher", "teacher_answer"} & set(term.needs)}


def followed_modules(terms: Mapping[str, PretextTask | ConsistencyLoss]) -> dict[str, dict[str, nn.Module]]:
    """What each term names in `teacher_follows`; `PluginError` for names that it does not have."""
    found: dict[str, dict[str, nn.Module]] = {}
    for key, term in terms.items():
        own = dict(term.named_children())
        missing = [name for name in term.teacher_follows if name not in own]
        if missing:
            raise PluginError(f"'{key}' ({provider_of(type(term))}) names {missing} in teacher_follows and has {sorted(own)}.")
        if term.teacher_follows:
            found[key] = {name: own[name] for name in term.teacher_follows}
    return found


def momentum_at(progress: float, terms: Mapping[str, PretextTask | ConsistencyLoss]) -> float:
    """The momentum that all `terms` ask for; raises `ConfigError` where they disagree."""
    asked: dict[str, float] = {}
    for key, term in terms.items():
        with calling(term, key, "teacher_momentum"):
            asked[key] = float(term.teacher_momentum(progress))
    if any(abs(one - other) > 1e-9 for one, other in pairwise(asked.values())):
        raise ConfigError(f"there is one teacher, and at {progress:.0%} of the run the terms ask for different momentum: {asked}.")
    momentum = next(iter(asked.values()))
    if not 0 <= momentum <= 1:
        raise ConfigError(f"'{next(iter(asked))}' asks for a teacher's momentum of {momentum}; it lies between 0 and 1.")
    return momentum


@torch.no_grad()
def teach(
    views: Sequence[View],
    teacher: Teacher | None,
    heads: Mapping[str, BuiltHead],
    tasks: Mapping[str, PretextTask],
    losses: Mapping[str, ConsistencyLoss],
) -> Lessons:
    """What the teacher makes of the views, and of the uncorrupted inputs of tasks that need it, whose batches are told."""
    if teacher is None:
        return Lessons([], [{} for _ in views])
    modules: Any = teacher.heads
    needs = frozenset(need for loss in losses.values() if "teacher" in loss.needs for need in loss.needs)
    answering = [key for key, task in tasks.items() if task.same_for_views] if "answers" in needs else []
    lessons = Lessons()
    for view in views:
        if needs:
            lessons.views.append(read(view, teacher.trunk, heads, modules, answering, needs))
        lessons.tasks.append(dict(_taught(view, teacher, heads)))
        for key, lesson in lessons.tasks[-1].items():
            question = view.questions[key]
            view.questions[key] = replace(question, batch=replace(question.batch, teacher=lesson))
    return lessons


def _taught(view: View, teacher: Teacher, heads: Mapping[str, BuiltHead]) -> Iterator[tuple[str, Taught]]:
    """For each task that asks about the view and needs the teacher: what the teacher makes of its uncorrupted input.

    Tasks with the same uncorrupted input share one forward pass.
    """
    inputs: dict[int, tuple[Tensor, set[str], list[str]]] = {}
    reads: dict[str, tuple[str, ...]] = {}
    for key, question in view.questions.items():
        if not {"teacher", "teacher_answer"} & question.task.needs:
            continue
        clean = cleaned(question.task, key, view.crops)
        with calling(question.task, key, "teacher_reads"):
            reads[key] = tuple(question.task.teacher_reads())
        _, wanted, keys = inputs.setdefault(clean.data_ptr(), (clean, set(), []))
        wanted |= set(reads[key]) | (set(heads[key].reads) if "teacher_answer" in question.task.needs else set())
        keys.append(key)
    for clean, wanted, keys in inputs.values():
        features = teacher.trunk(clean, wanted)
        for key in keys:
            question, head = view.questions[key], heads[key]
            asked = "teacher_answer" in question.task.needs
            answer = head.answer(teacher.heads[key], features, question.task, key, question.batch) if asked else None
            yield key, Taught({name: features[name] for name in reads[key]}, answer, teacher.modules_of(key))
