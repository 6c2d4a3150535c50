"""The teacher: an exponential moving average of the network, of heads and of terms' modules (Tarvainen and Valpola, NeurIPS 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from medssl.contracts import ConsistencyLoss, PretextTask, Taught
from medssl.errors import ConfigError, PluginError
from medssl.learn.heads import BuiltHead
from medssl.learn.questions import View
from medssl.networks import Trunk
from medssl.plugins import blame, provider_of

Modules = Mapping[str, Mapping[str, nn.Module]]
"""By term: the modules that the teacher follows, by name."""


class Teacher(nn.Module):
    """A copy that follows the student after each step that was taken, and never gets a gradient."""

    def __init__(self, network: nn.Module, heads: Mapping[str, nn.Module], followed: Modules) -> None:
        super().__init__()
        self.network = deepcopy(network)
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
            for kept, new in zip(mine.parameters(), theirs.parameters(), strict=True):
                kept.lerp_(new, 1 - momentum)
            for held, given in zip(mine.buffers(), theirs.buffers(), strict=True):
                held.copy_(given)


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
    asked = {key: float(term.teacher_momentum(progress)) for key, term in terms.items()}
    if any(abs(one - other) > 1e-9 for one, other in pairwise(asked.values())):
        raise ConfigError(f"there is one teacher, and at {progress:.0%} of the run the terms ask for different momentum: {asked}.")
    momentum = next(iter(asked.values()))
    if not 0 <= momentum <= 1:
        raise ConfigError(f"'{next(iter(asked))}' asks for a teacher's momentum of {momentum}; it lies between 0 and 1.")
    return momentum


@torch.no_grad()
def taught(view: View, teacher: Teacher, trunk: Trunk, heads: Mapping[str, BuiltHead]) -> Iterator[tuple[str, Taught]]:
    """For each task that asks about the view and needs the teacher: what the teacher makes of its uncorrupted input.

    Tasks with the same uncorrupted input share one forward pass.
    """
    inputs: dict[int, tuple[Tensor, set[str], list[str]]] = {}
    reads: dict[str, tuple[str, ...]] = {}
    for key, question in view.questions.items():
        if not {"teacher", "teacher_answer"} & question.task.needs:
            continue
        with blame(type(question.task), f"clean of task '{key}'"):
            clean, reads[key] = question.task.clean(view.crops), question.task.teacher_reads()
        _, wanted, keys = inputs.setdefault(clean.data_ptr(), (clean, set(), []))
        wanted |= set(reads[key]) | (set(heads[key].reads) if "teacher_answer" in question.task.needs else set())
        keys.append(key)
    for clean, wanted, keys in inputs.values():
        features = trunk(clean, wanted)
        for key in keys:
            question, head = view.questions[key], heads[key]
            asked = "teacher_answer" in question.task.needs
            answer = head.answer(teacher.heads[key], features, question.batch) if asked else None
            yield key, Taught({name: features[name] for name in reads[key]}, answer, teacher.modules_of(key))
