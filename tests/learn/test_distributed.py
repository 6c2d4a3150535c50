"""The objective under DistributedDataParallel: one forward, every parameter with a gradient, two ranks make what one would."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, get_args

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from medssl.contracts import ConsistencyLoss, Needs, Views
from medssl.learn import Objective, build_objective, freeze_unreached
from medssl.learn.joining import world
from medssl.learn.weighing import Combine
from medssl.testing import make_crops, select

UNET = {"name": "UNet", "spatial_dims": 2, "options": {"channels": [4, 8, 8], "strides": [2, 2]}}
STEPS = 3


def build(combine: Combine) -> Objective:
    objective = build_objective(UNET, ["inpainting", "relative-position"], ["agreement"], seed=3, combine=combine)
    freeze_unreached(objective, make_crops(2, (24, 24)))
    return objective


def train(module: torch.nn.Module, objective: Objective, rows: list[int]) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.01)
    for step in range(STEPS):
        optimizer.zero_grad()
        asked = objective.ask(select(make_crops(4, (24, 24), seed=step), rows), step)
        (module(asked, objective.totals([asked]))["loss"] * world()).backward()
        optimizer.step()
        objective.commit()
    return objective.state_dict()


def run_rank(rank: int, ranks: int, folder: str, combine: Combine = "sum") -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    objective = build(combine)
    unused = objective.sometimes_unreached
    wrapped = DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=unused)
    share = 4 // ranks
    state = train(wrapped, objective, list(range(rank * share, (rank + 1) * share)))
    torch.save(state, Path(folder) / f"rank{rank}.pt")
    # The group ends with the process: where it is destroyed, the end of what DistributedDataParallel holds of it may wait for ever.


def check(folder: Path, ranks: int, combine: Combine = "sum") -> None:
    one = build(combine)
    expected = train(one, one, [0, 1, 2, 3])
    for rank in range(ranks):
        found = torch.load(folder / f"rank{rank}.pt", weights_only=True)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Tests that compare bits must find torch's thread number as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_one_rank_takes_every_step(tmp_path: Path) -> None:
    # Not here: a process group that is left over in this process would lock up the ranks that are forked from it.
    mp.start_processes(run_rank, args=(1, str(tmp_path)), nprocs=1, start_method="fork")
    check(tmp_path, 1)


@pytest.mark.parametrize("combine", get_args(Combine))
def test_two_ranks_make_what_one_would(tmp_path: Path, combine: Combine) -> None:
    mp.start_processes(run_rank, args=(2, str(tmp_path), combine), nprocs=2, start_method="fork")
    check(tmp_path, 2, combine)


class OnSome(ConsistencyLoss):
    """Compares the embeddings of the first two crops alone: other micro batches, or ranks, have nothing to learn from it."""

    name: ClassVar[str] = "on-some"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings"})

    def forward(self, views: Views) -> Tensor:
        first = views.crops.index < 2
        if not first.any():
            return torch.zeros(len(first))
        one, other = views.embeddings
        return (one - other).square().sum(dim=1) * first


def balanced_sizes(halves: list[list[int]]) -> Tensor:
    """The sizes of the terms' gradients after a step on these micro batches of four crops."""
    objective = build_objective(UNET, ["inpainting"], [OnSome], seed=3, combine="balanced")
    asked = [objective.ask(select(make_crops(4, (24, 24)), rows), 0) for rows in halves]
    totals = objective.totals(asked)
    for one in asked:
        objective(one, totals)
    objective.commit()
    assert objective.balance is not None
    return objective.balance.sizes


def balance_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    torch.save(balanced_sizes([[[0, 1], [2, 3]][rank]]), Path(folder) / f"rank{rank}.pt")


def test_a_term_without_a_gradient_on_one_rank_is_balanced_as_over_micro_batches(tmp_path: Path) -> None:
    mp.start_processes(balance_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    expected = balanced_sizes([[0, 1], [2, 3]])
    assert expected.all()
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"rank{rank}.pt", weights_only=True), expected)
