"""A small form of `make bench-tasks`: fails where a ratio is half of what the benchmark found. CPU time, so other jobs hardly count."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from benchmarks.measure import alternately, call_cost
from benchmarks.tasks import contrast, make_of

sys.path.pop(0)

from medssl_consistency.simclr import nt_xent

from medssl.plugins import Plugins
from medssl.testing import make_crops

PLUGINS = Plugins.load()
CROPS = make_crops(2, (96, 96, 96))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def best_ratio(ours, peer) -> float:  # type: ignore[no-untyped-def]
    """What ours costs beside the peer, in CPU time; the best of three looks, for a busy machine only ever hides it."""
    ours(), peer()
    found = [alternately({"ours": lambda: call_cost(ours), "peer": lambda: call_cost(peer)}, 5) for _ in range(3)]
    return min(one["ours"].cpu / one["peer"].cpu for one in found)


@pytest.mark.parametrize(("name", "copies"), [("inpainting", 7.5), ("relative-position", 4.0), ("jigsaw", 8.0), ("rotation", 5.0)])
def test_a_question_costs_a_few_copies(name: str, copies: float) -> None:
    assert best_ratio(make_of(name, CROPS, PLUGINS), CROPS.images.clone) < 2 * copies


def test_simclr_is_faster_than_monais_and_finite_where_that_is_cold() -> None:
    ours, peer = contrast(512, 128)
    assert best_ratio(ours, peer) < 2 / 60
    one, other = 20 * torch.randn(2, 64, 128)
    assert torch.isfinite(nt_xent(torch.stack([one, other], dim=1), torch.arange(64), 0.01)).all()


def test_every_task_is_measured() -> None:
    """Each is made once on what the benchmark gives it."""
    from benchmarks.tasks import CHANNELS

    for name in PLUGINS.tasks():
        make_of(name, make_crops(1, (96, 96, 96), CHANNELS.get(name, 1)), PLUGINS)()
