"""Each check of the public contract suites fails for a task or loss that breaks what it guards."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import pytest
import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from medssl.config import BaseOptions
from medssl.contracts import (
    Compares,
    ConsistencyLoss,
    Crops,
    DenseHead,
    Draw,
    Head,
    Needs,
    PooledHead,
    PretextBatch,
    PretextTask,
    TaskNeeds,
    Views,
)
from medssl.testing import ConsistencyLossContract, PretextTaskContract, select


class Shift(PretextTask):
    """Bring a rolled crop back: a sound task that moves voxels, invented for these tests."""

    name: ClassVar[str] = "shift"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    same_for_views: ClassVar[bool] = True

    class Options(BaseOptions):
        """How far."""

        most: int = Field(default=5, ge=1)
        """Largest shift in voxels."""
        pair: tuple[int, int] = (1, 2)
        """Only here to be sent through JSON."""

    options: Options

    def head(self) -> Head:
        return DenseHead(self.network.channels)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        steps = draw.integers(1, self.options.most + 1)
        inputs = roll(crops.images, steps)
        return PretextBatch(inputs, inputs, restore=lambda answer: roll(answer, -steps))

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return (prediction - batch.target).square().flatten(1).mean(1)

    def trivial(self, batch: PretextBatch) -> Tensor | None:
        return torch.zeros_like(batch.target)

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        return {"target": batch.target}


def roll(images: Tensor, steps: Tensor) -> Tensor:
    return torch.stack([image.roll(int(step), -1) for image, step in zip(images, steps, strict=True)])


class TestShift(PretextTaskContract):
    """The sound task passes."""

    task = Shift


class Nameless(Shift):
    """It calls itself by three words."""

    name = "Shift The Crop"


class Undocumented(Shift):
    """An option has no help."""

    class Options(BaseOptions):
        """Bare."""

        most: int = 5


class Forgetful(Shift):
    """Its options change in JSON."""

    class Options(Shift.Options):
        """Unknown keys are dropped."""

        model_config = ConfigDict(extra="ignore")


class WrongParts(Shift):
    """Gives one input and announces two parts."""

    def head(self) -> Head:
        return PooledHead(3, parts=2)


class Double(Shift):
    """Turns inputs to float64."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        batch = super().make(crops, draw)
        return replace(batch, inputs=batch.target.double())


class Deviceless(Shift):
    """Makes a tensor without a device."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return replace(super().make(crops, draw), weight=torch.ones(len(crops)))


class DevicelessLoss(Shift):
    """Makes a tensor without a device in its loss."""

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return super().loss(prediction, batch) * torch.ones(prediction.shape[0])


class GlobalTorch(Shift):
    """Draws from torch's global generator."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        batch = super().make(crops, draw)
        return replace(batch, inputs=batch.target + torch.randn_like(batch.target))


class GlobalPython(Shift):
    """Moves the standard library's generator."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        random.random()
        return super().make(crops, draw)


class InPlace(Shift):
    """Changes the crops."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        batch = super().make(crops, draw)
        crops.images.mul_(2)
        return batch


class InPlaceLoss(Shift):
    """Changes the crops when the loss is taken, through the target."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(super().make(crops, draw).inputs, crops.images)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        batch.target.add_(1)
        return super().loss(prediction, batch)


class SameForAll(Shift):
    """Shifts every sample alike."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        steps = draw.integers(1, 6)[:1].expand(len(crops))
        inputs = roll(crops.images, steps)
        return PretextBatch(inputs, inputs, restore=lambda answer: roll(answer, -steps))


class EveryStepAlike(Shift):
    """Asks the same at every step."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        inputs = roll(crops.images, crops.index + 1)
        return PretextBatch(inputs, inputs, restore=lambda answer: roll(answer, -(crops.index + 1)))


class BatchMean(Shift):
    """Subtracts the batch's mean."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        batch = super().make(crops, draw)
        return replace(batch, inputs=batch.target - batch.target.max())


class BatchLoss(Shift):
    """Divides by the batch's error."""

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        value = super().loss(prediction, batch)
        return value / value.mean()


class Scalar(Shift):
    """One number for the batch."""

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return super().loss(prediction, batch).mean()


class NotFinite(Shift):
    """Divides by the spread of a crop that may be constant."""

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return super().loss(prediction, batch) / batch.target.flatten(1).std(1)


class Detached(Shift):
    """Cuts the graph."""

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return super().loss(prediction.detach(), batch)


