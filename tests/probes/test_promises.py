"""What the contracts promise the probes, each promise by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from medssl import hookimpl
from medssl.augment import ViewOptions
from medssl.contracts import ConsistencyLoss, Crops, EncoderLayout, Needs, PretextBatch, TaskNeeds, Views
from medssl.errors import ConfigError, NetworkError, PluginError
from medssl.learn import Objective, build_objective, check_crop, freeze_unreached
from medssl.learn.joining import joined
from medssl.learn.views import on_crops
from medssl.plugins import Provider
from medssl.run import RunState
from medssl.testing import make_crops, select
from medssl.train import TrainOptions, make_engine
from medssl.train.loop import run_steps
from probes.pictures import Colour, Halves
from probes.scenarios import SCENARIOS, UNET, VIT, Scenario, plugins, steps_of

UNETR = {"name": "UNETR", "options": {"img_size": [32, 32], "feature_size": 4, "hidden_size": 16, "mlp_dim": 32, "num_heads": 2}}


class Watch(ConsistencyLoss):
    """Keeps what it is shown and what it commits."""

    name: ClassVar[str] = "watch"
    needs: ClassVar[frozenset[Needs]] = frozenset({"answers", "embeddings"})

    def forward(self, views: Views) -> Tensor:
        self.seen = views
        return (views.embeddings[0] - views.embeddings[1]).square().mean(dim=1)


class Count(Watch):
    """Counts its commits, and what they hold."""

    name: ClassVar[str] = "count"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings"})

    def __init__(self, options: Any, network: Any) -> None:
        super().__init__(options, network)
        self.committed: list[list[int]] = []

    def commit(self, views: Views) -> None:
        self.committed.append(views.crops.index.tolist())


def build(tasks: list[Any], losses: list[Any] = [], network: Any = UNET, **options: Any) -> Objective:  # noqa: B006
    spec = {"spatial_dims": 2, "in_channels": 1, **network}
    return build_objective(spec, tasks, losses, seed=3, plugins=plugins(), **options)


def seen_by(objective: Objective) -> Views:
    views: Views = next(iter(objective.losses.values())).seen  # type: ignore[assignment]
    return views


@pytest.mark.parametrize("network", [{**VIT, "options": {**VIT["options"], "img_size": [32, 32]}}, UNETR], ids=["ViT", "UNETR"])
def test_fewer_visible_tokens_give_another_loss(network: Any) -> None:
    network = {**network, "options": {**network["options"], "patch_size": [8, 8]}} if network["name"] == "ViT" else network
    losses = []
    for ratio in (0.25, 0.75):
        objective = build([{"name": "masked-autoencoder", "ratio": ratio}], network=network, crop=(32, 32))
        losses.append(float(objective.run(make_crops(2, (32, 32)), 0)["loss"].detach()))
        assert freeze_unreached(objective, make_crops(2, (32, 32)))  # the decoder of UNETR, the head of ViT
    assert losses[0] != losses[1]
    with pytest.raises(NetworkError, match="Take ViT or UNETR"):
        build(["masked-autoencoder"])


def test_the_embedding_of_view_0_is_that_of_the_clean_crop_whatever_the_tasks_and_their_order() -> None:
    crops = make_crops(3, (16, 16))
    tasks = ["hierarchy", "halves", {"name": "inpainting", "block": 4}]
    values, embeddings = [], []
    for order in (tasks, tasks[::-1]):
        objective = build(order, [Watch])
        objective.load_state_dict(build(tasks, [Watch]).state_dict())
        values.append({name: value.detach() for name, value in objective.run(crops, 0).items()})
        embeddings.append(seen_by(objective).embeddings[0])
        clean = objective._trunk(crops.images, {"encoder_end"})["encoder_end"].flatten(2).mean(dim=2)
        torch.testing.assert_close(embeddings[-1], clean)
    for name, value in values[0].items():
        torch.testing.assert_close(value, values[1][name])


def test_tasks_that_disagree_about_the_uncorrupted_input_are_refused() -> None:
    class Otherwise(Colour):
        """The first channel alone."""

        name: ClassVar[str] = "otherwise"

        def clean(self, crops: Crops) -> Tensor:
            return crops.images[:, :1]

    objective = build([Colour, Otherwise], network={**UNET, "in_channels": 3})
    with pytest.raises(ConfigError, match="'colour' and 'otherwise' disagree about what an uncorrupted input looks like"):
        freeze_unreached(objective, make_crops(2, (16, 16), 3))


def test_commit_runs_once_a_step_with_all_four_micro_batches() -> None:
    objective = build([], [Count])

    def batches() -> Iterator[tuple[int, int, Crops]]:
        for step in range(2):
            for micro in range(4):
                yield step, micro, select(make_crops(8, (16, 16), seed=step), [2 * micro, 2 * micro + 1])

    run_steps(make_engine(objective, batches(), TrainOptions(steps=2, accumulate=4, device="cpu"), RunState(2)))
    loss: Any = objective.losses["count"]
    assert loss.committed == [list(range(8))] * 2


def test_the_teacher_follows_the_projector_and_the_queue_holds_its_keys() -> None:
    scenario = SCENARIOS["a queue"]
    objective = scenario.objective()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    after = steps_of(scenario, objective, 0, 1).state
    followed = "teacher.followed.moco.projector.0.weight"
    moved = 0.9 * before[followed] + 0.1 * after["losses.moco.projector.0.weight"]
    assert not torch.equal(after[followed], before[followed])
    torch.testing.assert_close(after[followed], moved)
    queue = "losses.moco.queue"
    changed = (after[queue] != before[queue]).any(dim=1)
    assert changed.tolist() == [True] * 4 + [False] * 6 and int(after["losses.moco.place"]) == 4


def test_the_momentum_of_a_teacher_rises_along_the_run() -> None:
    task: Any = SCENARIOS["latent prediction"].objective().tasks["i-jepa"]
    assert [round(task.teacher_momentum(progress), 3) for progress in (0.0, 0.5, 1.0)] == [0.9, 0.95, 1.0]
    moved = []
    for progress in (0.0, 1.0):
        objective = SCENARIOS["latent prediction"].objective()
        with torch.no_grad():
            for parameter in objective.network.parameters():
                parameter.add_(1.0)
        objective.commit(progress)
        pairs = zip(objective.teacher.network.parameters(), objective.network.parameters(), strict=True)  # type: ignore[union-attr]
        moved.append({round(float((mine - theirs).detach().abs().max()), 4) for mine, theirs in pairs})
    assert moved == [{0.9}, {1.0}]


def test_a_task_keeps_what_the_teacher_answered() -> None:
    scenario = SCENARIOS["self-distillation"]
    after = steps_of(scenario, scenario.objective(), 0, 1).state
    assert (after["tasks.self-distillation.centre"] != 0).all()


def test_what_begins_at_half_of_the_run_is_not_frozen_and_moves_from_then_on() -> None:
    scenario = SCENARIOS["an annealed term"]
    objective = scenario.objective()
    assert not [name for name in freeze_unreached(objective, scenario.crops(0)) if name.startswith("tasks.")]
    assert objective.sometimes_unreached
    first = objective.state_dict()["tasks.ramp.contrast"].clone()
    halfway = steps_of(scenario, objective, 0, 2)
    assert torch.equal(halfway.state["tasks.ramp.contrast"], first)
    assert not torch.equal(steps_of(scenario, objective, 2, 4).state["tasks.ramp.contrast"], first)
    plain = Scenario([{"name": "inpainting", "block": 4}])
    steady = plain.objective()
    freeze_unreached(steady, plain.crops(0))
    assert not steady.sometimes_unreached


def test_position_is_right_on_views_that_are_flipped_and_turned() -> None:
    views = ViewOptions(flip=0.7, rotate=40, shift=0.1, scale=1.3)
    objective = build(["body-position"], [Watch], views=views)
    crops = make_crops(4, (16, 20), seed=2)
    asked = objective.ask(crops, 0)
    plain, moved = (view.questions["body-position"].batch.target for view in asked.views)
    assert not asked.views[0].moved and asked.views[1].moved
    objective(asked)
    shown = seen_by(objective).shown
    assert shown is not None and 0.3 < float(shown.float().mean()) < 1
    back = on_crops(moved, asked.views[1].affine)
    # A position is linear in the voxel, so linear interpolation brings it back exactly, borders apart.
    inner = shown & (nn.functional.avg_pool2d(shown.float(), 3, 1, 1) == 1)
    assert (back - plain).abs()[inner.expand_as(plain)].max() < 1e-4
    assert (moved - plain).abs().max() > 0.1


class Repeat(nn.Module):
    """Answers with what the network is shown."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        network.register_forward_pre_hook(lambda _, inputs: setattr(self, "shown", inputs[0]))

    def forward(self, *features: Tensor) -> Tensor:
        return self.shown


