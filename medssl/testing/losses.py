# ruff: noqa: D102 - the names of the checks are their documentation
"""What every consistency loss promises, as tests: subclass and inherit.

    class TestSimSiam(ConsistencyLossContract):
        loss = SimSiam

A loss with negatives or batch statistics says so itself (`compares = "batch"`): its sample's loss rightly depends on its neighbours.
`only` names one of the tasks beside which it is tried, where one kind of answer alone makes sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from medssl.contracts import ConsistencyLoss, Crops, NetworkInfo, Views
from medssl.learn import Objective, Term, build_objective
from medssl.testing.fixtures import make_crops, make_info, make_views, select
from medssl.testing.options import check_momentum, check_name_and_docs, check_options_round_trip, take_over
from medssl.testing.steps import Dense, Parts, Pooled, check_it_trains, check_micro_batches
from medssl.testing.tasks import BOTH, close, other_global_randomness, same


class ConsistencyLossContract:
    """Inherit these tests and set `loss`."""

    loss: ClassVar[type[ConsistencyLoss]]
    options: ClassVar[Mapping[str, Any]] = {}
    batch: ClassVar[int] = 4
    only: ClassVar[str | None] = None
    """For losses on answers "dense" (values) or "pooled" (logits), for those on task embeddings "dense" or "parts" (two a crop)."""

    def __init_subclass__(cls) -> None:
        take_over(cls, vars(cls).get("loss"))

    def build(self, dims: int) -> ConsistencyLoss:
        """The loss for a small network; its first weights are always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return self.loss(self.loss.Options(**self.options), make_info(dims))

    def crops(self, dims: int) -> Crops:
        """A small batch; for a loss that compares the crops of a volume, two crops of each."""
        per_volume = 2 if self.loss.compares == "group" else 1
        return make_crops(self.batch, (8,) * dims, per_volume=per_volume, body="body" in self.loss.needs)

    def objective(self, dims: int) -> Objective:
        """The loss on a small network, beside the tasks that it needs."""
        asked = {"answers": (Dense, Pooled), "task_embeddings": (Dense, Parts)}
        tasks = dict.fromkeys(task for need, some in asked.items() if need in self.loss.needs for task in some)
        terms = [Term("tasks", task.name, task, task.Options(), 1.0) for task in tasks if self.only in (None, task.name)]
        loss = Term("consistency", self.loss.name, self.loss, self.loss.Options(**self.options), 1.0)
        spec = {"name": "UNet", "spatial_dims": dims, "options": {"channels": [4, 8, 8], "strides": [2, 2]}}
        return build_objective(spec, terms, [loss], seed=0, crop=(8,) * dims)

    def views(self, crops: Crops, info: NetworkInfo, seed: int = 0) -> Views:
        """Two random views, reduced to what the loss says it needs."""
        made = make_views(crops, info, seed=seed)
        return self.reduced(made)

    def reduced(self, views: Views) -> Views:
        """What the objective would compute for this loss, and nothing else."""
        given = self.of_task(views).only(self.loss.needs)
        if given.teacher is None:
            return given
        own = dict(self.build(views.crops.spatial_dims).named_children())
        modules = {name: own[name].requires_grad_(False) for name in self.loss.teacher_follows}
        return replace(given, teacher=replace(self.of_task(given.teacher), modules=modules))

    def of_task(self, views: Views) -> Views:
        """The views with what belongs to the task `only` alone."""
        kept: list[dict[str, Any]] = [
            {name: value for name, value in found.items() if self.only in (None, name)}
            for found in (views.answers, views.kinds, views.task_embeddings)
        ]
        return replace(views, answers=kept[0], kinds=kept[1], task_embeddings=kept[2])

    def test_it_has_a_name_and_every_option_is_documented(self) -> None:
        check_name_and_docs(self.loss, ConsistencyLoss)
        assert self.loss.needs, "`needs` names nothing: there would be nothing to compare."
        check_momentum(self.build(2))

    def test_options_survive_a_round_trip(self) -> None:
        check_options_round_trip(self.loss, self.options)

    @BOTH
    def test_the_loss_is_one_finite_value_a_sample(self, dims: int) -> None:
        loss, crops = self.build(dims), self.crops(dims)
        value = loss(self.views(crops, loss.network))
        assert tuple(value.shape) == (self.batch,), f"the loss has shape {tuple(value.shape)}; one value a sample is needed."
        assert torch.isfinite(value).all(), f"the loss is {value.tolist()}."
        assert value.dtype == torch.float32, f"the loss of float32 views is {value.dtype}."

    @BOTH
    def test_equal_and_empty_views_stay_finite(self, dims: int) -> None:
        loss, crops = self.build(dims), self.crops(dims)
        views = self.views(crops, loss.network)
        for kind, factor in (("equal", 1.0), ("all-zero", 0.0)):
            equal, leaves = as_leaves(alike(views, factor))
            value = loss(equal)
            assert torch.isfinite(value).all(), f"the loss of {kind} views is {value.tolist()}."
            gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
            finite = all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)
            assert finite, f"the gradient of {kind} views holds NaN or infinity."

    @BOTH
    def test_everything_stays_on_the_device_of_the_views(self, dims: int) -> None:
        loss, crops = self.build(dims), self.crops(dims)
        views = self.views(crops, loss.network)
        with torch.device("meta"):
            value = loss(views)
        assert value.device == crops.images.device, f"the loss is on {value.device}."

    @BOTH
    def test_forward_is_pure(self, dims: int) -> None:
        loss, crops = self.build(dims), self.crops(dims)
        views, before, state = self.views(crops, loss.network), self.views(crops, loss.network), deepcopy(loss.state_dict())
        with other_global_randomness(1):
            one = loss(views)
        with other_global_randomness(2):
            other = loss(views)
        assert close(one, other), "the same views gave two losses: forward draws at random or changes its own state."
        assert all(same(value, state[name]) for name, value in loss.state_dict().items()), "forward changes the state; only commit may."
        assert same(tensors_of(views), tensors_of(before)), "the views were changed in place."

    @BOTH
    def test_gradients_reach_the_views(self, dims: int) -> None:
        loss, crops = self.build(dims), self.crops(dims)
        views, leaves = as_leaves(self.views(crops, loss.network))
        value = loss(views)
        assert value.requires_grad, "the loss is cut from the graph: no gradient reaches the network."
        gradients = [g for g in torch.autograd.grad(value.sum(), leaves, allow_unused=True) if g is not None]
        assert gradients and all(torch.isfinite(g).all() for g in gradients), "the gradient holds NaN or infinity, or there is none."
        assert sum(float(g.abs().sum()) for g in gradients) > 0, "no gradient reaches the network."

    @BOTH
    def test_a_sample_does_not_depend_on_its_neighbours(self, dims: int) -> None:
        if self.loss.compares == "batch":
            pytest.skip("this loss compares samples with each other")
        loss, crops = self.build(dims), self.crops(dims)
        together = loss(self.views(crops, loss.network))
        for group in sorted(set(crops.group.tolist())):
            rows = [row for row, other in enumerate(crops.group.tolist()) if other == group]
            alone = loss(self.views(select(crops, rows), loss.network))
            told = f"the loss of sample {rows[0]} changes with its neighbours: say so by `compares`, or keep them apart."
            assert close(together[rows], alone), told

    @BOTH
    def test_voxels_that_a_view_does_not_show_do_not_count(self, dims: int) -> None:
        if "answers" not in self.loss.needs or self.only == "pooled":
            pytest.skip("this loss compares no dense answers")
        loss, crops = self.build(dims), self.crops(dims)
        views = self.views(crops, loss.network)
        assert views.shown is not None
        first, *rest = views.answers["dense"]
        changed = replace(views, answers={**views.answers, "dense": (torch.where(views.shown, first, first + 100), *rest)})
        assert close(loss(views), loss(changed)), "voxels that not every view shows are compared."

    @BOTH
    def test_training_on_it_lowers_it(self, dims: int) -> None:
        loss, crops = self.build(dims), self.crops(dims)
        views, leaves = as_leaves(self.views(crops, loss.network))
        optimizer = torch.optim.Adam([*leaves, *loss.parameters()], lr=0.05)
        first = float(loss(views).mean().detach())
        for _ in range(25):
            optimizer.zero_grad()
            loss(views).mean().backward()
            optimizer.step()
        last = float(loss(views).mean().detach())
        assert last < first, f"25 steps of gradient descent took the loss from {first:.4f} to {last:.4f}."

    @BOTH
    def test_state_survives_a_checkpoint(self, dims: int) -> None:
        loss, crops = self.build(dims), self.crops(dims)
        views = self.views(crops, loss.network)
        names = {name: tuple(value.shape) for name, value in loss.state_dict().items()}
        with torch.no_grad():
            loss.commit(views.detach())
            loss.commit(self.views(crops, loss.network, seed=5).detach())
        after = {name: tuple(value.shape) for name, value in loss.state_dict().items()}
        assert names == after, "commit changes names or shapes of the state, so a checkpoint of one step does not load into another."
        other = self.build(dims)
        other.load_state_dict(loss.state_dict())
        assert close(loss(views), deepcopy(other)(views)), "a loss with the same state gives another value: its state is not all saved."

    @BOTH
    def test_it_trains_a_network(self, dims: int) -> None:
        check_it_trains(self.objective(dims), self.crops(dims), self.loss.name)

    @BOTH
    def test_two_micro_batches_make_what_one_batch_would(self, dims: int) -> None:
        if self.loss.compares == "batch":
            pytest.skip("this loss compares samples with each other")
        check_micro_batches(self.objective(dims), self.objective(dims), self.crops(dims), "losses.")


def tensors_of(views: Views) -> list[Tensor]:
    """Everything a network computed, in one list."""
    by_task = [*views.answers.values(), *views.task_embeddings.values()]
    return [*[tensor for tensors in by_task for tensor in tensors], *views.embeddings, *views.feature_maps]


def alike(views: Views, scale: float) -> Views:
    """The views with everything that a network computed replaced by that of the first view, times `scale`."""

    def first(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensors[0] * scale for _ in tensors)

    return replace(
        views,
        answers={name: first(tensors) for name, tensors in views.answers.items()},
        task_embeddings={name: first(tensors) for name, tensors in views.task_embeddings.items()},
        embeddings=first(views.embeddings),
        feature_maps=first(views.feature_maps),
    )


def as_leaves(views: Views) -> tuple[Views, list[Tensor]]:
    """The views with tensors that take a gradient, and these tensors."""
    fresh = views.mapped(lambda tensor: tensor.detach().clone().requires_grad_())
    return fresh, tensors_of(fresh)
