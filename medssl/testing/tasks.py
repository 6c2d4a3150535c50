# ruff: noqa: D102 - the names of the checks are their documentation
"""What every pretext task promises, as tests: subclass and inherit.

    class TestInpainting(PretextTaskContract):
        task = Inpainting

Class attributes tell the suite what it cannot know: `options`, `channels`, `sizes`, `random = False` for a task that draws nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from medssl.augment import ViewOptions
from medssl.contracts import Crops, DenseHead, Draw, ModuleHead, NetworkInfo, PooledHead, PretextBatch, PretextTask
from medssl.learn.objective import Objective
from medssl.networks import as_spec, network_info
from medssl.testing.fixtures import make_crops, make_info, select
from medssl.testing.options import check_name_and_docs, check_options_round_trip

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

    def build(self, dims: int) -> PretextTask:
        """The task for a small network."""
        return self.task(self.task.Options(**self.options), make_info(dims, self.channels))

    def crops(self, dims: int, seed: int = 0) -> Crops:
        """A small batch."""
        return make_crops(self.batch, self.sizes[dims], self.channels, seed)

    def draw(self, crops: Crops, step: int = 0) -> Draw:
        """The randomness of a step."""
        return Draw(0, step, crops.index, self.task.name, crops.images.device)

    def test_it_has_a_name_and_every_option_is_documented(self) -> None:
        check_name_and_docs(self.task)
        assert self.task.answer in ("values", "logits"), "`answer` says what the head gives: 'values' or 'logits'."

    def test_options_survive_a_round_trip(self) -> None:
        check_options_round_trip(self.task, self.options)

    @BOTH
    def test_make_gives_inputs_and_a_target_that_fit_its_head(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        batch = task.make(crops, self.draw(crops))
        assert isinstance(batch, PretextBatch), f"make() gave {type(batch).__name__}, not a PretextBatch."
        head = task.head()
        assert isinstance(head, DenseHead | PooledHead | ModuleHead), f"head() gave {type(head).__name__}."
        if batch.inputs is not None:
            parts = head.parts if isinstance(head, PooledHead) else 1
            expected = (parts * len(crops), task.input_channels(self.channels))
            assert tuple(batch.inputs.shape[:2]) == expected, f"inputs have shape {tuple(batch.inputs.shape)}; {expected} must come first."
            assert batch.inputs.dim() == dims + 2, f"inputs of {dims}D crops have shape {tuple(batch.inputs.shape)}."
            assert torch.isfinite(batch.inputs).all(), "inputs hold NaN or infinity."
        assert batch.target.shape[0] == len(crops), f"the target has {batch.target.shape[0]} rows for {len(crops)} crops."

    @BOTH
    def test_inputs_keep_the_dtype_of_the_images(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        batch = task.make(crops, self.draw(crops))
        assert batch.inputs is None or batch.inputs.dtype == crops.images.dtype, f"inputs are {batch.inputs.dtype}."
        loss = task.loss(self.prediction(task, batch, crops), batch)
        assert loss.dtype == torch.float32, f"the loss of float32 predictions is {loss.dtype}."

    @BOTH
    def test_everything_stays_on_the_device_of_the_crops(self, dims: int) -> None:
        # A tensor made without a device lands on the default one; with that set to "meta" it is caught without a GPU.
        task, crops = self.build(dims), self.crops(dims)
        with torch.device("meta"):
            batch = task.make(crops, self.draw(crops))
        for name, value in vars(batch).items():
            assert not isinstance(value, Tensor) or value.device == crops.images.device, f"make(): '{name}' was made on {value.device}."
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
        batch = task.make(crops, self.draw(crops))
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
        together = task.make(crops, self.draw(crops))
        for row in range(len(crops)):
            one = select(crops, [row])
            alone = task.make(one, self.draw(one))
            near = close(self.question(together, row, len(crops)), self.question(alone, 0, 1))
            assert near, f"sample {row} is asked something else when it is alone in the batch."
        prediction = self.prediction(task, together, crops).detach()
        changed = prediction.clone()
        changed[1:] = changed[1:].flip(0) * 3 - 1
        leaks = "the loss of a sample changes with the predictions of its neighbours."
        assert close(task.loss(prediction, together)[:1], task.loss(changed, together)[:1]), leaks

    @BOTH
    def test_the_loss_is_one_finite_value_a_sample(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        empty = crops.with_images(torch.zeros_like(crops.images))
        for kind, shown in (("usual", crops), ("constant", empty)):
            batch = task.make(shown, self.draw(shown))
            loss = task.loss(self.prediction(task, batch, shown), batch)
            assert tuple(loss.shape) == (len(crops),), f"the loss has shape {tuple(loss.shape)}; one value a sample is needed."
            assert torch.isfinite(loss).all(), f"the loss of {kind} crops is {loss.tolist()}."

    @BOTH
    def test_gradients_reach_the_prediction(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        batch = task.make(crops, self.draw(crops))
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
                assert undone <= moved, "restore does not bring voxels back to where they were in the crop."

    @BOTH
    def test_the_trivial_answer_is_a_prediction(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        batch = task.make(crops, self.draw(crops))
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
        batch = task.make(crops, self.draw(crops))
        for what, image in task.picture(self.prediction(task, batch, crops).detach(), batch).items():
            assert image.dim() == dims + 2, f"the picture '{what}' has shape {tuple(image.shape)}; (B, C, *size) is needed."

    @BOTH
    def test_state_survives_a_checkpoint(self, dims: int) -> None:
        task, crops = self.build(dims), self.crops(dims)
        other = self.build(dims)
        other.load_state_dict(task.state_dict())
        batch = task.make(crops, self.draw(crops))
        again = deepcopy(other).make(crops, self.draw(crops))
        assert same(batch.target, again.target), "a task with the same state asks another question."

    @BOTH
    def test_it_trains_a_network(self, dims: int) -> None:
        options = {"channels": [4, 8, 8], "strides": [2, 2]}
        spec = as_spec({"name": "UNet", "spatial_dims": dims, "in_channels": self.channels, "options": options})
        task = self.task(self.task.Options(**self.options), network_info(spec))
        network = spec.build(in_channels=task.input_channels(self.channels), seed=0)
        objective = Objective(network, spec, [(task, 1.0)], [], ViewOptions(), seed=0)
        loss = objective(self.crops(dims), step=0)["loss"]
        loss.backward()
        assert torch.isfinite(loss), f"the loss of a training step is {float(loss.detach())}."
        reached = sum(float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None)
        assert reached > 0, "no gradient reaches the network's parameters."

    def prediction(self, task: PretextTask, batch: PretextBatch, crops: Crops) -> Tensor:
        """A random prediction of the right shape, with a gradient."""
        head, rows = task.head(), len(crops)
        generator = torch.Generator().manual_seed(7)
        size = crops.size if batch.inputs is None else tuple(batch.inputs.shape[2:])
        if isinstance(head, ModuleHead):
            return self._own_answer(head, task.network, rows if batch.inputs is None else batch.inputs.shape[0], size)
        if isinstance(head, DenseHead):
            shape = (rows if batch.inputs is None else batch.inputs.shape[0], head.channels, *size)
        else:
            shape = (rows, head.outputs) if head.join == "concat" or head.parts == 1 else (rows, head.parts, head.outputs)
        return torch.randn(shape, generator=generator).requires_grad_()

    def _own_answer(self, head: ModuleHead, info: NetworkInfo, rows: int, size: tuple[int, ...]) -> Tensor:
        grid = tuple(side // stride for side, stride in zip(size, info.strides, strict=True))
        shape = (rows, info.feature_width, *size) if head.reads == "feature_map" else (rows, info.embedding_width, *grid)
        read = torch.randn(shape, generator=torch.Generator().manual_seed(7))
        answer: Tensor = head.module(read)
        return answer.detach().requires_grad_()

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