def test_dense_answers_of_a_tasks_own_module_are_compared_on_the_grid_of_the_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.pictures.block_mask", lambda draw, size, *_: torch.zeros(len(draw), 1, *size, dtype=torch.bool))
    flipped = ViewOptions(flip=1, rotate=0, scale=1, shift=0, contrast=0, gamma=1, noise=0, blur=0)
    objective = build(["hierarchy"], [Watch], views=flipped)
    head = objective.built_heads["hierarchy"]
    objective.built_heads["hierarchy"] = replace(head, module=Repeat(objective.network))
    crops = make_crops(2, (16, 16))
    objective.run(crops, 0)
    for answer in seen_by(objective).answers["hierarchy"]:
        torch.testing.assert_close(answer, crops.images)


def test_one_term_twice_has_two_names_and_two_heads() -> None:
    scenario = SCENARIOS["one modality from another, both ways"]
    objective = scenario.objective()
    values = objective.run(scenario.crops(0), 0)
    assert set(objective.heads) == {"t1-to-t2", "t2-to-t1"}
    assert set(values) == {"loss", *objective.heads, *(f"{name}/answerable" for name in objective.heads)}
    assert float(values["t1-to-t2"].detach()) != float(values["t2-to-t1"].detach())


class Ours(nn.Module):
    """A network that nobody knows."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.InstanceNorm2d(4), nn.Conv2d(4, 4, 3, 2, 1), nn.InstanceNorm2d(4))
        self.head = nn.Conv2d(4, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(nn.functional.interpolate(self.down(images), images.shape[2:]))


class Knows:
    @staticmethod
    @hookimpl
    def medssl_encoder_end(network: nn.Module) -> EncoderLayout | None:
        return EncoderLayout("down") if isinstance(network, Ours) else None


def test_the_crop_is_checked_with_the_plugins_that_were_given() -> None:
    given = plugins()
    given.register(Knows, Provider("knows", "knows", "1"))
    objective = build_objective(Ours, [], [Count], seed=0, plugins=given)
    check_crop(objective, (16, 16))
    with pytest.raises(NetworkError, match="cannot take crops"):
        check_crop(objective, (4, 4))


def test_what_differs_between_micro_batches_is_refused_when_it_is_joined() -> None:
    record = {"one": torch.zeros(2, 3), "none": None}
    assert joined([record, record])["one"].shape == (4, 3)
    for other in ({"one": torch.zeros(2, 4), "none": None}, {"one": torch.zeros(2, 3), "none": torch.zeros(2)}):
        with pytest.raises(ValueError, match="Give the same fields"):
            joined([record, other])


def test_a_head_that_reads_what_the_network_does_not_have_is_refused_when_it_is_built() -> None:
    resnet = {"name": "ResNet", "options": {"block_inplanes": [4, 4, 8, 8]}}
    build(["hierarchy"], network=resnet)
    densenet = {"name": "DenseNet", "options": {"init_features": 8, "growth_rate": 4, "block_config": [2, 2]}}
    with pytest.raises((NetworkError, PluginError), match="reads two levels"):
        build(["hierarchy"], network=densenet)


class PartsAnswer(Halves):
    """Asks a teacher that sees the whole crop for an answer from parts."""

    needs: ClassVar[frozenset[TaskNeeds]] = frozenset({"teacher_answer"})


class Whole(Halves):
    """Takes what the teacher makes of the whole crop from where its head reads."""

    needs: ClassVar[frozenset[TaskNeeds]] = frozenset({"teacher"})

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        assert batch.teacher is not None
        self.told = {name: tuple(feature.shape) for name, feature in batch.teacher.features.items()}
        return super().loss(prediction, batch)


def test_the_teacher_gives_a_task_what_its_head_reads_and_no_answer_from_parts() -> None:
    with pytest.raises(PluginError, match="the teacher sees the whole crop"):
        build([PartsAnswer])
    objective = build([Whole])
    objective.run(make_crops(2, (16, 16)), 0)
    assert objective.tasks["halves"].told == {"encoder_end": (2, 8, 4, 4)}
