"""How terms share the steps of a run: balanced by their gradients, or taking turns."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medssl.learn import Objective, build_objective, freeze_unreached
from medssl.learn.weighing import MEASURE_EVERY, Balance, Combine, gradients_of, turn
from medssl.plugins import Plugins
from medssl.testing import make_crops

UNET = {"name": "UNet", "spatial_dims": 2, "options": {"channels": [4, 8], "strides": [2]}}
CROPS = make_crops(2, (16, 16))


def build(terms: Plugins, tasks: list[Any], combine: Combine, consistency: tuple[Any, ...] = ()) -> Objective:
    return build_objective(UNET, tasks, consistency, seed=1, plugins=terms, combine=combine)


def sizes(objective: Objective, step: int) -> dict[str, float]:
    """How large the gradient of each term is in the sum that is trained on, by the network's parameters."""
    losses = objective.run(CROPS, step)
    factors = objective.balance.factors() if objective.balance is not None else dict.fromkeys(objective.weights, torch.ones(()))
    parts = {key: losses[key] * objective.weights[key] * factors[key] for key in objective.weights}
    found = gradients_of(parts, list(objective.network.parameters()))
    objective.forget()
    return {key: float(torch.cat([g.flatten() for g in grads if g is not None]).norm()) for key, grads in found.items()}


@given(weights=st.dictionaries(st.text("abc", min_size=1), st.floats(0.2, 5), min_size=1, max_size=6), first=st.integers(0, 10**6))
def test_terms_have_as_many_turns_as_their_weights_say(weights: dict[str, float], first: int) -> None:
    steps = 500
    turns = Counter(turn(weights, step) for step in range(first, first + steps))
    for key, weight in weights.items():
        assert abs(turns[key] - steps * weight / sum(weights.values())) <= 8


def test_no_term_waits_long_for_its_turn() -> None:
    weights = dict.fromkeys("abc", 1.0)
    order = "".join(turn(weights, step) for step in range(3000))
    assert all(set(order[step : step + 6]) == set("abc") for step in range(2990))


def test_in_its_turn_a_term_is_alone(terms: Plugins) -> None:
    tasks = [{"name": "copy"}, {"name": "flip", "weight": 3}]
    objective, alone = build(terms, tasks, "turns"), {key: build(terms, [key], "sum") for key in ("copy", "flip")}
    seen: Counter[str] = Counter()
    for step in range(12):
        losses = objective.run(CROPS, step)
        key = turn(objective.weights, step)
        seen[key] += 1
        assert losses.keys() == {key, "loss"}
        one = alone[key]
        one.network.load_state_dict(objective.network.state_dict())
        one.heads[key].load_state_dict(objective.heads[key].state_dict())
        torch.testing.assert_close(losses["loss"], one.run(CROPS, step)["loss"])
    assert seen["flip"] == 9
    assert seen["copy"] == 3


def test_a_loss_that_compares_answers_has_them_in_its_turn(terms: Plugins) -> None:
    objective = build(terms, ["copy", "brightness"], "turns", ("spy",))
    steps = [step for step in range(20) if turn(objective.weights, step) == "spy"]
    losses = objective.run(CROPS, steps[0])
    assert losses.keys() == {"spy", "loss"}
    spy: Any = objective.losses["spy"]
    assert set(spy.seen[-1].answers) == {"copy"}
    assert len(spy.seen[-1].embeddings) == 2
    other = next(step for step in range(20) if turn(objective.weights, step) == "copy")
    assert len(objective.ask(CROPS, other).views) == 1, "no second view where nothing is compared"


def test_what_has_its_turn_later_is_not_frozen(terms: Plugins) -> None:
    frozen = {combine: freeze_unreached(build(terms, ["brightness", "copy"], combine), CROPS) for combine in ("sum", "turns")}
    assert frozen["turns"] == frozen["sum"]
    objective = build(terms, ["brightness", "copy"], "turns")
    freeze_unreached(objective, CROPS)
    assert objective.sometimes_unreached


def test_balanced_terms_move_the_network_equally(terms: Plugins) -> None:
    tasks = [{"name": "copy"}, {"name": "square", "factor": 30.0}]
    plain = sizes(build(terms, tasks, "sum"), 0)
    assert plain["square"] > 5 * plain["copy"]
    objective = build(terms, tasks, "balanced")
    objective.run(CROPS, 0)["loss"].backward()
    objective.commit()
    balanced = sizes(objective, MEASURE_EVERY)
    assert balanced["square"] == pytest.approx(balanced["copy"], rel=0.05)


def test_a_weight_still_counts_where_gradients_are_balanced(terms: Plugins) -> None:
    objective = build(terms, [{"name": "copy", "weight": 4}, {"name": "square", "factor": 30.0}], "balanced")
    objective.run(CROPS, 0)["loss"].backward()
    objective.commit()
    found = sizes(objective, MEASURE_EVERY)
    assert found["copy"] == pytest.approx(4 * found["square"], rel=0.05)


def test_a_term_without_a_gradient_leaves_the_others_alone(terms: Plugins) -> None:
    objective = build(terms, ["copy"], "balanced", ("spy",))
    assert objective.balance is not None
    objective.balance.update([{"copy": [torch.ones(3)]}], [torch.zeros(3)])
    assert [float(factor) for factor in objective.balance.factors().values()] == [1.0, 1.0]


def test_a_term_may_be_without_a_gradient_in_some_micro_batches_and_reach_nothing_of_the_network() -> None:
    weight, own = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    balance = Balance(["always", "sometimes", "never"])
    first = {"always": 2 * weight.sum(), "sometimes": torch.tensor(0.0), "never": own.sum()}
    second = {"always": 2 * weight.sum(), "sometimes": weight.sum(), "never": own.sum()}
    balance.update([gradients_of(terms, [weight]) for terms in (first, second)], [weight])
    assert balance.sizes.tolist() == pytest.approx([4 * 3**0.5, 3**0.5, 0])
    assert float(balance.factors()["never"]) == 1


def test_sizes_are_measured_every_so_often_after_steps_that_were_taken(terms: Plugins) -> None:
    objective = build(terms, ["copy", "square"], "balanced")
    assert objective.balance is not None
    objective.run(CROPS, 0)
    objective.forget()
    assert not objective.balance.sizes.any()
    objective.run(CROPS, 0)
    objective.commit()
    first = objective.balance.sizes.clone()
    assert first.all()
    objective.run(CROPS, 1)
    objective.commit()
    assert torch.equal(objective.balance.sizes, first)
    assert "balance.sizes" in objective.state_dict()


def test_micro_batches_give_the_sizes_of_the_whole_batch(terms: Plugins) -> None:
    from medssl.testing import select

    crops, parts = make_crops(4, (16, 16)), [[0, 1], [2, 3]]
    whole, split = (build(terms, ["copy", "square"], "balanced") for _ in range(2))
    whole.run(crops, 0)
    whole.commit()
    asked = [split.ask(select(crops, rows), 0) for rows in parts]
    totals = split.totals(asked)
    for one in asked:
        split(one, totals)
    split.commit()
    assert whole.balance is not None
    assert split.balance is not None
    torch.testing.assert_close(split.balance.sizes, whole.balance.sizes)
