"""The objective: network, heads, terms and their weights, as one module; a step reads in `ask`, `totals`, `forward` and `commit`.

The way of a batch: `ask` makes views (only where a consistency loss compares them) and lets each task ask about each view;
`totals` counts, over the micro batches and ranks of a step, how many samples can be answered; `forward` shows everything to the
network, lets heads and teacher answer and takes the losses; `commit` updates what terms keep after a step that was taken.
What is looked at before and beside the steps is in `medssl.learn.looking`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medssl.augment import ViewOptions
from medssl.contracts import ConsistencyLoss, Crops, Draw, Needs, NetworkInfo, PretextBatch, PretextTask, Views
from medssl.learn import checks
from medssl.learn.heads import build_head
from medssl.learn.joining import joined, summed
from medssl.learn.promises import calling, check_loss, overrides, task_loss, task_measures
from medssl.learn.questions import View, arrange, ask, own_grid
from medssl.learn.reading import Reading, read
from medssl.learn.teacher import Lessons, followed_modules, make_teacher, momentum_at, taught_terms, teach
from medssl.learn.terms import BuiltTerm
from medssl.learn.views import clean_view, gather_views, make_views
from medssl.learn.weighing import MEASURE_EVERY, Balance, Combine, Gradients, gradients_of, turn
from medssl.networks import NetworkSpec, Trunk, network_info
from medssl.plugins import Plugins


@dataclass
class Asked:
    """A micro batch with its views and questions, before the network has seen any of it."""

    crops: Crops
    step: int
    progress: float
    views: list[View]
    terms: frozenset[str]
    """The terms that count in this step; tasks that are asked beside them answer for consistency losses alone."""
    needs: frozenset[Needs]
    """What the consistency losses among them need."""

    def answerable(self, key: str) -> list[Tensor]:
        """For each view that a task asks about: (B,) 1 where a sample can be answered, else 0."""
        batches = [view.questions[key].batch for view in self.views if key in view.questions]
        ones = torch.ones(len(self.crops), device=self.crops.images.device)
        return [ones if batch.answerable is None else batch.answerable.float() for batch in batches]


@dataclass
class Pending:
    """What a micro batch leaves for `commit`, for terms that have one."""

    step: int
    views: dict[str, Views] = field(default_factory=dict)
    answers: dict[str, list[tuple[Tensor, PretextBatch]]] = field(default_factory=dict)
    gradients: Gradients | None = None
    """None where they were not measured, which is the same on all ranks."""


class Objective(nn.Module):
    """The sum of weighted terms over one network.

    `network` stays a plain MONAI network: its state dict is what transfer reads. The state dict of the objective is the
    checkpoint: network, heads, what tasks and losses own, and the teacher where a term needs one.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: NetworkSpec,
        tasks: Sequence[BuiltTerm[PretextTask]],
        losses: Sequence[BuiltTerm[ConsistencyLoss]],
        views: ViewOptions,
        seed: int,
        plugins: Plugins | None = None,
        info: NetworkInfo | None = None,
        combine: Combine = "sum",
    ) -> None:
        """`spec` is that of the network as it is built; `info` what terms were told: the channels of the images, the run's crop."""
        super().__init__()
        self.plugins = plugins if plugins is not None else Plugins.load()
        self.spec, self.views, self.seed = spec, views, seed
        self.info = info or network_info(spec, self.plugins)
        self.weights = {term.key: term.weight for term in tasks} | {term.key: term.weight for term in losses}
        self.network = network
        self.tasks = nn.ModuleDict({term.key: term.module for term in tasks})
        self.losses = nn.ModuleDict({term.key: term.module for term in losses})
        self.built_heads = {key: build_head(key, task, spec, self.info, self.plugins) for key, task in self.by_key("tasks").items()}
        self.heads = nn.ModuleDict({key: head.module for key, head in self.built_heads.items() if not head.owned})
        self.takes_turns = combine == "turns" and len(self.weights) > 1
        self.balance = Balance(tuple(self.weights)) if combine == "balanced" and len(self.weights) > 1 else None
        self.needs = self.needed_by(self.weights)
        self.wants_body = any("body" in term.needs for term in self._terms().values())
        self.sometimes_unreached = True
        """Whether a trainable parameter may have no gradient in some step; `freeze_unreached` finds out. DDP must look for these."""
        self.reached: set[str] = set()
        """Terms whose loss had a gradient in some forward pass."""
        checks.check_terms(self.by_key("tasks"), self.by_key("losses"), self.info, spec, views, self.plugins)
        self._trunk = Trunk(network, spec, self.plugins)
        for key, head in self.built_heads.items():
            self._trunk.check(head.reads, f"task '{key}'")
        self.teacher = make_teacher(network, spec, self.plugins, self.built_heads, self.by_key("tasks"), self.by_key("losses"))
        self._pending: list[Pending] = []

    def ask(self, crops: Crops, step: int, progress: float = 0.0) -> Asked:
        """The views of a micro batch and the questions about each; `progress` is 0 .. 1 of the run. Nothing is computed by the network.

        Where terms take turns, only what the term whose turn it is needs.
        """
        return self.ask_for([turn(self.weights, step)] if self.takes_turns else self.weights, crops, step, progress)

    def ask_for(self, terms: Iterable[str], crops: Crops, step: int, progress: float = 0.0) -> Asked:
        """`ask` for `terms`, whoever's turn it is."""
        checks.check_crops(crops, self.info)
        counted = frozenset(terms)
        needs = self.needed_by(counted)
        shows = bool(needs & {"embeddings", "feature_maps"})
        tasks = {key: task for key, task in self.by_key("tasks").items() if key in counted or _looked_at(task, needs)}
        with exact(crops):
            views = list(make_views(crops, self.views, self.seed, step, any(key in counted for key in self.losses)))
            for number, view in enumerate(views):
                asked = [key for key, task in tasks.items() if task.same_for_views or not view.moved]
                self.ask_about(view, asked, step, number, progress, shows)
            rest = [key for key in tasks if not any(key in view.questions for view in views)]
            if rest:
                # Augmentation changes the answer of these tasks (a flip changes "left of"), so they ask about the clean crops alone.
                views.append(self.ask_about(clean_view(crops), rest, step, 0, progress))
            return Asked(crops, step, progress, views, counted, needs)

    def needed_by(self, terms: Iterable[str]) -> frozenset[Needs]:
        """What the consistency losses among `terms` need."""
        losses = self.by_key("losses")
        return frozenset(need for key in terms if key in losses for need in losses[key].needs)

    def totals(self, asked: Sequence[Asked]) -> dict[str, Tensor]:
        """By term: over all micro batches `asked` of a step and all ranks, how many samples count; by `TERM/all`: how many there are."""
        zero = torch.zeros((), device=asked[0].crops.images.device)
        counts: dict[str, Tensor] = {}
        tasks, losses = self._counted(asked[0])
        for key in tasks:
            shares = [share for one in asked for share in one.answerable(key)]
            counts[key] = torch.stack([share.sum() for share in shares]).sum()
            counts[f"{key}/all"] = zero + sum(len(share) for share in shares)
        for key in losses:
            counts[key] = zero + sum(len(one.crops) for one in asked)
        return dict(zip(counts, summed(torch.stack(list(counts.values()))), strict=True))

    def forward(self, asked: Asked, totals: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """This micro batch's part of every term's mean over the step, of the tasks' measures, and of the weighted sum `loss`.

        `totals` are those of the whole step; None: this micro batch is the step. Added up over micro batches and ranks the parts are
        the means over all samples that can be answered. Pure but for what `commit` will read.
        """
        totals = self.totals([asked]) if totals is None else totals
        # Only network and heads run in the caller's autocast: questions, views and losses in bf16 would be other ones.
        readings = [self.read(view, asked.needs) for view in asked.views]
        lessons = self.teach(asked)
        with exact(asked.crops):
            pending = self._begin_pending(asked.step)
            terms: dict[str, Tensor] = {}
            measures: dict[str, Tensor] = {}
            tasks, losses = self._counted(asked)
            for key in tasks:
                terms[key], further = self._task_part(key, asked, readings, totals, pending)
                measures |= further
            if losses:
                views = self._compared(asked, readings, lessons)
                terms |= {key: self._loss_part(key, views, totals, pending) for key in losses}
            total = self._total(terms, pending)
        self.reached |= {key for key, term in terms.items() if term.requires_grad}
        return {**terms, **measures, "loss": total}

    def run(self, crops: Crops, step: int, progress: float = 0.0) -> dict[str, Tensor]:
        """`ask` and `forward` for a step of one micro batch."""
        losses: dict[str, Tensor] = self(self.ask(crops, step, progress))
        return losses

    def commit(self, progress: float = 0.0) -> None:
        """After a step that was taken: move the teacher, then let each term update what it keeps, from all micro batches and ranks."""
        taught = taught_terms(self._terms())
        if self.teacher is not None:
            self.teacher.follow(momentum_at(progress, taught), self.network, self._modules_of_heads(), followed_modules(taught))
        pending, self._pending = self._pending, []
        if not pending:
            return
        measured = [one.gradients for one in pending if one.gradients is not None]
        if self.balance is not None and measured:
            self.balance.update(measured, self._balanced())
        with torch.no_grad():
            for key in pending[0].views:
                loss: Any = self.losses[key]
                with calling(loss, key, "commit"):
                    loss.commit(joined([one.views[key] for one in pending]))
            for key in pending[0].answers:
                task: Any = self.tasks[key]
                with calling(task, key, "commit"):
                    task.commit(*joined([pair for one in pending for pair in one.answers[key]]))

    def forget(self) -> None:
        """Drop what `commit` would read, of passes that were no step."""
        self._pending = []

    def ask_about(
        self,
        view: View,
        names: Sequence[str],
        step: int,
        number: int = 0,
        progress: float = 0.0,
        shows: bool = False,
    ) -> View:
        """The view with the questions of the tasks `names`, and the passes that answer them; with `shows` one of the view itself too."""
        tasks = self.by_key("tasks")
        for key in (key for key in tasks if key in names):
            draw = Draw(self.seed, step, view.crops.index, key, view.crops.images.device, progress).fork(f"view {number}")
            view.questions[key] = ask(key, tasks[key], view.crops, draw, self.built_heads[key])
        view.passes = arrange(list(view.questions.values()), checks.clean_input(view.crops, tasks), show_view=shows)
        for one in view.passes:
            checks.check_channels(one, self.spec.in_channels)
            checks.check_size(one, self.spec)
        return view

    def read(self, view: View, needs: frozenset[Needs]) -> Reading:
        """What network and heads make of a view, for its questions and for losses with these `needs`."""
        return read(view, self._trunk, self.built_heads, self._modules_of_heads(), list(self.tasks), needs)

    def teach(self, asked: Asked) -> Lessons:
        """What the teacher makes of the same views; tasks that need it find its lesson in their batches."""
        losses = {key: loss for key, loss in self.by_key("losses").items() if key in asked.terms}
        return teach(asked.views, self.teacher, self.built_heads, self.by_key("tasks"), losses)

    def by_key(self, kind: Literal["tasks", "losses"]) -> dict[str, Any]:
        """The tasks or the losses by what they are called in the run."""
        return dict((self.tasks if kind == "tasks" else self.losses).items())

    def _task_part(
        self, key: str, asked: Asked, readings: Sequence[Reading], totals: Mapping[str, Tensor], pending: Pending
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A task's part of its mean loss, and of its measures."""
        task: Any = self.tasks[key]
        parts: list[Tensor] = []
        measures: dict[str, list[Tensor]] = {}
        counted = iter(asked.answerable(key))
        for view, reading in zip(asked.views, readings, strict=True):
            if key not in view.questions:
                continue
            batch, counts = view.questions[key].batch, next(counted)
            answer = own_grid(view, self.built_heads[key], key, reading.answers[key])
            value = task_loss(task, key, answer, batch, view.crops)
            parts.append(part_of_mean(value, counts, totals[key]))
            for what, measured in task_measures(task, key, answer.detach(), batch, view.crops).items():
                measures.setdefault(f"{key}/{what}", []).append(part_of_mean(measured, counts, totals[key]))
            if batch.answerable is not None:
                measures.setdefault(f"{key}/answerable", []).append(counts.sum() / totals[f"{key}/all"])
            if overrides(task, PretextTask, "commit"):
                pending.answers.setdefault(key, []).append((answer.detach(), replace(batch, restore=None)))
        return torch.stack(parts).sum(), {what: torch.stack(found).sum() for what, found in measures.items()}

    def _loss_part(self, key: str, views: Views, totals: Mapping[str, Tensor], pending: Pending) -> Tensor:
        loss: Any = self.losses[key]
        given = views.only(loss.needs)
        if given.teacher is not None and self.teacher is not None:
            given = replace(given, teacher=replace(given.teacher, modules=self.teacher.modules_of(key)))
        with calling(loss, key, "forward", views.crops):
            value = loss(given)
        check_loss(value, loss, key, "forward()", views.crops.images)
        if overrides(loss, ConsistencyLoss, "commit"):
            pending.views[key] = given.detach()
        part: Tensor = value.sum() / totals[key]
        return part

    def _compared(self, asked: Asked, readings: Sequence[Reading], lessons: Lessons) -> Views:
        tasks, heads = self.by_key("tasks"), self.built_heads
        views = gather_views(asked.crops, asked.views, readings, tasks, heads, asked.needs, asked.progress)
        if not lessons.views:
            return views
        return replace(views, teacher=gather_views(asked.crops, asked.views, lessons.views, tasks, heads, asked.needs, asked.progress))

    def _total(self, terms: Mapping[str, Tensor], pending: Pending) -> Tensor:
        """What is trained on; where gradients are balanced, every so often their sizes are measured too."""
        if self.takes_turns:
            return torch.stack(list(terms.values())).sum()
        factors: Mapping[str, Tensor | float] = dict.fromkeys(terms, 1.0)
        if self.balance is not None:
            factors = self.balance.factors()
            if pending.step % MEASURE_EVERY == 0 and torch.is_grad_enabled():
                pending.gradients = gradients_of(terms, self._balanced())
        return torch.stack([self.weights[key] * factors[key] * term for key, term in terms.items()]).sum()

    def _balanced(self) -> list[Tensor]:
        """What the gradients of terms are measured by."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def _counted(self, asked: Asked) -> tuple[list[str], list[str]]:
        """The tasks and the losses that count in this step, in the order in which they were given."""
        return [key for key in self.tasks if key in asked.terms], [key for key in self.losses if key in asked.terms]

    def _begin_pending(self, step: int) -> Pending:
        self._pending = [one for one in self._pending if one.step == step]
        self._pending.append(Pending(step))
        return self._pending[-1]

    def _modules_of_heads(self) -> dict[str, nn.Module]:
        return {key: head.module for key, head in self.built_heads.items()}

    def _terms(self) -> dict[str, Any]:
        return {**self.by_key("tasks"), **self.by_key("losses")}


def _looked_at(task: PretextTask, needs: frozenset[Needs]) -> bool:
    """Whether losses with these `needs` look at what the network makes of this task."""
    return "task_embeddings" in needs or ("answers" in needs and task.same_for_views)


def part_of_mean(values: Tensor, counted: Tensor, total: Tensor) -> Tensor:
    """The sum of (B,) `values` over the samples that `counted` (B,) 1 or 0 counts, as a share of `total` of them."""
    return torch.where(counted > 0, values, torch.zeros_like(values)).sum() / total.clamp_min(1)


def exact(crops: Crops) -> torch.autocast:
    """Full precision inside, whatever the caller's autocast is."""
    return torch.autocast(crops.images.device.type, enabled=False)
