"""Autoencoder and denoising keep the public contract and learn more than their trivial answers."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from medssl_corruption import Autoencoder, Denoising, SpotArtifacts

from medssl.contracts import Draw
from medssl.errors import DataError
from medssl.learn import build_objective
from medssl.learn.looking import trivial
from medssl.testing import PretextTaskContract, make_crops, make_info

NETWORK = {"name": "UNet", "spatial_dims": 2, "options": {"channels": [8, 16], "strides": [2]}}


class TestAutoencoder(PretextTaskContract):
    task = Autoencoder


class TestDenoising(PretextTaskContract):
    task = Denoising


class TestSpotArtifacts(PretextTaskContract):
    task = SpotArtifacts


class TestSpotArtifactsOnTheFeatureMap(PretextTaskContract):
    task = SpotArtifacts
    channels = 2
    options: ClassVar = {"reads": "feature_map", "levels": 1, "width": 4, "settling": 0}


def trained(term: dict, steps: int, network: dict = NETWORK) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Metrics of every step on smooth images, and what the trivial answer gives."""
    objective = build_objective(network, [term], seed=0)
    optimizer = torch.optim.Adam(objective.parameters(), 3e-3)
    rows = []
    for step in range(steps):
        terms = objective.run(make_crops(8, (32, 32), seed=step % 20), step, step / steps)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        objective.commit()
        rows.append({name: float(value.detach()) for name, value in terms.items()})
    return rows, trivial(objective, make_crops(8, (32, 32), seed=999), 0)


@pytest.mark.parametrize("term", [{"name": "autoencoder"}, {"name": "denoising", "amount": 2.0}])
def test_it_learns_more_than_the_trivial_answer(term):
    rows, easy = trained(term, 140)
    assert sum(row["loss"] for row in rows[-10:]) / 10 < 0.9 * easy[term["name"]]


def test_the_autoencoder_sees_the_encoders_end_alone():
    assert Autoencoder(Autoencoder.Options(), make_info(3)).head().features == ("encoder_end",)


def spotting(**options):
    """A task with small modules whose repair network has begun to change something, and a crop's question."""
    torch.manual_seed(0)
    task = SpotArtifacts(SpotArtifacts.Options(**{"levels": 2, "width": 4, **options}), make_info(2, stride=4))
    for block in task.repair.blocks:
        torch.nn.init.normal_(block.outer.weight, std=0.1)
    return task, make_crops(2, (32, 24))


def gradients(task, crops, progress, seen):
    """By module of the task the gradient of a loss that looks at the shown images by `seen`."""
    batch = task.make(crops, Draw(0, 0, crops.index, "x", progress=progress))
    prediction = seen(batch.inputs).view(2, 2, 1).expand_as(batch.target)
    task.zero_grad()
    task.loss(prediction, batch).sum().backward()
    return {name: sum(p.grad.abs().sum() for p in module.parameters() if p.grad is not None) for name, module in task.named_children()}


def test_only_what_the_code_lost_can_be_seen():
    task, crops = spotting()
    batch = task.make(crops, Draw(0, 0, crops.index, "x"))
    real, made = batch.inputs.view(2, 2, 1, 32, 24).unbind(1)
    torch.testing.assert_close(real, task.coder(crops.images)[1])
    dropped = batch.extra["dropped"]
    away = torch.nn.functional.interpolate(dropped, size=(32, 24)) == 0
    # A convolution at each of three resolutions, an interpolation and the repair's two: what is farther from a dropped cell stays.
    near = torch.nn.functional.max_pool2d((~away).float(), 41, stride=1, padding=20) > 0
    assert torch.equal(real[~near], made[~near]) and (real - made).abs().max() > 1e-3
    torch.testing.assert_close(batch.target[:, 1, 1:], dropped.flatten(1))
    assert torch.equal(batch.target[:, :, 0], torch.tensor([[0.0, 1.0], [0.0, 1.0]])) and not batch.target[:, 0].any()


def test_nothing_dropped_is_no_artifact():
    task, crops = spotting(drop=1e-6)
    real, made = task.make(crops, Draw(0, 0, crops.index, "x")).inputs.view(2, 2, 1, 32, 24).unbind(1)
    torch.testing.assert_close(real, made)


def test_a_step_of_the_repair_network_makes_the_discriminator_worse_and_the_autoencoder_has_none():
    def asked(task, crops):
        batch = task.make(crops, Draw(0, 0, crops.index, "x", progress=0.9))
        seen = batch.inputs.square().flatten(1).mean(dim=1)
        return task.loss(seen.view(2, 2, 1).expand_as(batch.target), batch).sum()

    task, crops = spotting(reconstruction=0)
    before = asked(task, crops)
    before.backward()
    assert all(p.grad is None for p in task.coder.parameters())
    with torch.no_grad():
        for parameter in task.repair.parameters():
            parameter -= 0.01 * parameter.grad / parameter.grad.norm()
    assert asked(task, crops) > before
    still, crops = spotting(reconstruction=0, adversarial=0)
    asked(still, crops).backward()
    assert not any(p.grad.any() for p in still.repair.parameters())


def test_the_autoencoder_learns_until_it_has_settled_and_the_repair_network_goes_on():
    task, crops = spotting(settling=0.5, adversarial=0)
    early = gradients(task, crops, 0.4, lambda shown: shown.flatten(1).mean(dim=1))
    late = gradients(task, crops, 0.5, lambda shown: shown.flatten(1).mean(dim=1))
    assert early["coder"] > 0 and late["coder"] == 0
    assert early["repair"] > 0 and late["repair"] > 0


def test_crops_of_air_are_not_asked_about_and_codes_of_one_cell_refused():
    task, crops = spotting()
    crops.images[0] = 0
    assert task.make(crops, Draw(0, 0, crops.index, "x")).answerable.tolist() == [False, True]
    task, crops = spotting(levels=5)
    with pytest.raises(DataError, match="one cell"):
        task.make(crops, Draw(0, 0, crops.index, "x"))


def test_artifacts_are_told():
    deeper = {**NETWORK, "options": {"channels": [8, 16, 32], "strides": [2, 2]}}
    rows, _ = trained({"name": "spot-artifacts", "levels": 2, "width": 8}, 150, deeper)
    assert sum(row["spot-artifacts/accuracy"] for row in rows[-10:]) / 10 > 0.75
