"""The objective: network, heads, terms and their weights, as one module whose forward is the whole step.

The way of a batch: views are made (only where a consistency loss compares them), each task asks its question about each view,
questions that show the same input share one forward of the network, heads answer, losses are taken and summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from medssl.augment import ViewOptions, identity, is_affine, is_identity, make_view
from medssl.contracts import ConsistencyLoss, Crops, DenseHead, Draw, PooledHead, PretextTask, Views
from medssl.errors import ConfigError, DataError, PluginError
from medssl.learn.answers import on_crops, shown_by_all
from medssl.learn.heads import Answerer, build_answerer, require_dense
from medssl.learn.ops import pool
from medssl.learn.showing import Question, Showing, arrange, ask
from medssl.learn.teacher import Teacher
from medssl.networks import NetworkSpec, Trunk, check_crop, network_info
from medssl.networks.trunk import Part
from medssl.plugins import Plugins, blame, provider_of


def _weights(tasks: Sequence[tuple[PretextTask, float]], losses: Sequence[tuple[ConsistencyLoss, float]]) -> dict[str, float]:
    pairs = [(task.name, weight) for task, weight in tasks] + [(loss.name, weight) for loss, weight in losses]
    names = [name for name, _ in pairs]
    wrong = sorted({name for name in names if names.count(name) > 1 or name == "loss"})
    if wrong:
        raise ConfigError(f"'{wrong[0]}' is named twice. A run has each task and each loss once, and none is called 'loss'.")
    return dict(pairs)


def _exact(crops: Crops) -> torch.autocast:
    return torch.autocast(crops.images.device.type, enabled=False)


@dataclass
class _Look:
    """What one view asked and what came of it."""

    crops: Crops
    affine: Tensor
    is_view: bool
    showings: list[Showing] = field(default_factory=list)
    answers: dict[str, Tensor] = field(default_factory=dict)
    hosts: dict[str, Showing] = field(default_factory=dict)
    questions: dict[str, Question] = field(default_factory=dict)
    embedding: Tensor | None = None
    feature_map: Tensor | None = None


class Objective(nn.Module):
    """The sum of weighted terms over one network.

    `network` stays a plain MONAI network: its state dict is what transfer reads. The state dict of the objective is the
    checkpoint: network, heads, what tasks and losses own, and the teacher where a loss needs one.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: NetworkSpec,
        tasks: Sequence[tuple[PretextTask, float]],
        losses: Sequence[tuple[ConsistencyLoss, float]],
        views: ViewOptions,
        seed: int,
        plugins: Plugins | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.views, self.seed = spec, views, seed
        self.info = network_info(spec, plugins)
        self.weights = _weights(tasks, losses)
        self.network = network
        self.tasks = nn.ModuleDict({task.name: task for task, _ in tasks})
        self.losses = nn.ModuleDict({loss.name: loss for loss, _ in losses})
        self._answerers = {task.name: build_answerer(task, spec, self.info) for task, _ in tasks}
        self.heads = nn.ModuleDict({name: a.module for name, a in self._answerers.items() if not a.owned})
        self.needs = frozenset(need for loss, _ in losses for need in loss.needs)
        self._check_terms()
        self.teacher = self._make_teacher() if "teacher" in self.needs else None
        self._trunk = Trunk(network, spec, plugins)
        self._teacher_trunk = Trunk(self.teacher.network, spec, plugins) if self.teacher is not None else None
        self._pending: list[tuple[int, Views]] = []

    def forward(self, crops: Crops, step: int, progress: float = 0.0) -> dict[str, Tensor]:
        """One scalar a term, its mean over the crops, and their weighted sum as `loss`; pure but for what `commit` will read."""
        self._check_crops(crops)
        # Only network and heads run in the caller's autocast: questions, views and losses in bf16 would be other ones.
        with _exact(crops):
            looks = self._looks(crops, step)
        for look in looks:
            self._read(look, self._trunk, self._modules_of_heads())
        taught = self._teach(looks)
        with _exact(crops):
            terms = {name: self._task_loss(name, looks) for name in self.tasks}
            if self.losses:
                views = self._views(crops, looks, taught, progress)
                self._pending = [pair for pair in self._pending if pair[0] == step] + [(step, views.detach())]
                terms |= {name: self._consistency_loss(name, views) for name in self.losses}
            total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {**terms, "loss": total}

    def commit(self) -> None:
        """After a step that was taken: move the teacher, then let each loss update its queue, bank or centre."""
        if self.teacher is not None:
            self.teacher.follow(self.network, self._modules_of_heads())
        pending, self._pending = self._pending, []
        for _, views in pending:
            for name, loss in self._loss_items():
                with torch.no_grad(), blame(type(loss), f"commit of consistency loss '{name}'"):
                    loss.commit(views)

    def pictures(self, crops: Crops, step: int) -> dict[str, Tensor]:
        """What each task wants looked at: `task/what` -> (B, C, *size)."""
        found: dict[str, Tensor] = {}
        with self._looking():
            look = self._clean_look(crops, step)
            self._read(look, self._trunk, self._modules_of_heads())
            for name, task in self._task_items():
                with blame(type(task), f"picture of task '{name}'"):
                    shown = task.picture(self._answer(name, look), look.questions[name].batch)
                found |= {f"{name}/{what}": image.detach() for what, image in shown.items()}
        return found

    def trivial(self, crops: Crops, step: int) -> dict[str, float]:
        """By task: its loss for the answer that needs no learning, on the clean crops; tasks without one are left out."""
        found: dict[str, float] = {}
        with self._looking():
            look = self._clean_look(crops, step)
            for name, task in self._task_items():
                batch = look.questions[name].batch
                with blame(type(task), f"trivial of task '{name}'"):
                    answer = task.trivial(batch)
                    if answer is not None:
                        found[name] = float(task.loss(answer, batch).mean())
        return found

    def check_crop(self, size: Sequence[int], batch: int = 2) -> None:
        """Raise `NetworkError` naming the sides that work where the network cannot take whole crops of `size` for these terms."""
        reads = {a.reads for a in self._answerers.values() if not (isinstance(a.kind, PooledHead) and a.kind.parts > 1)}
        if reads & {"feature_map"} or "feature_maps" in self.needs:
            check_crop(self.spec, size, batch)
        elif reads or "embeddings" in self.needs:
            parts: tuple[Part, ...] = ("encoder_end",)
            check_crop(self.spec, size, batch, parts)

    def freeze_unreached(self, crops: Crops) -> list[str]:
        """Freeze the parameters that no term reaches and return their names (the network's own head, a decoder no task reads).

        Under DDP an unfrozen parameter without a gradient stops the second step. Takes the gradients of two of the `crops`, before
        training, and so also finds a crop that is too small or a term that cannot run. Changes nothing else.
        """
        few: dict[str, Any] = {name: value[:2] for name, value in vars(crops).items() if isinstance(value, Tensor)}
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        learning = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        loss = self(replace(crops, **few), 0)["loss"]
        gradients = torch.autograd.grad(loss, list(learning.values()), allow_unused=True) if loss.requires_grad else [None] * len(learning)
        unreached = [name for name, gradient in zip(learning, gradients, strict=True) if gradient is None]
        for name in unreached:
            learning[name].requires_grad_(False)
        with torch.no_grad():
            for name, buffer in self.named_buffers():
                buffer.copy_(buffers[name])
        self._pending = []
        return unreached

    def _looks(self, crops: Crops, step: int) -> list[_Look]:
        if not self.losses:
            return [self._clean_look(crops, step)]
        looks = []
        every, same = list(self.tasks), [name for name, task in self._task_items() if task.same_for_views]
        for number in range(self.views.count):
            view, affine = self._view(crops, step, number)
            asked = every if number == 0 and self.views.clean else same
            looks.append(self._look(view, affine, asked, step, number, is_view=True))
        if not self.views.clean and len(same) < len(every):
            # Augmentation changes the answer of these tasks (a flip changes "left of"), so they ask about the clean crops alone.
            rest = [name for name in every if name not in same]
            looks.append(self._look(crops, identity(len(crops), crops.spatial_dims, crops.images.device), rest, step, 0, is_view=False))
        return looks

    def _clean_look(self, crops: Crops, step: int) -> _Look:
        affine = identity(len(crops), crops.spatial_dims, crops.images.device)
        return self._look(crops, affine, list(self.tasks), step, 0, is_view=False)

    def _view(self, crops: Crops, step: int, number: int) -> tuple[Crops, Tensor]:
        if number == 0 and self.views.clean:
            return crops, identity(len(crops), crops.spatial_dims, crops.images.device)
        draw = Draw(self.seed, step, crops.index, "views", crops.images.device).fork(f"view {number}")
        images, affine = make_view(crops.images, self.views, draw, crops.spacing)
        return crops.with_images(images), affine

    def _look(self, crops: Crops, affine: Tensor, names: Sequence[str], step: int, number: int, is_view: bool) -> _Look:
        look = _Look(crops, affine, is_view)
        for name, task in self._task_items():
            if name in names:
                draw = Draw(self.seed, step, crops.index, name, crops.images.device).fork(f"view {number}")
                look.questions[name] = ask(name, task, crops, draw, self._answerers[name])
        look.showings = arrange(
            list(look.questions.values()),
            crops.images,
            embeddings=is_view and "embeddings" in self.needs,
            feature_maps=is_view and "feature_maps" in self.needs,
        )
        look.hosts = {question.name: showing for showing in look.showings for question in showing.asked}
        return look

    def _read(self, look: _Look, trunk: Trunk, heads: dict[str, nn.Module]) -> None:
        """Run the network once for each showing of the look and let every head answer."""
        for showing in look.showings:
            parts: set[Part] = {self._answerers[question.name].reads for question in showing.asked}
            if showing.for_consistency:
                parts |= {"encoder_end"} if "embeddings" in self.needs else set()
                parts |= {"feature_map"} if "feature_maps" in self.needs else set()
            self._check_channels(showing)
            read = trunk(showing.inputs, parts)
            if showing.for_consistency:
                look.embedding = pool(read["encoder_end"].float()) if "embeddings" in self.needs else None
                look.feature_map = read["feature_map"].float() if "feature_maps" in self.needs else None
            for question in showing.asked:
                answerer = self._answerers[question.name]
                answer = heads[question.name](read[answerer.reads]).float()
                self._check_answer(question, answerer, answer, showing)
                look.answers[question.name] = answer

    def _answer(self, name: str, look: _Look) -> Tensor:
        """A task's answer on the grid its target has: a rider's goes through what its host restores."""
        answer, host = look.answers[name], look.hosts[name].host
        rides = look.questions[name].batch.inputs is None
        if rides and host is not None and host.restore is not None and isinstance(self._answerers[name].kind, DenseHead):
            return host.restore(answer)
        return answer

    def _task_loss(self, name: str, looks: Sequence[_Look]) -> Tensor:
        task: Any = self.tasks[name]
        values = []
        for look in looks:
            if name in look.questions:
                answer = self._answer(name, look)
                with blame(type(task), f"loss of task '{name}'"):
                    values.append(task.loss(answer, look.questions[name].batch))
                self._check_loss(values[-1], task, f"the loss of task '{name}'", len(look.crops))
        return torch.stack(values).mean()

    def _consistency_loss(self, name: str, views: Views) -> Tensor:
        loss: Any = self.losses[name]
        with blame(type(loss), f"consistency loss '{name}'"):
            value = loss(views)
        self._check_loss(value, loss, f"the consistency loss '{name}'", len(views.crops))
        mean: Tensor = value.mean()
        return mean

    def _teach(self, looks: Sequence[_Look]) -> list[_Look]:
        """What the teacher answers to the same questions; nothing where there is none."""
        if self.teacher is None or self._teacher_trunk is None:
            return []
        taught = []
        with torch.no_grad():
            for look in looks:
                if look.is_view:
                    taught.append(replace(look, answers={}, embedding=None, feature_map=None))
                    self._read(taught[-1], self._teacher_trunk, dict(self.teacher.heads.items()))
        return taught

    def _views(self, crops: Crops, looks: Sequence[_Look], taught: Sequence[_Look], progress: float) -> Views:
        views = self._as_views(crops, [look for look in looks if look.is_view], progress)
        return replace(views, teacher=self._as_views(crops, taught, progress)) if taught else views

    def _as_views(self, crops: Crops, looks: Sequence[_Look], progress: float) -> Views:
        answers = {}
        if "answers" in self.needs:
            for name, task in self._task_items():
                if task.same_for_views:
                    answers[name] = tuple(self._comparable(name, look) for look in looks)
        return Views(
            crops=crops,
            answers=answers,
            kinds={name: task.answer for name, task in self._task_items() if name in answers},
            embeddings=tuple(look.embedding for look in looks if look.embedding is not None),
            feature_maps=tuple(look.feature_map for look in looks if look.feature_map is not None),
            affines=torch.stack([look.affine for look in looks]),
            shown=shown_by_all([look.affine for look in looks], crops.size) if answers or "feature_maps" in self.needs else None,
            progress=progress,
        )

    def _comparable(self, name: str, look: _Look) -> Tensor:
        """A task's answer on the grid of the crops: first what its task moved is moved back, then what the view moved."""
        answer = look.answers[name]
        if not isinstance(self._answerers[name].kind, DenseHead):
            return answer
        host = look.hosts[name].host
        restored = host.restore(answer) if host is not None and host.restore is not None else answer
        return restored if is_identity(look.affine) else on_crops(restored, look.affine)

    def _check_terms(self) -> None:
        if not self.weights:
            raise ConfigError("nothing to learn: name at least one pretext task under `tasks:` or one loss under `consistency:`.")
        tasks = dict(self._task_items())
        for name, loss in self._loss_items():
            if "answers" in loss.needs and not any(task.same_for_views for task in tasks.values()):
                raise ConfigError(
                    f"'{name}' compares the answers of two views, and no task here gives both the same answer"
                    f"{' (' + ', '.join(tasks) + ')' if tasks else ''}. Add a task such as inpainting, or compare embeddings (simsiam)."
                )
            if "feature_maps" in loss.needs:
                require_dense(self.info, self.spec, f"the loss '{name}' compares feature maps")
        if self.views.transforms and not is_affine(self.views.transforms) and self.needs & {"answers", "feature_maps"}:
            raise ConfigError(
                "views.transforms move voxels in a way no affine describes, so the voxels of two views cannot be compared. "
                "Leave out elastic and grid distortions, or compare embeddings only (simsiam)."
            )
        asked = {name: task.input_channels(self.info.channels) for name, task in tasks.items()}
        if len(set(asked.values())) > 1:
            raise ConfigError(f"the tasks disagree about the channels of the network's input: {asked}. Train them in rounds (`from:`).")
        self._channels = next(iter(asked.values()), self.info.channels)

    def _check_crops(self, crops: Crops) -> None:
        if crops.spatial_dims != self.spec.spatial_dims or crops.images.shape[1] != self.info.channels:
            raise DataError(
                f"crops of shape {tuple(crops.images.shape)} do not fit the network: it takes {self.info.channels} channels "
                f"and {self.spec.spatial_dims} spatial dimensions. Change `network` or `data`."
            )

    def _check_channels(self, showing: Showing) -> None:
        shown = showing.inputs.shape[1]
        if shown == self._channels:
            return
        if showing.host is None:
            raise ConfigError(
                f"the tasks need a network of {self._channels} input channels, and something here (a loss on embeddings, or a task that "
                f"rides on another's input) has to show it the {shown} channels of the images alone. Train them in rounds (`from:`)."
            )
        who = provider_of(type(showing.asked[0].task))
        raise PluginError(f"task '{showing.asked[0].name}' ({who}) shows {shown} channels and announced {self._channels}.")

    def _check_answer(self, question: Question, answerer: Answerer, answer: Tensor, showing: Showing) -> None:
        if isinstance(answerer.kind, DenseHead):
            expected = (showing.inputs.shape[0], answerer.kind.channels, *showing.inputs.shape[2:])
            if tuple(answer.shape) != expected:
                raise DataError(
                    f"{self.spec} answers '{question.name}' with {tuple(answer.shape)} where {expected} was asked. "
                    "Take a crop whose sides the network can halve and double again."
                )

    def _check_loss(self, value: Any, owner: nn.Module, what: str, batch: int) -> None:
        if not isinstance(value, Tensor) or tuple(value.shape) != (batch,):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise PluginError(f"{what} ({provider_of(type(owner))}) gave {shape}; one value a sample, ({batch},), is needed.")

    def _make_teacher(self) -> Teacher:
        asked = {getattr(loss.options, "teacher_momentum", 0.996) for _, loss in self._loss_items() if "teacher" in loss.needs}
        if len(asked) > 1:
            raise ConfigError(f"there is one teacher, and the consistency losses ask for different teacher_momentum: {sorted(asked)}.")
        return Teacher(self.network, self._modules_of_heads(), asked.pop())

    def _modules_of_heads(self) -> dict[str, nn.Module]:
        return {name: answerer.module for name, answerer in self._answerers.items()}

    def _task_items(self) -> Iterator[tuple[str, Any]]:
        yield from self.tasks.items()

    def _loss_items(self) -> Iterator[tuple[str, Any]]:
        yield from self.losses.items()

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
