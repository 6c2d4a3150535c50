"""Every volume once an epoch: however samples are divided among ranks, micro batches and steps, and at the same cost for any number."""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.volumes import CropLoader, CropOptions, CropPlan, DataOptions, Incoming, Store, StoredVolume, write_store
from medssl.volumes.crops.order import shuffled

VOLUMES = 7


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seven") / "s"

    def load(seed: int) -> tuple[np.ndarray, np.ndarray]:
        return np.random.default_rng(seed).integers(0, 99, (6, 6, 6)).astype(np.int16), np.eye(4)

    write_store([Incoming(f"v{i}", "p", "s", "MR", lambda i=i: load(i)) for i in range(VOLUMES)], folder)
    return folder


@settings(max_examples=60, deadline=None)
@given(count=st.one_of(st.integers(1, 60), st.integers(500, 520)), epoch=st.integers(0, 10**9), key=st.text(max_size=5))
def test_each_epoch_is_a_permutation(count: int, epoch: int, key: str) -> None:
    assert sorted(shuffled(epoch * count + place, count, key) for place in range(count)) == list(range(count))


def test_all_orders_are_alike_and_epochs_differ() -> None:
    met = Counter(tuple(shuffled(4 * epoch + place, 4, "k") for place in range(4)) for epoch in range(4800))
    assert met.keys() == set(permutations(range(4)))
    assert 130 < min(met.values()) <= max(met.values()) < 280
    first, second = ([shuffled(1000 * epoch + place, 1000, "k") for place in range(1000)] for epoch in range(2))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.12
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.12


def seen(folder: Path, world: int, accumulate: int, batch: int, steps: int) -> list[int]:
    """The volumes of all samples, in the order of their global numbers."""
    options = DataOptions(store=str(folder), size=(4, 4, 4), batch=batch)
    found: dict[tuple[int, int], int] = {}
    numbers = {volume.sample: number for number, volume in enumerate(Store(folder).volumes)}
    for rank in range(world):
        with CropLoader(Store(folder), options, 3, accumulate, rank=rank, world=world) as loader:
            for step, _, crops in islice(loader, steps * accumulate):
                samples = zip(crops.index.tolist(), crops.sample.tolist(), strict=True)
                found |= {(step, index): numbers[sample] for index, sample in samples}
    return [found[key] for key in sorted(found)]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_volume_comes_once_an_epoch(seven: Path, world: int, accumulate: int) -> None:
    """Of seven volumes, eight samples a step: epochs begin and end within steps."""
    order = seen(seven, world, accumulate, 8 // (world * accumulate), 8)
    assert len(order) == 64
    for start in range(0, 63, VOLUMES):
        assert sorted(order[start : start + VOLUMES]) == list(range(VOLUMES))
    assert order == seen(seven, 1, 1, 8, 8)
    assert order[:VOLUMES] != order[VOLUMES : 2 * VOLUMES]


class Many:
    """A store of `count` volumes that are all the one of `store`."""

    def __init__(self, store: Store, count: int) -> None:
        self.folder, self.spatial_dims, self._count, self._one = store.folder, 3, count, store.volume(0)
        self.columns = ("patient",)

    def column(self, name: str) -> list[int]:
        return [number // 2 for number in range(self._count)]

    def __len__(self) -> int:
        return self._count

    def shapes(self) -> np.ndarray:
        return np.full((self._count, 3), 6)

    def volume(self, number: int) -> StoredVolume:
        return self._one


@pytest.mark.parametrize("balance", ["volume", "patient"])
def test_a_step_costs_the_same_with_a_million_volumes(seven: Path, balance: str) -> None:
    def cost(count: int) -> float:
        plan = CropPlan(Many(Store(seven), count), CropOptions.model_validate({"size": (4, 4, 4), "balance": balance}))  # type: ignore[arg-type]
        best = float("inf")
        for _ in range(5):
            started = time.process_time()
            for step in range(50):
                plan.place(step, 4 * step)
            best = min(best, time.process_time() - started)
        return best

    assert cost(1_000_000) < 4 * cost(10)
