"""Schedules are functions of the step; decay spares norms and biases; optimizer state returns without pickle."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medssl.errors import CheckpointError
from medssl.train.optim import (
    clip_gradients,
    learning_rate_at,
    load_optimizer,
    make_optimizer,
    optimizer_tensors,
    parameter_groups,
    set_learning_rate,
)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.PReLU(), nn.Conv2d(4, 1, 3))


@given(steps=st.integers(1, 5000), warmup=st.floats(0, 0.99), schedule=st.sampled_from(["cosine", "poly", "constant", "one-cycle"]))
def test_the_rate_rises_then_never_rises_again_and_stays_within_the_peak(steps: int, warmup: float, schedule: str) -> None:
    rates = [learning_rate_at(step, steps, 0.1, warmup, schedule) for step in range(0, steps, max(steps // 50, 1))]  # type: ignore[arg-type]
    assert all(0 < rate <= 0.1 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_cosine_agrees_with_torch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    for step in range(40):
        assert learning_rate_at(step, 40, 0.3, 0.0, "cosine") == pytest.approx(oracle.get_last_lr()[0])
        optimizer.step()
        oracle.step()


@pytest.mark.parametrize(("steps", "warmup"), [(40, 0.25), (100, 0.3), (7, 0.5)])
def test_one_cycle_agrees_with_torch(steps: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    oracle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=steps, pct_start=warmup, cycle_momentum=False)
    for step in range(steps):
        assert learning_rate_at(step, steps, 0.3, warmup, "one-cycle") == pytest.approx(oracle.get_last_lr()[0])
        optimizer.step()
        if step < steps - 1:
            oracle.step()


def test_parts_of_a_network_have_rates_of_their_own() -> None:
    module = net()
    groups = parameter_groups(module, 0.1, {"0.weight": 0.5, "0.bias": 0.5})
    assert [(group["weight_decay"], group["scale"], len(group["params"])) for group in groups] == [  # type: ignore[arg-type]
        (0.1, 1.0, 1), (0.1, 0.5, 1), (0.0, 1.0, 4), (0.0, 0.5, 1),
    ]  # fmt: skip
    optimizer = make_optimizer(groups, "adamw", 1.0)
    set_learning_rate(optimizer, 2.0)
    assert [group["lr"] for group in optimizer.param_groups] == [2.0, 1.0, 2.0, 1.0]


def test_norms_and_biases_do_not_decay() -> None:
    module = net()
    decayed, free = parameter_groups(module, 0.1)
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0.0
    names = {id(p): name for name, p in module.named_parameters()}
    assert [names[id(p)] for p in decayed["params"]] == ["0.weight", "3.weight"]  # type: ignore[attr-defined]
    assert len(free["params"]) == 5  # type: ignore[arg-type]
    module[0].weight.requires_grad_(False)
    assert [names[id(p)] for p in parameter_groups(module, 0.1)[0]["params"]] == ["3.weight"]  # type: ignore[attr-defined]


def test_a_group_keeps_its_scale() -> None:
    optimizer = make_optimizer([{"params": [nn.Parameter(torch.zeros(1))], "scale": 0.1}], "sgd", 1.0)
    set_learning_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_clipping_agrees_with_torch_and_reports_the_norm_before() -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    for p, g in zip(parameters, ([3.0, 0, 0], [0, 4.0]), strict=True):
        p.grad = torch.tensor(g)
    assert clip_gradients(parameters, None) == pytest.approx(5)
    assert parameters[0].grad is not None and parameters[0].grad[0] == 3
    assert clip_gradients(parameters, 1.0) == pytest.approx(5)
    assert parameters[0].grad[0] == pytest.approx(0.6, rel=1e-4)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimizer_state_round_trips_bit_for_bit(name: str) -> None:
    def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()

    def make(module: nn.Module) -> torch.optim.Optimizer:
        return make_optimizer(parameter_groups(module, 0.01), name, 0.01)  # type: ignore[arg-type]

    unbroken = net()
    optimizer = make(unbroken)
    train(unbroken, optimizer, range(3))
    resumed = copy.deepcopy(unbroken)
    again = make(resumed)
    saved = {key: value.clone() for key, value in optimizer_tensors(optimizer, unbroken).items()}
    assert "0.weight/" + {"adamw": "exp_avg", "sgd": "momentum_buffer"}[name] in saved
    load_optimizer(again, resumed, saved)
    train(unbroken, optimizer, range(3, 6))
    train(resumed, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True))
    with pytest.raises(CheckpointError, match=r"'gone.weight', which this run does not train"):
        load_optimizer(again, resumed, {"gone.weight/exp_avg": torch.zeros(1)})
