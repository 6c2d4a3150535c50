# ruff: noqa: D102 - the names of the checks are their documentation
"""What every pretext task promises, as tests: subclass and inherit.

    class TestInpainting(PretextTaskContract):
        task = Inpainting

Class attributes tell the suite what it cannot know: `options`, `channels`, `sizes`, `random = False` for a task that draws nothing,
`tokens = True` for one that leaves tokens out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from medssl.contracts import Crops, DenseHead, Draw, PretextBatch, PretextTask
from medssl.learn import Objective, Term, build_objective
from medssl.learn.promises import check_batch, check_head, check_own_rows, check_picture, cleaned
from medssl.testing.features import prediction_for, with_lesson
from medssl.testing.fixtures import make_crops, make_info, select
from medssl.testing.options import check_momentum, check_name_and_docs, check_options_round_trip, promised, take_over
from medssl.testing.steps import check_it_trains, check_micro_batches

BOTH = pytest.mark.parametrize("dims", [2, 3])


class PretextTaskContract:
    """Inherit these tests and set `task`."""

    task: ClassVar[type[PretextTask]]
    options: ClassVar[Mapping[str, Any]] = {}
    channels: ClassVar[int] = 1
    batch: ClassVar[int] = 4
    sizes: ClassVar[Mapping[int, tuple[int, ...]]] = {2: (32, 32), 3: (24, 32, 24)}
    random: ClassVar[bool] = True
    """False for a task that asks every crop the same, such as an autoencoder."""
    tokens: ClassVar[bool] = False
    """True for a task that needs an encoder which can leave tokens out; it is tried on a ViT, others on a UNet."""

    def __init_subclass__(cls) -> None:
        take_over(cls, vars(cls).get("task"))

    def build(self, dims: int) -> PretextTask:
        """The task for a small network; its first weights are always the same."""
        info = make_info(dims, self.channels, crop=self.sizes[dims], tokens=self.tokens)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return self.task(self.task.Options(**self.options), info)

    def objective(self, dims: int) -> Objective:
        """The task alone on a small network, ready to be trained."""
        name, options = "UNet", dict[str, Any](channels=[4, 8, 8], strides=[2, 2])
        if self.tokens:
            sizes = {"img_size": list(self.sizes[dims]), "patch_size": [4] * dims}
            name, options = "ViT", {**sizes, "hidden_size": 24, "mlp_dim": 48, "num_layers": 2, "num_heads": 2, "classification": True}
        spec = {"name": name, "spatial_dims": dims, "in_channels": self.channels, "options": options}
        term = Term("tasks", self.task.name, self.task, self.task.Options(**self.options), 1.0)
        return build_objective(spec, [term], seed=0, crop=self.sizes[dims])

    def crops(self, dims: int, seed: int = 0) -> Crops:
        """A small batch; of a task that compares the crops of a volume, two crops of each."""
        per_volume = 2 if self.task.compares == "group" else 1
        return make_crops(self.batch, self.sizes[dims], self.channels, seed, per_volume=per_volume, body="body" in self.task.needs)

    def make(self, task: PretextTask, crops: Crops, draw: Draw) -> PretextBatch:
        """The task's question, with what a teacher might have said where it needs one."""
        return with_lesson(task, task.make(crops, draw), crops)

    def draw(self, crops: Crops, step: int = 0) -> Draw:
        """The randomness of a step."""
        return Draw(0, step, crops.index, self.task.name, crops.images.device)

    def test_it_has_a_name_and_every_option_is_documented(self) -> None:
        check_name_and_docs(self.task, PretextTask)
        check_momentum(self.build(2))

    def test_options_survive_a_round_trip(self) -> None:
        check_options_round_trip(self.task, self.options)

    @BOTH
    def test_make_gives_inputs_and_a_target_that_fit_its_head(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        batch = task.make(crops, self.draw(crops))
        with promised():
            head = task.head()
            check_head(head, task, task.name)
            check_batch(batch, task, task.name, crops, head)
            shown = {"inputs": batch.inputs, "what clean() gave": cleaned(task, task.name, crops)}
        channels = task.input_channels(self.channels)
        for what, images in shown.items():
            assert images is None or images.shape[1] == channels, (
                f"{what} has {images.shape[1]} channels; input_channels() says {channels}."
            )
            assert images is None or torch.isfinite(images).all(), f"{what} holds NaN or infinity."
        if batch.visible is not None:
            self.check_visible(task, batch, batch.visible)

    @BOTH
    def test_inputs_keep_the_dtype_of_the_images(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        batch = self.make(task, crops, self.draw(crops))
        assert batch.inputs is None or batch.inputs.dtype == crops.images.dtype, f"inputs are {batch.inputs.dtype}."
        loss = task.loss(self.prediction(task, batch, crops), batch)
        assert loss.dtype == torch.float32, f"the loss of float32 predictions is {loss.dtype}."

    @BOTH
    def test_everything_stays_on_the_device_of_the_crops(self, dims: int) -> None:
        # A tensor made without a device lands on the default one; with that set to "meta" it is caught without a GPU.
        task, crops = self.build(dims), self.crops(dims)
        with torch.device("meta"):
            batch = task.make(crops, self.draw(crops))
        for name, value in {**vars(batch), **batch.extra}.items():
            assert not isinstance(value, Tensor) or value.device == crops.images.device, f"make(): '{name}' was made on {value.device}."
        batch = with_lesson(task, batch, crops)
        prediction = self.prediction(task, batch, crops)
        with torch.device("meta"):
            loss = task.loss(prediction, batch)
        assert loss.device == crops.images.device, f"the loss is on {loss.device}."

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
    @BOTH
    def test_a_gpu_asks_the_same_question(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        here = task.make(crops, self.draw(crops))
        moved = crops.to("cuda")
        there = self.build(dims).to("cuda").make(moved, self.draw(moved))
        torch.testing.assert_close(there.target.cpu(), here.target, atol=1e-4, rtol=1e-4)
        if here.inputs is not None and there.inputs is not None:
            torch.testing.assert_close(there.inputs.cpu(), here.inputs, atol=1e-4, rtol=1e-4)

    @BOTH
    def test_the_draw_alone_decides(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        with other_global_randomness(1):
            one = task.make(crops, self.draw(crops))
        with other_global_randomness(2) as unchanged:
            other = task.make(crops, self.draw(crops))
            assert unchanged(), "make() uses or seeds a global random generator; draw everything from `draw`."
        assert same(one.inputs, other.inputs) and same(one.target, other.target), "the same draw gave two questions."

    @BOTH
    def test_crops_are_left_as_they_were(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        before = deepcopy(crops)
        batch = self.make(task, crops, self.draw(crops))
        prediction = self.prediction(task, batch, crops)
        task.loss(prediction, batch)
        task.trivial(batch)
        task.picture(prediction.detach(), batch)
        for name, value in vars(before).items():
            assert same(value, getattr(crops, name)) if isinstance(value, Tensor) else True, f"crops.{name} was changed in place."

    @BOTH
    def test_every_sample_gets_its_own_question(self, dims: int) -> None:
        if not self.random:
            pytest.skip("this task draws nothing")
        task, crops = self.build(dims), self.crops(dims)
        alike = crops.with_images(crops.images[:1].expand_as(crops.images).contiguous())
        batch = task.make(alike, self.draw(alike))
        questions = [self.question(batch, row, len(alike)) for row in range(len(alike))]
        assert any(not same(questions[0], question) for question in questions[1:]), "equal crops in one batch all got the same question."
        later = task.make(alike, self.draw(alike, step=1))
        assert not all(same(self.question(later, row, len(alike)), questions[row]) for row in range(len(alike))), (
            "the next step asks the same questions again."
        )

    @BOTH
    def test_a_sample_does_not_depend_on_its_neighbours(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        if task.compares == "batch":
            pytest.skip("this task compares all crops of a batch")
        together = self.make(task, crops, self.draw(crops))
        groups = [[row for row, group in enumerate(crops.group.tolist()) if group == one] for one in sorted(set(crops.group.tolist()))]
        for rows in groups if task.compares == "group" else [[row] for row in range(len(crops))]:
            some = select(crops, rows)
            alone = task.make(some, self.draw(some))
            for place, row in enumerate(rows):
                near = close(self.question(together, row, len(crops)), self.question(alone, place, len(rows)))
                assert near, f"sample {row} is asked something else when the crops of other volumes are not in the batch."
        mine = len(groups[0]) if task.compares == "group" else 1
        prediction = self.prediction(task, together, crops).detach()
        changed = prediction.clone()
        own = mine * (len(prediction) // len(crops))
        changed[own:] = changed[own:].flip(0) * 3 - 1
        leaks = "the loss of a sample changes with the predictions of others: say so by `compares`, or keep them apart."
        assert close(task.loss(prediction, together)[:mine], task.loss(changed, together)[:mine]), leaks
        with promised():
            check_own_rows(task.loss, task, task.name, prediction, together)

    @BOTH
    def test_the_loss_is_one_finite_value_a_sample(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        empty = crops.with_images(torch.zeros_like(crops.images))
        for kind, shown in (("usual", crops), ("constant", empty)):
            batch = self.make(task, shown, self.draw(shown))
            loss = task.loss(self.prediction(task, batch, shown), batch)
            assert tuple(loss.shape) == (len(crops),), f"the loss has shape {tuple(loss.shape)}; one value a sample is needed."
            assert torch.isfinite(loss).all(), f"the loss of {kind} crops is {loss.tolist()}."

    @BOTH
    def test_gradients_reach_the_prediction(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        batch = self.make(task, crops, self.draw(crops))
        prediction = self.prediction(task, batch, crops)
        loss = task.loss(prediction, batch)
        assert loss.requires_grad, "the loss is cut from the graph: no gradient reaches the network."
        (gradient,) = torch.autograd.grad(loss.sum(), prediction)
        assert torch.isfinite(gradient).all(), "the gradient holds NaN or infinity."
        assert gradient.abs().sum() > 0, "no gradient reaches the network."

    @BOTH
    def test_restore_makes_predictions_comparable(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        one, other = (task.make(crops, self.draw(crops, step)) for step in (0, 1))
        if task.same_for_views:
            answers = [restored(batch, dense_target(batch.target, task.head())) for batch in (one, other)]
            told = "same_for_views promises that the right answer, restored, does not depend on the draw; it does."
            assert mostly_close(answers[0], answers[1]), told
        if one.restore is not None and one.inputs is not None:
            back = one.restore(one.inputs)
            assert back.shape[2:] == crops.images.shape[2:], f"restore gave a grid of {tuple(back.shape[2:])} for crops of {crops.size}."
            if back.shape == one.inputs.shape == crops.images.shape:
                moved, undone = ((images - crops.images).abs().mean() for images in (one.inputs, back))
                assert undone < moved or moved == 0, "restore does not bring voxels back to where they were in the crop."

    @BOTH
    def test_the_trivial_answer_is_a_prediction(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        batch = self.make(task, crops, self.draw(crops))
        trivial = task.trivial(batch)
        if trivial is None:
            return
        expected = self.prediction(task, batch, crops).shape
        assert trivial.shape == expected, f"trivial() has shape {tuple(trivial.shape)}, a prediction {tuple(expected)}."
        loss = task.loss(trivial, batch)
        assert torch.isfinite(loss).all(), "the loss of the trivial answer is not finite."

    @BOTH
    def test_pictures_are_images(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        batch = self.make(task, crops, self.draw(crops))
        with promised():
            for what, image in task.picture(self.prediction(task, batch, crops).detach(), batch).items():
                check_picture(image, task, task.name, what, dims)

    @BOTH
    def test_state_survives_a_checkpoint(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        names = {name: tuple(value.shape) for name, value in task.state_dict().items()}
        first = self.make(task, crops, self.draw(crops))
        with torch.no_grad():
            task.commit(self.prediction(task, first, crops).detach(), replace(first, restore=None))
        after = {name: tuple(value.shape) for name, value in task.state_dict().items()}
        assert names == after, "commit changes names or shapes of the state, so a checkpoint of one step does not load into another."
        other = self.build(dims)
        other.load_state_dict(task.state_dict())
        batch, again = self.make(task, crops, self.draw(crops)), self.make(deepcopy(other), crops, self.draw(crops))
        assert same(batch.target, again.target), "a task with the same state asks another question."
        prediction = self.prediction(task, batch, crops)
        told = "a task with the same state gives another loss: its state is not all saved."
        assert close(task.loss(prediction, batch), other.loss(prediction, again)), told

    @BOTH
    def test_measures_are_one_value_a_sample(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        batch = self.make(task, crops, self.draw(crops))
        for what, value in task.measure(self.prediction(task, batch, crops).detach(), batch).items():
            assert tuple(value.shape) == (len(crops),), f"the measure '{what}' has shape {tuple(value.shape)}; ({len(crops)},) is needed."
            assert torch.isfinite(value).all(), f"the measure '{what}' is {value.tolist()}."
            assert what != "answerable", "the share of samples that can be answered is measured by medssl: call yours otherwise."

    @BOTH
    def test_the_loss_changes_no_state(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        batch, before = self.make(task, crops, self.draw(crops)), deepcopy(task.state_dict())
        task.loss(self.prediction(task, batch, crops), batch)
        assert all(same(value, before[name]) for name, value in task.state_dict().items()), (
            "make or loss changes the state; only commit may."
        )

    @BOTH
    def test_it_trains_a_network(self, dims: int) -> None:
        check_it_trains(self.objective(dims), self.crops(dims), self.task.name)

    @BOTH
    def test_two_micro_batches_make_what_one_batch_would(self, dims: int) -> None:
        if self.task.compares == "batch":
            pytest.skip("this task compares all crops of a batch")
        check_micro_batches(self.objective(dims), self.objective(dims), self.crops(dims), "tasks.")

    def check_visible(self, task: PretextTask, batch: PretextBatch, visible: Tensor) -> None:
        """Tokens that are left visible are numbers of tokens, each once."""
        count = task.network.tokens
        assert count, "`visible` leaves tokens out: set `tokens = True` in the suite, and refuse networks without tokens in __init__."
        assert visible.dtype == torch.int64 and visible.dim() == 2, f"`visible` is {visible.dtype} of shape {tuple(visible.shape)}."
        assert batch.inputs is not None and len(visible) == len(batch.inputs), "`visible` needs one row an input."
        assert bool(((visible >= 0) & (visible < count)).all()), f"`visible` names tokens beyond 0 .. {count - 1}."
        assert all(len(set(row)) == len(row) for row in visible.tolist()), "`visible` names a token twice."

    def prediction(self, task: PretextTask, batch: PretextBatch, crops: Crops) -> Tensor:
        """A random prediction of the right shape, with a gradient."""
        return prediction_for(task, batch, crops)

    def question(self, batch: PretextBatch, row: int, rows: int) -> list[Tensor]:
        """What sample `row` is asked: its inputs, target and weight."""
        found = [batch.target[row : row + 1]]
        if batch.inputs is not None:
            parts = batch.inputs.shape[0] // rows
            found.append(batch.inputs[row * parts : (row + 1) * parts])
        if batch.weight is not None:
            found.append(batch.weight[row : row + 1])
        return found


def restored(batch: PretextBatch, answer: Tensor) -> Tensor:
    """A dense answer on the grid of the crops."""
    return batch.restore(answer) if batch.restore is not None else answer


def dense_target(target: Tensor, head: Any) -> Tensor:
    """The target as the perfect prediction: class numbers become one-hot channels."""
    if isinstance(head, DenseHead) and not target.is_floating_point():
        numbers = target if target.dim() < 4 or target.shape[1] != 1 else target[:, 0]
        return torch.nn.functional.one_hot(numbers.long(), head.channels).movedim(-1, 1).float()
    return target


def same(one: Any, other: Any) -> bool:
    """Equal tensors, lists of equal tensors, or both None."""
    if isinstance(one, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def close(one: Any, other: Any) -> bool:
    """Equal up to rounding."""
    if isinstance(one, list):
        return len(one) == len(other) and all(close(a, b) for a, b in zip(one, other, strict=True))
    return bool(one.shape == other.shape and torch.allclose(one.float(), other.float(), atol=1e-4, rtol=1e-4))


def mostly_close(one: Tensor, other: Tensor) -> bool:
    """Equal up to interpolation on at least two thirds of the voxels: borders may be lost in moving."""
    if one.shape != other.shape:
        return False
    scale = one.float().std().clamp_min(1e-6)
    return bool(((one.float() - other.float()).abs() < 0.2 * scale).float().mean() > 2 / 3) if one.numel() > 64 else close(one, other)


@contextmanager
def other_global_randomness(seed: int) -> Iterator[Any]:
    """Global generators seeded with `seed`; yields a function that says whether they were left alone, and puts them back."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - the legacy global generator is what is guarded
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    start = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index] # noqa: NPY002

    def unchanged() -> bool:
        legacy: Any = np.random.get_state()  # noqa: NPY002
        return torch.equal(start[0], torch.get_rng_state()) and bool((start[1] == legacy[1]).all()) and start[2] == random.getstate()

    try:
        yield unchanged
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
