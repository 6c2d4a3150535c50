"""Losses, gradients and kept state are the same in one batch, in two micro batches, and on two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from medssl.learn.joining import joined
from probes.scenarios import SCENARIOS, STEPS, Trained, train

WHOLE: dict[str, Trained] = {}
DIVIDED = ("air", "a queue", "an annealed term", "self-distillation")
"""Tried with two micro batches on two ranks too: one crop in each."""


def whole(name: str) -> Trained:
    """Trained in one batch, once a session."""
    if name not in WHOLE:
        WHOLE[name] = train(SCENARIOS[name])
    return WHOLE[name]


def check(found: Trained, expected: Trained, rounding: float = 1.0) -> None:
    assert [set(step) for step in found.steps] == [set(step) for step in expected.steps]
    for mine, theirs in zip(found.steps, expected.steps, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4 * rounding, abs=1e-5 * rounding)
    assert found.gradients.keys() == expected.gradients.keys()
    for kind, mine, theirs in (("gradient", found.gradients, expected.gradients), ("state", found.state, expected.state)):
        for key, value in theirs.items():
            # Rounding grows over four steps; what is divided wrongly is off by a factor of two.
            room = (1e-6 + 3e-4 * float(value.abs().max())) * rounding
            torch.testing.assert_close(mine[key], value, atol=room, rtol=1e-3, msg=lambda m, n=f"{kind} {key}": f"{n}: {m}")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if scenario.divides])
def test_two_micro_batches_make_what_one_batch_would(name: str) -> None:
    assert len(whole(name).steps) == STEPS
    check(train(SCENARIOS[name], accumulate=2), whole(name))


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found: dict[str, Any] = {name: vars(train(scenario, rank=rank, world=2)) for name, scenario in SCENARIOS.items()}
    found |= {f"{name}, divided": vars(train(SCENARIOS[name], accumulate=2, rank=rank, world=2)) for name in DIVIDED}
    try:
        joined([torch.zeros(2, 3 + rank)])
    except ValueError as error:
        found["shapes"] = str(error)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    # The group ends with the process: where it is destroyed, the end of what DistributedDataParallel holds of it may wait for ever.


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Trained]]:
    """What two processes made that trained every scenario together."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(run_rank, args=(str(folder),), nprocs=2, start_method="fork")
    found = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert all("Give the same fields" in one.pop("shapes") for one in found)  # instead of waiting for each other
    return [{name: Trained(**values) for name, values in one.items()} for one in found]


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_ranks_make_what_one_would(name: str, ranks: list[dict[str, Trained]]) -> None:
    # A norm over four rows multiplies rounding.
    rounding = 1.0 if SCENARIOS[name].divides else 100.0
    for rank in ranks:
        check(rank[name], whole(name), rounding)


@pytest.mark.parametrize("name", DIVIDED)
def test_micro_batches_on_two_ranks_make_what_one_batch_would(name: str, ranks: list[dict[str, Trained]]) -> None:
    for rank in ranks:
        check(rank[f"{name}, divided"], whole(name))
