"""Loading what fits, never a head, and proving it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medssl.errors import TransferError
from medssl.networks import NetworkSpec, as_spec, head_tensors, load_matching, unique_tensors


def test_all_but_the_head(spec: NetworkSpec) -> None:
    source, target = spec.build(2, seed=1), spec.build(2, seed=2)
    heads = head_tensors(spec)
    kept = {name: unique_tensors(target)[name].clone() for name in heads}
    matched = load_matching(target, source.state_dict(), heads)
    assert matched.coverage == 1.0
    assert set(matched.new) == set(heads)
    assert set(matched.left) == set(heads)
    got, given = unique_tensors(target), unique_tensors(source)
    assert all(torch.equal(got[name], given[name]) for name in matched.loaded)
    assert all(torch.equal(got[name], kept[name]) for name in heads)


def test_reasons_for_what_is_left() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    given = {
        "0.weight": torch.zeros(4, 2, 3, 3),
        "0.bias": torch.zeros(4),
        "9.weight": torch.zeros(1),
        "1.num_batches_tracked": torch.tensor(1.5),
        "2.weight": torch.zeros(2, 4, 1, 1),
    }
    matched = load_matching(network, given, ["2.weight", "2.bias"])
    assert matched.loaded == ("0.bias",)
    assert "shape (4, 2, 3, 3), the network has (4, 1, 3, 3)" in matched.left["0.weight"]
    assert "no tensor of this name" in matched.left["9.weight"]
    assert "float32" in matched.left["1.num_batches_tracked"]
    assert "head" in matched.left["2.weight"]
    assert 0 < matched.coverage < 0.2


def test_names_that_are_aliases_are_not_left() -> None:
    spec = as_spec(NetworkSpec("DynUNet", options={"filters": [4, 8, 16, 16], "deep_supervision": True}))
    matched = load_matching(spec.build(2), spec.build(2).state_dict(), head_tensors(spec))
    assert matched.coverage == 1.0
    assert set(matched.left) == set(head_tensors(spec))


def test_weights_that_diverged_are_refused() -> None:
    with pytest.raises(TransferError, match="'weight' holds NaN"):
        load_matching(nn.Linear(1, 1), {"weight": torch.full((1, 1), float("nan"))}, [])


def test_values_that_did_not_arrive_are_noticed() -> None:
    network = nn.Linear(2, 2)
    network.register_buffer("first_row", network.weight.data[0])
    with pytest.raises(TransferError, match="does not hold the given values"):
        load_matching(network, {"weight": torch.ones(2, 2), "first_row": torch.zeros(2)}, [])
