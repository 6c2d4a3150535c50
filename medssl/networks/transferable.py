"""Loading the tensors that fit, never those of a head, and proving that their values arrived."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medssl.errors import TransferError
from medssl.networks.difference import unique_tensors
from medssl.networks.spec import NetworkSpec


@dataclass(frozen=True)
class Matched:
    """What became of every tensor."""

    loaded: tuple[str, ...]
    """Names in the network whose values now are the given ones."""
    new: tuple[str, ...]
    """Names in the network that keep their first values."""
    left: dict[str, str]
    """Names among the given tensors that were not used -> why."""
    coverage: float
    """Share of the network's elements outside its head that were loaded; 0 .. 1."""


def first_network(spec: NetworkSpec, seed: int | None = None) -> nn.Module:
    """A new network of `spec`; where that was read from a network that exists, with its weights, but for what has another shape.

    The network itself is left as it is.
    """
    network = spec.build(seed=seed)
    if spec.live is not None:
        load_matching(network, {name: tensor.detach() for name, tensor in spec.live.state_dict().items()}, ())
    return network


def load_matching(network: nn.Module, tensors: Mapping[str, Tensor], head_names: Collection[str]) -> Matched:
    """Copy every tensor whose name and shape fit into `network`, except those named in `head_names`; values are compared after.

    `head_names` are the heads of both sides: a head never loads into a new head, not even where the shapes agree.
    """
    targets, aliases = unique_tensors(network), _aliases(network)
    heads = frozenset(aliases.get(name, name) for name in head_names)
    tensors = {aliases.get(name, name): tensor for name, tensor in reversed(list(tensors.items()))}
    left: dict[str, str] = {}
    loaded: list[str] = []
    with torch.no_grad():
        for name, given in reversed(list(tensors.items())):
            problem = _problem(name, given, targets, heads)
            if problem is not None:
                left[name] = problem
                continue
            targets[name].copy_(given)
            loaded.append(name)
    _verify(targets, tensors, loaded)
    body = {name: tensor.numel() for name, tensor in targets.items() if name not in heads}
    total = sum(body.values())
    covered = sum(body[name] for name in loaded)
    new = tuple(name for name in targets if name not in set(loaded))
    return Matched(tuple(loaded), new, left, covered / total if total else 0.0)


def _aliases(network: nn.Module) -> dict[str, str]:
    """Other names of a tensor -> its first name."""
    first = {id(tensor): name for name, tensor in unique_tensors(network).items()}
    named = network.state_dict(keep_vars=True)
    return {name: first[id(tensor)] for name, tensor in named.items() if first.get(id(tensor), name) != name}


def _problem(name: str, given: Tensor, targets: Mapping[str, Tensor], heads: frozenset[str]) -> str | None:
    if name in heads:
        return "belongs to a head"
    if name not in targets:
        return "the network has no tensor of this name"
    target = targets[name]
    if target.shape != given.shape:
        return f"shape {tuple(given.shape)}, the network has {tuple(target.shape)}"
    if target.is_floating_point() != given.is_floating_point():
        return f"holds {given.dtype}, the network has {target.dtype}"
    if given.is_floating_point() and not bool(torch.isfinite(given).all()):
        raise TransferError(
            f"tensor '{name}' holds NaN or infinity: these weights come from a training that diverged. Use an earlier checkpoint."
        )
    return None


def _verify(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], loaded: list[str]) -> None:
    for name in loaded:
        target = targets[name]
        if not torch.equal(target, tensors[name].to(device=target.device, dtype=target.dtype)):
            raise TransferError(
                f"tensor '{name}' was copied and does not hold the given values. Two of the network's tensors share memory."
            )
