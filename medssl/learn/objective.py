"""The objective: network, heads, terms and their weights, as one module; a step reads in `ask`, `forward` and `commit`.

The way of a batch: `ask` makes views (only where a consistency loss compares them) and lets each task ask about each view;
`totals` counts, over the micro batches and ranks of a step, how many samples can be answered; `forward` shows everything to the
network, lets heads and teacher answer and takes the losses; `commit` updates what terms keep after a step that was taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from medssl.augment import ViewOptions, identity
from medssl.contracts import ConsistencyLoss, Crops, Draw, PretextBatch, PretextTask, Views
from medssl.learn import checks
from medssl.learn.heads import build_head
from medssl.learn.joining import joined, summed
from medssl.learn.questions import View, arrange, ask, own_grid
from medssl.learn.reading import Reading, read
from medssl.learn.teacher import Teacher, followed_modules, momentum_at, taught
from medssl.learn.terms import BuiltTerm
from medssl.learn.views import gather_views, make_views
from medssl.networks import NetworkSpec, Trunk, check_crop, network_info
from medssl.plugins import Plugins, blame

PROGRESS_TRIED = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where in the run it is tried which parameters an annealed term reaches."""


@dataclass
class Asked:
    """A micro batch with its views and questions, before the network has seen any of it."""

    crops: Crops
    step: int
    progress: float
    views: list[View]

    def answerable(self, key: str) -> list[Tensor]:
        """For each view that a task asks about: (B,) 1 where a sample can be answered, else 0."""
        batches = [view.questions[key].batch for view in self.views if key in view.questions]
        ones = torch.ones(len(self.crops), device=self.crops.images.device)
        return [ones if batch.answerable is None else batch.answerable.float() for batch in batches]