class ZeroGradient(Shift):
    """Multiplies the prediction away."""

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return super().loss(prediction * 0, batch)


class WrongWay(Shift):
    """Restores in the wrong direction."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        steps = draw.integers(1, 6)
        inputs = roll(crops.images, steps)
        return PretextBatch(inputs, inputs, restore=lambda answer: roll(answer, steps))


class NoRestore(Shift):
    """Forgets to say how voxels moved."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return replace(super().make(crops, draw), restore=None)


class BadTrivial(Shift):
    """Its trivial answer has no channels."""

    def trivial(self, batch: PretextBatch) -> Tensor | None:
        return torch.zeros(len(batch.target))


class BadPicture(Shift):
    """Its picture is a vector."""

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        return {"target": batch.target.flatten()}


class BadMeasure(Shift):
    """Its measure is one number for the batch."""

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        return {"error": (prediction - batch.target).abs().mean()}


class TakenMeasure(Shift):
    """Measures under the name of medssl's own."""

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        return {"answerable": prediction.detach().flatten(1).mean(1)}


class Counting(Shift):
    """Counts its losses where a checkpoint sees it."""

    def __init__(self, options: BaseOptions, network: object) -> None:
        super().__init__(options, network)  # type: ignore[arg-type]
        self.register_buffer("count", torch.zeros(()))

    count: Tensor

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        self.count += 1
        return super().loss(prediction, batch)


class CountsBatches(Shift):
    """Learns from how large the batch is."""

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return super().loss(prediction, batch) * len(prediction)


class DoNothing(Shift):
    """Restores nothing."""

    same_for_views: ClassVar[bool] = False

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return replace(super().make(crops, draw), restore=lambda answer: answer)


class ForgetsTheGrid(Shift):
    """Its uncorrupted input has another size."""

    def clean(self, crops: Crops) -> Tensor:
        return crops.images[..., 1:]


class UnsavedState(Shift):
    """Keeps what it needs where no checkpoint sees it."""

    made: ClassVar[list[int]] = []

    def __init__(self, options: BaseOptions, network: object) -> None:
        super().__init__(options, network)  # type: ignore[arg-type]
        self.made.append(0)
        self.number = len(self.made)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        batch = super().make(crops, draw)
        return replace(batch, target=batch.target + self.number)


class Flagged(Shift):
    """Says by numbers which samples can be answered."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return replace(super().make(crops, draw), answerable=torch.ones(len(crops), device=crops.images.device))


class TokensTwice(Shift):
    """Shows a token twice."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        visible = torch.zeros((len(crops), 2), dtype=torch.int64, device=crops.images.device)
        return replace(super().make(crops, draw), visible=visible)


class LooseExtra(Shift):
    """Makes something further without a device."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return replace(super().make(crops, draw), extra={"ones": torch.ones(len(crops))})


class GroupLeak(BatchMean):
    """Says that it compares the crops of a volume, and compares the whole batch."""

    compares: ClassVar[Compares] = "group"


class Impatient(Shift):
    """Its teacher runs ahead."""

    needs: ClassVar[frozenset[TaskNeeds]] = frozenset({"teacher_answer"})

    def teacher_momentum(self, progress: float) -> float:
        return 2 * progress


class FollowsNothing(Shift):
    """Names a module that it does not have."""

    needs: ClassVar[frozenset[TaskNeeds]] = frozenset({"teacher_answer"})
    teacher_follows: ClassVar[tuple[str, ...]] = ("projector",)


class Wishful(Shift):
    """Needs what no task can have."""

    needs: ClassVar[frozenset[TaskNeeds]] = frozenset({"embeddings"})  # type: ignore[arg-type]


class Hoarding(Counting):
    """What it keeps grows with every step."""

    def commit(self, prediction: Tensor, batch: PretextBatch) -> None:
        self.count = torch.zeros(len(prediction))


class Absent(Counting):
    """What it keeps is in no checkpoint, and changes its loss."""

    seen = 0

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return Shift.loss(self, prediction, batch) + self.seen

    def commit(self, prediction: Tensor, batch: PretextBatch) -> None:
        self.seen += 1


class LastBatch(Counting):
    """Keeps the largest error that its last loss saw, not that of the step."""

    last: Tensor

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        value = Shift.loss(self, prediction, batch)
        self.last = value.detach().sum()
        return value

    def commit(self, prediction: Tensor, batch: PretextBatch) -> None:
        self.count.copy_(self.last)


class OneTarget(Shift):
    """One target for the whole batch."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        batch = super().make(crops, draw)
        return replace(batch, target=batch.target[:1])


