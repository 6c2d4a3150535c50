"""The objective: what shares a forward, what is compared, what is saved, whom it blames."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from medssl.augment import ViewOptions, is_identity, resample
from medssl.errors import ConfigError, DataError, NetworkError, PluginError
from medssl.learn import Objective, build_objective, check_crop, freeze_unreached, pictures, trivial
from medssl.plugins import Plugins
from medssl.testing import make_crops, select

UNET = {"name": "UNet", "spatial_dims": 2, "options": {"channels": [4, 8, 8], "strides": [2, 2]}}
SIZE = (16, 20)
ELASTIC = {"_target_": "monai.transforms.Rand2DElastic", "spacing": 4, "magnitude_range": [1, 2]}


def build(terms: Plugins, tasks: list[Any], consistency: list[Any] = (), **views: Any) -> Objective:  # type: ignore[assignment]
    return build_objective(UNET, tasks, consistency, ViewOptions(**views), seed=3, plugins=terms)


def forwards(objective: Objective, step: int = 0, crops: Any = None) -> list[int]:
    """Rows that each forward of the network was given in one step."""
    rows: list[int] = []
    hook = objective.network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    objective.run(crops or make_crops(3, SIZE), step)
    hook.remove()
    return rows


def test_tasks_that_show_the_same_input_share_one_forward(terms: Plugins) -> None:
    assert forwards(build(terms, ["copy", "square"])) == [3]
    assert forwards(build(terms, ["copy", "square", "flip"])) == [3, 3]


def test_target_only_tasks_ride_or_show_the_crop_themselves(terms: Plugins) -> None:
    assert forwards(build(terms, ["copy", "brightness", "where"])) == [3]
    assert forwards(build(terms, ["brightness", "where"])) == [3]
    assert forwards(build(terms, ["order", "brightness"])) == [6, 3]


def test_a_riders_dense_answer_passes_what_its_host_restores(terms: Plugins) -> None:
    objective = build(terms, ["flip", "where"])
    seen: list[Tensor] = []
    task: Any = objective.tasks["where"]
    plain = task.loss
    task.loss = lambda prediction, batch: (seen.append(prediction), plain(prediction, batch))[1]
    answers: list[Tensor] = []
    objective.heads["where"].register_forward_hook(lambda *call: answers.append(call[2]))
    objective.run(make_crops(2, SIZE), 0)
    assert torch.equal(seen[0], answers[0].flip(-1))


def test_two_views_only_where_a_loss_compares_them_and_view_0_is_the_crop(terms: Plugins) -> None:
    assert forwards(build(terms, ["copy"], ["vectors"])) == [3, 3]
    objective = build(terms, ["copy"], ["spy"], count=3)
    crops = make_crops(3, SIZE)
    assert forwards(objective, crops=crops) == [3, 3, 3]
    views = objective.losses["spy"].seen[0]  # type: ignore[index,union-attr]
    assert views.affines.shape == (3, 3, 2, 3)
    assert is_identity(views.affines[0]) and not is_identity(views.affines[1])
    assert len(views.answers["copy"]) == len(views.embeddings) == len(views.feature_maps) == 3
    assert views.embeddings[0].shape == (3, objective.info.embedding_width)
    assert views.kinds == {"copy": "values"} and views.shown is not None and views.shown.shape == (3, 1, *SIZE)


def test_tasks_in_parts_give_no_embedding_so_the_encoder_sees_the_crop_once_more(terms: Plugins) -> None:
    assert forwards(build(terms, ["order"], ["vectors"])) == [6, 3, 3]
    assert forwards(build(terms, [], ["vectors"])) == [3, 3]


def test_a_task_whose_answer_augmentation_changes_is_asked_about_the_crop_alone(terms: Plugins) -> None:
    assert forwards(build(terms, ["copy", "order"], ["vectors"])) == [3, 6, 3]
    assert forwards(build(terms, ["copy", "order"], ["vectors"], clean=False)) == [3, 3, 6]


def test_dense_answers_are_compared_on_the_grid_of_the_crop(terms: Plugins) -> None:
    still = {"contrast": 0, "gamma": 1, "noise": 0, "blur": 0}
    objective = build(terms, ["copy", "flip"], ["spy"], rotate=30, shift=0.1, **still)
    crops = make_crops(2, SIZE)
    # A network that repeats its input answers every view rightly, so all answers must agree wherever they are shown.
    smooth = torch.nn.functional.interpolate(torch.randn(2, 1, 4, 5), size=SIZE, mode="bilinear", align_corners=True)
    crops = crops.with_images(smooth)
    shown: dict[str, Tensor] = {}

    class Echo(torch.nn.Module):
        def forward(self, feature_map: Tensor) -> Tensor:
            return shown["inputs"]

    for head in objective.built_heads.values():
        object.__setattr__(head, "module", Echo())
    objective.network.register_forward_pre_hook(lambda _, inputs: shown.update(inputs=inputs[0]))
    objective.run(crops, 1)
    views = objective.losses["spy"].seen[0]  # type: ignore[index,union-attr]
    kept = views.shown.expand_as(smooth)
    assert 0.3 < float(kept.float().mean()) < 1
    for name in ("copy", "flip"):
        clean, moved = views.answers[name]
        assert torch.equal(clean, smooth)
        assert (moved - smooth)[kept].abs().mean() < 0.05
        unmoved = resample(smooth, views.affines[1])
        assert (unmoved - smooth)[kept].abs().mean() > 0.1


def test_a_step_is_a_function_of_seed_step_and_index_alone(terms: Plugins) -> None:
    objective = build_objective(UNET, ["inpainting", "relative-position"], ["agreement"], seed=3, plugins=terms)
    crops = make_crops(4, (24, 24))
    one = objective.run(crops, 7)
    torch.manual_seed(5)
    other = objective.run(crops, 7)
    later = objective.run(crops, 8)
    assert {name: float(value.detach()) for name, value in one.items()} == {name: float(value.detach()) for name, value in other.items()}
    terms_of = ("inpainting", "relative-position", "agreement", "loss")
    assert all(not torch.equal(one[name], later[name]) for name in terms_of)
    asked = [objective.ask(select(crops, rows), 7) for rows in ([0, 1], [2, 3])]
    halves = [objective(half, objective.totals(asked)) for half in asked]
    for name in one:
        torch.testing.assert_close(halves[0][name] + halves[1][name], one[name], atol=1e-4, rtol=1e-4)


def test_a_task_may_show_more_channels_than_the_images_have(terms: Plugins) -> None:
    objective = build(terms, ["marked"], ["vectors"])
    assert forwards(objective) == [3, 3, 3, 3]
    assert next(objective.network.parameters()).shape[1] == objective.spec.in_channels == 2
    assert objective.info.channels == 1
    with pytest.raises(ConfigError, match="A task that changes the channels says by `clean`"):
        forwards(build(terms, ["silent"], ["vectors"]))
    with pytest.raises(ConfigError, match="disagree about the channels"):
        build(terms, ["marked", "copy"])


def test_autocast_changes_no_question_and_no_view(terms: Plugins) -> None:
    objective = build_objective(UNET, ["inpainting"], ["agreement"], seed=3, plugins=terms)
    crops = make_crops(2, (24, 24))
    shown: list[Tensor] = []
    objective.network.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    plain = objective.run(crops, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = objective.run(crops, 0)
    assert len(shown) == 4 and all(torch.equal(a, b) for a, b in zip(shown[:2], shown[2:], strict=True))
    assert all(value.dtype == torch.float32 for value in halved.values())
    torch.testing.assert_close(halved["loss"], plain["loss"], atol=0.05, rtol=0.05)
    assert not torch.equal(halved["loss"], plain["loss"])


def test_the_sum_is_weighted(terms: Plugins) -> None:
    objective = build(terms, [{"name": "copy", "weight": 2.0, "factor": 3.0}, {"name": "brightness", "weight": 0.5}])
    result = objective.run(make_crops(2, SIZE), 0)
    assert set(result) == {"copy", "brightness", "loss"}
    torch.testing.assert_close(result["loss"], 2 * result["copy"] + 0.5 * result["brightness"])
    plain = build(terms, ["copy"])
    torch.testing.assert_close(plain.run(make_crops(2, SIZE), 0)["copy"] * 3, result["copy"])


def test_first_weights_depend_on_the_seed_and_not_on_global_randomness(terms: Plugins) -> None:
    states = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        states.append(build_objective(UNET, ["copy", "order"], ["simsiam"], seed=3, plugins=terms).state_dict())
        assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    other = build_objective(UNET, ["copy", "order"], ["simsiam"], seed=4, plugins=terms).state_dict()
    assert any(not torch.equal(states[0][name], other[name]) for name in other)


def test_unreached_parameters_are_frozen_and_nothing_else_changes(terms: Plugins) -> None:
    objective = build(terms, ["order"])
    before = deepcopy(objective.state_dict())
    frozen = freeze_unreached(objective, make_crops(2, SIZE))
    assert frozen and all(name.startswith("network.model.") for name in frozen)
    objective.run(make_crops(2, SIZE), 0)["loss"].backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is None) == (name in frozen) == (not parameter.requires_grad), name
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_the_dry_run_leaves_running_averages_alone(terms: Plugins) -> None:
    resnet = {"name": "ResNet", "spatial_dims": 2, "options": {"block_inplanes": [4, 4, 8, 8]}}
    objective = build_objective(resnet, ["own-module"], plugins=terms)
    before = deepcopy(objective.state_dict())
    assert freeze_unreached(objective, make_crops(2, (64, 64))) == ["network.fc.weight", "network.fc.bias"]
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    objective.run(make_crops(2, (64, 64)), 0)
    assert any(not torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_a_crop_the_network_cannot_take_is_refused_before_training(terms: Plugins) -> None:
    with pytest.raises(NetworkError, match="cannot take crops"):
        check_crop(build(terms, ["copy"]), (18, 20))
    check_crop(build(terms, ["copy"]), (16, 20))
    check_crop(build(terms, ["own-module"]), (18, 20))
    with pytest.raises(NetworkError, match="cannot take crops"):
        check_crop(build(terms, [], ["vectors"]), (2, 2))
    check_crop(build(terms, ["order"]), (2, 2))


def test_the_state_holds_each_tensor_once_and_makes_a_copy_equal(terms: Plugins) -> None:
    objective = build_objective(UNET, ["copy", "own-module"], ["simsiam"], seed=1, plugins=terms)
    state = objective.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values() if tensor.numel()}) == len([t for t in state.values() if t.numel()])
    assert not [name for name in state if name.startswith("heads.own-module")]
    fresh = build_objective(UNET, ["copy", "own-module"], ["simsiam"], seed=2, plugins=terms)
    fresh.load_state_dict(state)
    fresh.seed = objective.seed
    crops = make_crops(3, SIZE)
    assert float(fresh.run(crops, 1)["own-module"].detach()) == float(objective.run(crops, 1)["own-module"].detach())
    plain = {name.removeprefix("network.") for name in state if name.startswith("network.")}
    assert plain == set(objective.network.state_dict())


def test_a_deep_copy_trains_its_own_network(terms: Plugins) -> None:
    objective = build_objective(UNET, ["copy", "own-module"], ["simsiam"], seed=1, plugins=terms)
    crops = make_crops(3, SIZE)
    objective.run(crops, 0)
    copy = deepcopy(objective)
    copy.run(crops, 1)["loss"].backward()
    assert any(p.grad is not None for p in copy.network.parameters())
    assert all(p.grad is None for p in objective.parameters())
    with torch.no_grad():
        for parameter in copy.network.parameters():
            parameter.zero_()
    assert float(copy.run(crops, 1)["own-module"].detach()) != float(objective.run(crops, 1)["own-module"].detach())


def test_commit_runs_once_a_step_with_all_its_micro_batches(terms: Plugins) -> None:
    objective = build(terms, ["copy"], ["spy"])
    spy: Any = objective.losses["spy"]
    crops = make_crops(4, SIZE)
    objective.run(crops, 0)  # a step that was not taken leaves nothing behind
    for rows in ([0, 1], [2, 3]):
        objective.run(select(crops, rows), 1)
    objective.commit()
    assert float(spy.commits) == 1
    assert spy.committed.crops.index.tolist() == [0, 1, 2, 3]
    assert spy.committed.affines.shape[:2] == (2, 4) and len(spy.committed.embeddings[1]) == 4
    objective.commit()
    assert float(spy.commits) == 1


def test_the_teacher_follows_gets_no_gradient_and_is_saved(terms: Plugins) -> None:
    objective = build(terms, ["copy", "own-module"], ["follow"])
    assert objective.teacher is not None
    crops = make_crops(3, SIZE)
    freeze_unreached(objective, crops)
    objective.run(crops, 0)["loss"].backward()
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())
    views = objective.losses["follow"].seen[-1]  # type: ignore[index,union-attr]
    assert views.teacher is not None and views.teacher.answers["copy"][0].shape == (3, 1, *SIZE)
    torch.testing.assert_close(views.teacher.embeddings[0], views.embeddings[0])
    name, parameter = next((n, p) for n, p in objective.network.named_parameters() if p.requires_grad)
    before = objective.teacher.state_dict()[f"network.{name}"].clone()
    with torch.no_grad():
        parameter.add_(1.0)
    objective.commit()
    torch.testing.assert_close(objective.teacher.state_dict()[f"network.{name}"], before + 0.1)
    fresh = build(terms, ["copy", "own-module"], ["follow"])
    fresh.load_state_dict(objective.state_dict())
    assert torch.equal(fresh.teacher.state_dict()[f"network.{name}"], objective.teacher.state_dict()[f"network.{name}"])  # type: ignore[union-attr]


def test_pictures_and_trivial_answers_leave_everything_as_it_was(terms: Plugins) -> None:
    objective = build_objective(UNET, ["inpainting", "relative-position"], ["agreement"], seed=1, plugins=terms)
    objective.train()
    crops = make_crops(3, (24, 24))
    before = deepcopy(objective.state_dict())
    shown, to_beat = pictures(objective, crops, 0), trivial(objective, crops, 0)
    assert {"inpainting/input", "inpainting/prediction", "inpainting/target", "relative-position/first"} <= set(shown)
    assert all(image.dim() == 4 and not image.requires_grad for image in shown.values())
    assert to_beat["relative-position"] == pytest.approx(float(torch.log(torch.tensor(8.0))), rel=1e-3)
    assert 0.3 < to_beat["inpainting"] < 3
    assert objective.training and objective.network.training
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("make", "failed in make of task 'misbehaving': ZeroDivisionError: in make"),
        ("loss", "failed in loss of task 'misbehaving': ZeroDivisionError: in loss"),
        ("shape", r"one value a sample, \(2,\), is needed"),
        ("rows", "its head needs one for each of 2 crops"),
        ("type", "not a PretextBatch"),
    ],
)
def test_a_plugin_that_fails_is_named(terms: Plugins, where: str, says: str) -> None:
    objective = build(terms, [{"name": "misbehaving", "where": where}])
    with pytest.raises(PluginError, match=says):
        objective.run(make_crops(2, SIZE), 0)


@pytest.mark.parametrize(
    ("tasks", "consistency", "views", "error", "says"),
    [
        ([], [], {}, ConfigError, "nothing to learn"),
        (["copy", "copy"], [], {}, ConfigError, "two terms of this run.*as: NAME"),
        ([{"name": "copy", "as": "half"}], [], {}, ConfigError, "can be called 'half': that is a word of PyTorch's"),
        ([{"name": "copy", "as": "loss"}], [], {}, ConfigError, "can be called 'loss': that is a column"),
        (["order"], ["agreement"], {}, ConfigError, "no task here gives both the same answer"),
        ([], ["agreement"], {}, ConfigError, "Add a task such as inpainting"),
        (["inpaintin"], [], {}, PluginError, "Did you mean 'inpainting'"),
        (["simsiam"], [], {}, ConfigError, "Put it under `consistency:`"),
        ([{"name": "inpainting", "ration": 0.5}], [], {}, ConfigError, r"tasks\.0 \(inpainting\).*'ration'. Did you mean 'ratio'"),
        ([{"name": "inpainting", "weight": 0}], [], {}, ConfigError, "weight"),
        ([{"ratio": 0.5}], [], {}, ConfigError, "'name' is missing"),
        ([3], [], {}, ConfigError, "a mapping"),
        (["copy"], ["agreement"], {"transforms": (ELASTIC,)},
         ConfigError, "no affine"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_message(
    terms: Plugins, tasks: list[Any], consistency: list[Any], views: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        build(terms, tasks, consistency, **views)


def test_what_is_not_installed_says_what_to_install() -> None:
    bare = Plugins()
    with pytest.raises(PluginError, match="pip install medssl-inpainting"):
        build_objective(UNET, ["inpainting"], plugins=bare)
    with pytest.raises(PluginError, match="pip install medssl-consistency"):
        build_objective(UNET, [], ["simsiam"], plugins=bare)


def test_crops_that_do_not_fit_the_network_are_refused(terms: Plugins) -> None:
    objective = build(terms, ["copy"])
    with pytest.raises(DataError, match="1 channels"):
        objective.run(make_crops(2, SIZE, channels=2), 0)
    with pytest.raises(DataError, match="2 spatial dimensions"):
        objective.run(make_crops(2, (8, 8, 8)), 0)


def test_terms_may_be_classes_objects_or_pairs(terms: Plugins, classes: Any) -> None:
    first = build(terms, [classes.Copy, (classes.Brightness, 0.5)])
    assert first.weights == {"copy": 1.0, "brightness": 0.5}
    task = classes.Copy(classes.Copy.Options(factor=2.0), first.info)
    assert build(terms, [task]).tasks["copy"] is task


def test_monai_transforms_as_views(terms: Plugins) -> None:
    flip = {"_target_": "monai.transforms.RandFlip", "prob": 1.0, "spatial_axis": 0}
    objective = build(terms, ["copy"], ["agreement", "spy"], transforms=(flip,))
    objective.run(make_crops(2, SIZE), 0)
    views = objective.losses["spy"].seen[0]  # type: ignore[index,union-attr]
    assert views.affines[1, 0, 0].tolist() == [-1.0, 0.0, 15.0]


def test_a_network_without_a_dense_output_refuses_dense_terms(terms: Plugins) -> None:
    resnet = {"name": "ResNet", "spatial_dims": 2, "options": {"block_inplanes": [4, 4, 8, 8]}}
    with pytest.raises(NetworkError, match="'inpainting' answers for every voxel, and ResNet has no dense output"):
        build_objective(resnet, ["inpainting"], plugins=terms)
    with pytest.raises(NetworkError, match="'spy' compares feature maps"):
        build_objective(resnet, ["own-module"], ["spy"], plugins=terms)


@pytest.mark.parametrize("name", ["loss", "step", "learning_rate", "gradient_norm", "skipped", "dice"])
def test_no_term_takes_the_name_of_a_column_of_the_metrics(terms: Plugins, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"no term can be called '{name}': that is a column of metrics\.jsonl.*as: NAME"):
        build(terms, [{"name": "copy", "as": name}])
