"""Autoencoder and denoising keep the public contract and learn more than their trivial answers."""

from __future__ import annotations

import pytest
import torch
from medssl_corruption import Autoencoder, Denoising

from medssl.learn import build_objective
from medssl.learn.looking import trivial
from medssl.testing import PretextTaskContract, make_crops, make_info

NETWORK = {"name": "UNet", "spatial_dims": 2, "options": {"channels": [8, 16], "strides": [2]}}


class TestAutoencoder(PretextTaskContract):
    task = Autoencoder


class TestDenoising(PretextTaskContract):
    task = Denoising


def trained(term: dict, steps: int) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Metrics of every step on smooth images, and what the trivial answer gives."""
    objective = build_objective(NETWORK, [term], seed=0)
    optimizer = torch.optim.Adam(objective.parameters(), 3e-3)
    rows = []
    for step in range(steps):
        terms = objective.run(make_crops(8, (32, 32), seed=step % 20), step)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        objective.commit()
        rows.append({name: float(value) for name, value in terms.items()})
    return rows, trivial(objective, make_crops(8, (32, 32), seed=999), 0)


@pytest.mark.parametrize("term", [{"name": "autoencoder"}, {"name": "denoising", "amount": 2.0}])
def test_it_learns_more_than_the_trivial_answer(term):
    rows, easy = trained(term, 140)
    assert sum(row["loss"] for row in rows[-10:]) / 10 < 0.9 * easy[term["name"]]


def test_the_autoencoder_sees_the_encoders_end_alone():
    assert Autoencoder(Autoencoder.Options(), make_info(3)).head().features == ("encoder_end",)