class FlatTarget(Shift):
    """Its target lacks the axis of channels, and is broadcast over the batch."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        batch = super().make(crops, draw)
        return replace(batch, target=batch.target[:, 0])


class WideWeight(Shift):
    """Weighs whole samples where voxels are asked for."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return replace(super().make(crops, draw), weight=torch.ones((len(crops), 1), device=crops.images.device))


class Crossed(Shift):
    """Every sample's loss is that against all targets of the batch."""

    def head(self) -> Head:
        return PooledHead(1)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        inputs = roll(crops.images, draw.integers(1, 6))
        return PretextBatch(inputs, inputs.flatten(1).amax(1))


class Odd(Shift):
    """Its answer is of no kind."""

    answer = "numbers"  # type: ignore[assignment]


TASKS = [
    (OneTarget, "test_make_gives_inputs_and_a_target_that_fit_its_head"),
    (FlatTarget, "test_make_gives_inputs_and_a_target_that_fit_its_head"),
    (WideWeight, "test_make_gives_inputs_and_a_target_that_fit_its_head"),
    (Crossed, "test_a_sample_does_not_depend_on_its_neighbours"),
    (Odd, "test_it_has_a_name_and_every_option_is_documented"),
    (Flagged, "test_make_gives_inputs_and_a_target_that_fit_its_head"),
    (TokensTwice, "test_make_gives_inputs_and_a_target_that_fit_its_head"),
    (LooseExtra, "test_everything_stays_on_the_device_of_the_crops"),
    (GroupLeak, "test_a_sample_does_not_depend_on_its_neighbours"),
    (Impatient, "test_it_has_a_name_and_every_option_is_documented"),
    (FollowsNothing, "test_it_has_a_name_and_every_option_is_documented"),
    (Wishful, "test_it_has_a_name_and_every_option_is_documented"),
    (Hoarding, "test_state_survives_a_checkpoint"),
    (Absent, "test_state_survives_a_checkpoint"),
    (LastBatch, "test_two_micro_batches_make_what_one_batch_would"),
    (Nameless, "test_it_has_a_name_and_every_option_is_documented"),
    (Undocumented, "test_it_has_a_name_and_every_option_is_documented"),
    (Forgetful, "test_options_survive_a_round_trip"),
    (WrongParts, "test_make_gives_inputs_and_a_target_that_fit_its_head"),
    (Double, "test_inputs_keep_the_dtype_of_the_images"),
    (Deviceless, "test_everything_stays_on_the_device_of_the_crops"),
    (DevicelessLoss, "test_everything_stays_on_the_device_of_the_crops"),
    (GlobalTorch, "test_the_draw_alone_decides"),
    (GlobalPython, "test_the_draw_alone_decides"),
    (InPlace, "test_crops_are_left_as_they_were"),
    (InPlaceLoss, "test_crops_are_left_as_they_were"),
    (SameForAll, "test_every_sample_gets_its_own_question"),
    (EveryStepAlike, "test_every_sample_gets_its_own_question"),
    (SameForAll, "test_a_sample_does_not_depend_on_its_neighbours"),
    (BatchMean, "test_a_sample_does_not_depend_on_its_neighbours"),
    (BatchLoss, "test_a_sample_does_not_depend_on_its_neighbours"),
    (Scalar, "test_the_loss_is_one_finite_value_a_sample"),
    (NotFinite, "test_the_loss_is_one_finite_value_a_sample"),
    (Detached, "test_gradients_reach_the_prediction"),
    (ZeroGradient, "test_gradients_reach_the_prediction"),
    (WrongWay, "test_restore_makes_predictions_comparable"),
    (NoRestore, "test_restore_makes_predictions_comparable"),
    (DoNothing, "test_restore_makes_predictions_comparable"),
    (ForgetsTheGrid, "test_make_gives_inputs_and_a_target_that_fit_its_head"),
    (BadMeasure, "test_measures_are_one_value_a_sample"),
    (TakenMeasure, "test_measures_are_one_value_a_sample"),
    (Counting, "test_the_loss_changes_no_state"),
    (CountsBatches, "test_two_micro_batches_make_what_one_batch_would"),
    (BadTrivial, "test_the_trivial_answer_is_a_prediction"),
    (BadPicture, "test_pictures_are_images"),
    (UnsavedState, "test_state_survives_a_checkpoint"),
    (Detached, "test_it_trains_a_network"),
]