@dataclass
class _Pending:
    """What a micro batch leaves for `commit`, for terms that have one."""

    step: int
    views: dict[str, Views] = field(default_factory=dict)
    answers: dict[str, list[tuple[Tensor, PretextBatch]]] = field(default_factory=dict)


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
        channels: int | None = None,
    ) -> None:
        """`spec` is that of the network as it is built; `channels` are those of the images where a task changes them."""
        super().__init__()
        plugins = plugins if plugins is not None else Plugins.load()
        self.spec, self.views, self.seed, self._plugins = spec, views, seed, plugins
        self.info = replace(network_info(spec, plugins), channels=channels or spec.in_channels)
        self.weights = {term.key: term.weight for term in tasks} | {term.key: term.weight for term in losses}
        self.network = network
        self.tasks = nn.ModuleDict({term.key: term.module for term in tasks})
        self.losses = nn.ModuleDict({term.key: term.module for term in losses})
        self._heads = {key: build_head(key, task, spec, self.info, plugins) for key, task in self._task_items()}
        self.heads = nn.ModuleDict({key: head.module for key, head in self._heads.items() if not head.owned})
        self.needs = frozenset(need for loss in self._losses().values() for need in loss.needs)
        self.wants_body = any("body" in term.needs for term in self._terms().values())
        checks.check_terms(self._tasks(), self._losses(), self.info, spec, views, plugins)
        self._trunk = Trunk(network, spec, plugins)
        for head in self._heads.values():
            self._trunk.check(head.reads)
        self.teacher = self._make_teacher()
        self._teacher_trunk = Trunk(self.teacher.network, spec, plugins) if self.teacher is not None else None
        self._pending: list[_Pending] = []

    def ask(self, crops: Crops, step: int, progress: float = 0.0) -> Asked:
        """The views of a micro batch and the questions about each; `progress` is 0 .. 1 of the run. Nothing is computed by the network."""
        checks.check_crops(crops, self.info)
        with _exact(crops):
            views = []
            for number, (seen, affine, compared) in enumerate(make_views(crops, self.views, self.seed, step, bool(self.losses))):
                names = [key for key, task in self._task_items() if task.same_for_views or (number == 0 and self._first_is_clean)]
                views.append(self._view(seen, affine, compared, names, step, number, progress))
            rest = [key for key in self.tasks if not any(key in view.questions for view in views)]
            if rest:
                # Augmentation changes the answer of these tasks (a flip changes "left of"), so they ask about the clean crops alone.
                views.append(self._clean_view(crops, rest, step, progress))
            return Asked(crops, step, progress, views)

    def totals(self, asked: Sequence[Asked]) -> dict[str, Tensor]:
        """By term: over all micro batches `asked` of a step and all ranks, how many samples count; by `TERM/all`: how many there are."""
        device = asked[0].crops.images.device
        counts: dict[str, Tensor] = {}
        for key in self.tasks:
            shares = [share for one in asked for share in one.answerable(key)]
            counts[key] = torch.stack([share.sum() for share in shares]).sum()
            counts[f"{key}/all"] = torch.tensor(float(sum(len(share) for share in shares)), device=device)
        for key in self.losses:
            counts[key] = torch.tensor(float(sum(len(one.crops) for one in asked)), device=device)
        return dict(zip(counts, summed(torch.stack(list(counts.values()))), strict=True))

    def forward(self, asked: Asked, totals: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """This micro batch's part of every term's mean over the step, of the tasks' measures, and of the weighted sum `loss`.

        `totals` are those of the whole step; None: this micro batch is the step. Added up over micro batches and ranks the parts are
        the means over all samples that can be answered. Pure but for what `commit` will read.
        """
        crops, totals = asked.crops, self.totals([asked]) if totals is None else totals
        # Only network and heads run in the caller's autocast: questions, views and losses in bf16 would be other ones.
        readings = [self._read(view) for view in asked.views]
        lessons = self._teach(asked)
        with _exact(crops):
            pending = self._begin_pending(asked.step)
            terms: dict[str, Tensor] = {}
            measures: dict[str, Tensor] = {}
            for key in self.tasks:
                terms[key], further = self._task_part(key, asked, readings, totals, pending)
                measures |= further
            if self.losses:
                views = self._compared(asked, readings, lessons)
                terms |= {key: self._loss_part(key, views, totals, pending) for key in self.losses}
            total = torch.stack([self.weights[key] * term for key, term in terms.items()]).sum()
        return {**terms, **measures, "loss": total}

    def run(self, crops: Crops, step: int, progress: float = 0.0) -> dict[str, Tensor]:
        """`ask` and `forward` for a step of one micro batch."""
        losses: dict[str, Tensor] = self(self.ask(crops, step, progress))
        return losses

    def commit(self, progress: float = 0.0) -> None:
        """After a step that was taken: move the teacher, then let each term update what it keeps, from all micro batches and ranks."""
        if self.teacher is not None:
            momentum = momentum_at(progress, self._taught_terms())
            self.teacher.follow(momentum, self.network, self._modules_of_heads(), followed_modules(self._taught_terms()))
        pending, self._pending = self._pending, []
        if not pending:
            return
        with torch.no_grad():
            for key in pending[0].views:
                loss: Any = self.losses[key]
                with blame(type(loss), f"commit of consistency loss '{key}'"):
                    loss.commit(joined([one.views[key] for one in pending]))
            for key in pending[0].answers:
                task: Any = self.tasks[key]
                answer, batch = joined([pair for one in pending for pair in one.answers[key]])
                with blame(type(task), f"commit of task '{key}'"):
                    task.commit(answer, batch)

    def pictures(self, crops: Crops, step: int) -> dict[str, Tensor]:
        """What each task wants looked at: `task/what` -> (B, C, *size)."""
        found: dict[str, Tensor] = {}
        with self._looking():
            view = self._clean_view(crops, list(self.tasks), step)
            reading = self._read(view)
            for key, task in self._task_items():
                with blame(type(task), f"picture of task '{key}'"):
                    shown = task.picture(self._own_grid(view, key, reading), view.questions[key].batch)
                found |= {f"{key}/{what}": image.detach() for what, image in shown.items()}
        return found

    def trivial(self, crops: Crops, step: int) -> dict[str, float]:
        """By task: its loss, and as `TASK/measure` its measures, for the answer that needs no learning; tasks without one are left out."""
        found: dict[str, float] = {}
        with self._looking():
            asked = Asked(crops, step, 0.0, [self._clean_view(crops, list(self.tasks), step)])
            lessons = self._teach(asked)
            for key, task in self._task_items():
                batch = replace(asked.views[0].questions[key].batch, teacher=lessons.tasks[0].get(key))
                counted = asked.answerable(key)[0]
                with blame(type(task), f"trivial of task '{key}'"):
                    answer = task.trivial(batch)
                    if answer is None:
                        continue
                    values = {key: task.loss(answer, batch)}
                    values |= {f"{key}/{what}": value for what, value in task.measure(answer, batch).items()}
                found |= {what: float(_part(value, counted, counted.sum())) for what, value in values.items()}
        return found

    def check_crop(self, size: Sequence[int], batch: int = 2) -> None:
        """Raise `NetworkError` naming the sides that work where the network cannot take whole crops of `size` for these terms."""
        reads = {name for head in self._heads.values() if head.parts == 1 for name in head.reads}
        if reads & {"feature_map", "output"} or "feature_maps" in self.needs:
            check_crop(self.spec, size, batch, plugins=self._plugins)
        elif reads or self.needs & {"embeddings", "task_embeddings"}:
            check_crop(self.spec, size, batch, ("encoder_end",), self._plugins)

    def freeze_unreached(self, crops: Crops) -> list[str]:
        """Freeze the parameters that no term reaches and return their names (the network's own head, a decoder no task reads).

        Under DDP an unfrozen parameter without a gradient stops the second step. What a term reads counts as reached whether or not
        its loss counts yet, and losses are tried all along the run, so nothing that is annealed in stays frozen. Takes two of the
        `crops`, before training, and so also finds a crop that is too small or a term that cannot run. Changes nothing else.
        """
        few: dict[str, Any] = {name: value[:2] for name, value in vars(crops).items() if isinstance(value, Tensor)}
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        unreached = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        asked = self.ask(replace(crops, **few), 0)
        readings = [self._read(view) for view in asked.views]
        _drop_reached(unreached, [tensor for reading in readings for tensor in reading.tensors()])
        for progress in PROGRESS_TRIED:
            if progress == 0 or any(not name.startswith("network.") for name in unreached):
                _drop_reached(unreached, [self.run(asked.crops, 0, progress)["loss"]])
        for parameter in unreached.values():
            parameter.requires_grad_(False)
        with torch.no_grad():
            for name, buffer in self.named_buffers():
                buffer.copy_(buffers[name])
        self._pending = []
        return list(unreached)

    @property
    def _first_is_clean(self) -> bool:
        return not self.losses or self.views.clean

    def _view(self, crops: Crops, affine: Tensor, compared: bool, names: Sequence[str], step: int, number: int, progress: float) -> View:
        questions = {}
        for key, task in self._task_items():
            if key in names:
                draw = Draw(self.seed, step, crops.index, key, crops.images.device, progress).fork(f"view {number}")
                questions[key] = ask(key, task, crops, draw, self._heads[key])
        show_view = compared and bool(self.needs & {"embeddings", "feature_maps"})
        passes = arrange(list(questions.values()), checks.clean_input(crops, self._tasks()), show_view=show_view)
        for one in passes:
            checks.check_channels(one, self.spec.in_channels)
        return View(crops, affine, compared, questions, passes)

    def _clean_view(self, crops: Crops, names: Sequence[str], step: int, progress: float = 0.0) -> View:
        affine = identity(len(crops), crops.spatial_dims, crops.images.device)
        return self._view(crops, affine, False, names, step, 0, progress)

    def _read(self, view: View) -> Reading:
        return read(view, self._trunk, self._heads, self._modules_of_heads(), list(self.tasks), self.needs)

    def _own_grid(self, view: View, key: str, reading: Reading) -> Tensor:
        return own_grid(view, self._heads[key], key, reading.answers[key])

    def _task_part(
        self, key: str, asked: Asked, readings: Sequence[Reading], totals: Mapping[str, Tensor], pending: _Pending
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A task's part of its mean loss, and of its measures."""
        task: Any = self.tasks[key]
        parts, measures = [], dict[str, Tensor]()
        counted = iter(asked.answerable(key))
        for view, reading in zip(asked.views, readings, strict=True):
            if key not in view.questions:
                continue
            answer, batch, counts = self._own_grid(view, key, reading), view.questions[key].batch, next(counted)
            with blame(type(task), f"loss of task '{key}'"):
                value = task.loss(answer, batch)
            checks.check_loss(value, task, f"the loss of task '{key}'", len(view.crops))
            parts.append(_part(value, counts, totals[key]))
            with torch.no_grad(), blame(type(task), f"measure of task '{key}'"):
                for what, measured in task.measure(answer.detach(), batch).items():
                    part = _part(measured, counts, totals[key])
                    measures[f"{key}/{what}"] = measures.get(f"{key}/{what}", torch.zeros_like(part)) + part
            if batch.answerable is not None:
                part = counts.sum() / totals[f"{key}/all"]
                measures[f"{key}/answerable"] = measures.get(f"{key}/answerable", torch.zeros_like(part)) + part
            if checks.overrides(task, PretextTask, "commit"):
                pending.answers.setdefault(key, []).append((answer.detach(), batch))
        return torch.stack(parts).sum(), measures

    def _loss_part(self, key: str, views: Views, totals: Mapping[str, Tensor], pending: _Pending) -> Tensor:
        loss: Any = self.losses[key]
        given = views.only(loss.needs)
        if given.teacher is not None and self.teacher is not None:
            given = replace(given, teacher=replace(given.teacher, modules=self.teacher.modules_of(key)))
        with blame(type(loss), f"consistency loss '{key}'"):
            value = loss(given)
        checks.check_loss(value, loss, f"the consistency loss '{key}'", len(views.crops))
        if checks.overrides(loss, ConsistencyLoss, "commit"):
            pending.views[key] = given.detach()
        part: Tensor = value.sum() / totals[key]
        return part

    def _begin_pending(self, step: int) -> _Pending:
        self._pending = [one for one in self._pending if one.step == step]
        self._pending.append(_Pending(step))
        return self._pending[-1]

    def _teach(self, asked: Asked) -> _Lessons:
        """What the teacher makes of the same views, and of the uncorrupted inputs of tasks that need it, which are told."""
        if self.teacher is None or self._teacher_trunk is None:
            return _Lessons([], [{} for _ in asked.views])
        needs = frozenset(need for loss in self._losses().values() if "teacher" in loss.needs for need in loss.needs)
        tasks = [key for key, task in self._task_items() if task.same_for_views] if "answers" in needs else []
        modules: Any = self.teacher.heads
        found = _Lessons([], [])
        with torch.no_grad():
            for view in asked.views:
                if needs:
                    found.views.append(read(view, self._teacher_trunk, self._heads, modules, tasks, needs))
                found.tasks.append(dict(taught(view, self.teacher, self._teacher_trunk, self._heads)))
                for key, lesson in found.tasks[-1].items():
                    question = view.questions[key]
                    view.questions[key] = replace(question, batch=replace(question.batch, teacher=lesson))
        return found

    def _compared(self, asked: Asked, readings: Sequence[Reading], lessons: _Lessons) -> Views:
        views = gather_views(asked.crops, asked.views, readings, self._tasks(), self._heads, self.needs, asked.progress)
        if not lessons.views:
            return views
        teachers = gather_views(asked.crops, asked.views, lessons.views, self._tasks(), self._heads, self.needs, asked.progress)
        return replace(views, teacher=teachers)

    def _make_teacher(self) -> Teacher | None:
        terms = self._taught_terms()
        if not terms:
            return None
        for progress in PROGRESS_TRIED:
            momentum_at(progress, terms)
        answers = any({"teacher", "answers"} <= loss.needs for loss in self._losses().values())
        needed = {key for key, task in self._task_items() if "teacher_answer" in task.needs or (answers and task.same_for_views)}
        heads = {key: module for key, module in self._modules_of_heads().items() if key in needed}
        return Teacher(self.network, heads, followed_modules(terms))

    def _taught_terms(self) -> dict[str, Any]:
        return {key: term for key, term in self._terms().items() if {"teacher", "teacher_answer"} & set(term.needs)}

    def _modules_of_heads(self) -> dict[str, nn.Module]:
        return {key: head.module for key, head in self._heads.items()}

    def _terms(self) -> dict[str, Any]:
        return {**self._tasks(), **self._losses()}

    def _tasks(self) -> dict[str, Any]:
        return dict(self.tasks.items())

    def _losses(self) -> dict[str, Any]:
        return dict(self.losses.items())

    def _task_items(self) -> Iterator[tuple[str, Any]]:
        yield from self.tasks.items()

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Without gradients and with the network as at test time, then back to the mode each module had."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode


@dataclass
class _Lessons:
    """What the teacher made of each view: for consistency losses, and for tasks."""

    views: list[Reading]
    tasks: list[dict[str, Any]]


def _part(values: Tensor, counted: Tensor, total: Tensor) -> Tensor:
    """The sum of (B,) `values` over the samples that `counted` (B,) 1 or 0 counts, as a share of `total` of them."""
    return torch.where(counted > 0, values, torch.zeros_like(values)).sum() / total.clamp_min(1)


def _exact(crops: Crops) -> torch.autocast:
    return torch.autocast(crops.images.device.type, enabled=False)


def _drop_reached(unreached: dict[str, nn.Parameter], values: Sequence[Tensor]) -> None:
    """Take out of `unreached` the parameters that have a gradient from any of `values`."""
    found = [value.sum() for value in values if value.requires_grad]
    if not found or not unreached:
        return
    gradients = torch.autograd.grad(torch.stack(found).sum(), list(unreached.values()), allow_unused=True, retain_graph=False)
    for name, gradient in zip(list(unreached), gradients, strict=True):
        if gradient is not None:
            del unreached[name]