def fails(check: Callable[..., None], dims: int | None) -> None:
    arguments = [] if dims is None else [dims]
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)) as caught:
        check(*arguments)
    assert str(caught.value)


def takes_dims(suite: type, check: str) -> list[int | None]:
    marks = getattr(getattr(suite, check), "pytestmark", [])
    return [2, 3] if any(mark.name == "parametrize" for mark in marks) else [None]


def test_tokens_that_are_shown_twice_are_caught_where_there_are_tokens() -> None:
    suite = type("Suite", (PretextTaskContract,), {"task": TokensTwice, "tokens": True})()
    with pytest.raises(AssertionError, match="names a token twice"):
        suite.test_make_gives_inputs_and_a_target_that_fit_its_head(2)


@pytest.mark.parametrize(("broken", "check"), TASKS)
def test_a_broken_task_is_caught(broken: type[PretextTask], check: str) -> None:
    suite = type("Suite", (PretextTaskContract,), {"task": broken})()
    for dims in takes_dims(PretextTaskContract, check):
        fails(getattr(suite, check), dims)


def test_every_check_of_a_task_has_a_task_that_fails_it() -> None:
    checks = {name for name in dir(PretextTaskContract) if name.startswith("test_")}
    assert checks - {check for _, check in TASKS} == {"test_a_gpu_asks_the_same_question"}


class Apart(ConsistencyLoss):
    """Squared distance of the views' embeddings and answers: a sound loss invented for these tests."""

    name: ClassVar[str] = "apart"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings", "answers"})

    class Options(BaseOptions):
        """How much."""

        factor: float = 1.0
        """Of the sum."""

    options: Options

    def __init__(self, options: BaseOptions, network: object) -> None:
        super().__init__(options, network)  # type: ignore[arg-type]
        self.register_buffer("centre", torch.zeros(self.network.embedding_width))

    centre: Tensor

    def forward(self, views: Views) -> Tensor:
        one, other = views.embeddings
        left, right = views.answers["dense"]
        seen = views.shown if views.shown is not None else torch.ones_like(left[:, :1], dtype=torch.bool)
        return (one - other + self.centre).square().mean(1) + ((left - right) * seen).square().flatten(1).mean(1)

    def commit(self, views: Views) -> None:
        self.centre.lerp_(views.embeddings[0].mean(0), 0.1)


class TestApart(ConsistencyLossContract):
    """The sound loss passes."""

    loss = Apart


class Among(Apart):
    """Compares the crops of a volume: a sound loss too."""

    compares: ClassVar[Compares] = "group"

    def forward(self, views: Views) -> Tensor:
        group = views.crops.group
        mine = (group[:, None] == group).float()
        mean = mine @ views.embeddings[1] / mine.sum(1, keepdim=True)
        return super().forward(views) + (views.embeddings[0] - mean).square().mean(1)


class TestAmong(ConsistencyLossContract):
    """The loss that compares groups passes."""

    loss = Among


class LoudName(Apart):
    """Shouts."""

    name = "APART"


class Loose(Apart):
    """Accepts unknown keys."""

    class Options(Apart.Options):
        """Loose."""

        model_config = ConfigDict(extra="ignore")


class OneNumber(Apart):
    """One number."""

    def forward(self, views: Views) -> Tensor:
        return super().forward(views).mean()


class Norm(Apart):
    """The gradient of a distance at 0 is not finite."""

    def forward(self, views: Views) -> Tensor:
        return super().forward(views) + (views.embeddings[0] - views.embeddings[1]).square().sum(1).sqrt()


class Elsewhere(Apart):
    """Makes a tensor without a device."""

    def forward(self, views: Views) -> Tensor:
        return super().forward(views) + torch.zeros(len(views.crops))


class Impure(Apart):
    """Moves its centre in forward."""

    def forward(self, views: Views) -> Tensor:
        value = super().forward(views)
        self.commit(views.detach())
        return value


class Dice(Apart):
    """Draws at random."""

    def forward(self, views: Views) -> Tensor:
        return super().forward(views) + torch.rand(len(views.crops), device=self.centre.device)


class Meddler(Apart):
    """Changes the views in place."""

    def forward(self, views: Views) -> Tensor:
        value = super().forward(views)
        views.embeddings[0].detach().mul_(2)
        return value


class Cut(Apart):
    """Cuts the graph."""

    def forward(self, views: Views) -> Tensor:
        return super().forward(views.detach())


class Leaky(Apart):
    """Compares with the batch's mean."""

    def forward(self, views: Views) -> Tensor:
        return super().forward(views) + (views.embeddings[0] - views.embeddings[1].mean(0)).square().mean(1)


class LeakyGroups(Leaky):
    """Says that it compares the crops of a volume, and compares the whole batch."""

    compares: ClassVar[Compares] = "group"


class CountsViews(Apart):
    """Learns from how large the batch is."""

    def forward(self, views: Views) -> Tensor:
        return super().forward(views) * len(views.crops)


class LastViews(Apart):
    """Keeps the centre of the views that its last loss saw, not that of the step."""

    last: Tensor

    def forward(self, views: Views) -> Tensor:
        self.last = views.embeddings[0].detach().mean(0)
        return super().forward(views)

    def commit(self, views: Views) -> None:
        self.centre.copy_(self.last)


class Runaway(Apart):
    """Its teacher runs ahead."""

    def teacher_momentum(self, progress: float) -> float:
        return 2 * progress


class FollowsNobody(Apart):
    """Names a module that the teacher should follow, and asks for no teacher."""

    teacher_follows: ClassVar[tuple[str, ...]] = ("projector",)


class Blind(Apart):
    """Compares voxels that are not shown."""

    def forward(self, views: Views) -> Tensor:
        return super().forward(replace(views, shown=None))


class Uphill(Apart):
    """Rewards difference."""

    def forward(self, views: Views) -> Tensor:
        value = -super().forward(views)
        return value.detach() * 2 - value


class Growing(Apart):
    """Its state changes shape."""

    def commit(self, views: Views) -> None:
        self.centre = torch.zeros(self.centre.shape[0] + 1)


class Hidden(Apart):
    """Keeps its centre where no checkpoint sees it."""

    def __init__(self, options: BaseOptions, network: object) -> None:
        super().__init__(options, network)
        self.register_buffer("centre", torch.zeros(self.network.embedding_width), persistent=False)


LOSSES = [
    (LeakyGroups, "test_a_sample_does_not_depend_on_its_neighbours"),
    (CountsViews, "test_two_micro_batches_make_what_one_batch_would"),
    (LastViews, "test_two_micro_batches_make_what_one_batch_would"),
    (Cut, "test_it_trains_a_network"),
    (Runaway, "test_it_has_a_name_and_every_option_is_documented"),
    (FollowsNobody, "test_it_has_a_name_and_every_option_is_documented"),
    (LoudName, "test_it_has_a_name_and_every_option_is_documented"),
    (Loose, "test_options_survive_a_round_trip"),
    (OneNumber, "test_the_loss_is_one_finite_value_a_sample"),
    (Norm, "test_equal_and_empty_views_stay_finite"),
    (Elsewhere, "test_everything_stays_on_the_device_of_the_views"),
    (Impure, "test_forward_is_pure"),
    (Dice, "test_forward_is_pure"),
    (Meddler, "test_forward_is_pure"),
    (Cut, "test_gradients_reach_the_views"),
    (Leaky, "test_a_sample_does_not_depend_on_its_neighbours"),
    (Blind, "test_voxels_that_a_view_does_not_show_do_not_count"),
    (Uphill, "test_training_on_it_lowers_it"),
    (Growing, "test_state_survives_a_checkpoint"),
    (Hidden, "test_state_survives_a_checkpoint"),
]


@pytest.mark.parametrize(("broken", "check"), LOSSES)
def test_a_broken_loss_is_caught(broken: type[ConsistencyLoss], check: str) -> None:
    suite = type("Suite", (ConsistencyLossContract,), {"loss": broken})()
    for dims in takes_dims(ConsistencyLossContract, check):
        fails(getattr(suite, check), dims)


def test_every_check_of_a_loss_has_a_loss_that_fails_it() -> None:
    assert {name for name in dir(ConsistencyLossContract) if name.startswith("test_")} == {check for _, check in LOSSES}


def test_selected_samples_keep_their_randomness() -> None:
    from medssl.testing import make_crops

    crops = make_crops(4, (8, 8))
    alone = select(crops, [2])
    assert torch.equal(alone.images[0], crops.images[2]) and int(alone.index) == 2
    assert torch.equal(Draw(0, 0, alone.index, "x").uniform(3)[0], Draw(0, 0, crops.index, "x").uniform(3)[2])
