"""Head and stem by difference: build the network with other numbers of outputs (inputs); what changed is the head (the stem).

Nothing is guessed from names. A head is often more than one convolution: UNet's is a transposed convolution and a residual unit,
VNet's two convolutions with a norm between, and BasicUNetPlusPlus has four heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn

from medssl.errors import NetworkError
from medssl.networks.probe import Skeleton, skeleton_of
from medssl.networks.spec import NetworkSpec, SpecKey

_PAIRS: dict[str, list[tuple[dict[str, int], dict[str, int]]]] = {
    "out_channels": [({"out_channels": 3}, {"out_channels": 5}), ({"out_channels": 16}, {"out_channels": 32})],
    "in_channels": [
        ({"in_channels": 1, "out_channels": 3}, {"in_channels": 2, "out_channels": 3}),
        ({"in_channels": 16, "out_channels": 16}, {"in_channels": 32, "out_channels": 16}),
    ],
}
"""What to build with, two by two; the second pair is for networks whose norms need a divisible number of channels."""


def unique_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, each tensor once under its first name (DynUNet registers many twice)."""
    saved = set(network.state_dict(keep_vars=True))
    named = [*network.named_parameters(), *network.named_buffers()]
    return {name: tensor for name, tensor in named if name in saved}


def head_modules(spec: NetworkSpec) -> tuple[str, ...]:
    """Names of the layers whose shape depends on the number of outputs; () for networks without such layers."""
    return _changed(SpecKey(spec), "out_channels")


def stem_modules(spec: NetworkSpec) -> tuple[str, ...]:
    """Names of the layers whose shape depends on the number of inputs; () for networks that fix it."""
    if spec.source().in_name is None:
        return ()
    return _changed(SpecKey(spec), "in_channels")


def head_tensors(spec: NetworkSpec) -> tuple[str, ...]:
    """Names of all tensors of the head's layers, and of `spec.head` where it is given: what never loads into a new head."""
    layers = (*head_modules(spec), *([spec.head] if spec.head is not None else []))
    return _owned_by(spec, layers)


def stem_tensors(spec: NetworkSpec) -> tuple[str, ...]:
    """Names of all tensors of the stem's layers."""
    return _owned_by(spec, stem_modules(spec))


def _owned_by(spec: NetworkSpec, layers: Iterable[str]) -> tuple[str, ...]:
    prefixes = tuple(layers)
    return tuple(name for name in _names(SpecKey(spec)) if any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes))


@lru_cache(maxsize=64)
def _names(key: SpecKey) -> tuple[str, ...]:
    """Of all tensors; every checkpoint says which of them are the head's."""
    return tuple(unique_tensors(key.spec.skeleton()))


def head_module(spec: NetworkSpec) -> str | None:
    """The smallest module that holds the head and gives a dense output; None where the network has no dense output.

    `spec.head` goes first. Where several separate heads remain, the one that feeds the full-size output counts.
    """
    return _head_module(SpecKey(spec))


def dense_head(spec: NetworkSpec, channels: int, seed: int | None = None) -> tuple[str, nn.Module]:
    """A head with `channels` outputs for the shared feature map, and the name of the module whose input that map is.

    The head is that module taken from a donor network built with `channels` outputs. Raises `NetworkError` for classifiers.
    """
    name = head_module(spec)
    if name is None:
        raise NetworkError(
            f"{spec} has no output for every voxel, so it cannot answer dense pretext tasks. Take a segmentation network "
            "(UNet, SegResNet, DynUNet, ...), or tasks that answer once a crop."
        )
    donor = spec.build(out_channels=channels, seed=seed)
    return name, donor.get_submodule(name)


def swap_head(network: nn.Module, spec: NetworkSpec, out_channels: int, seed: int | None = None) -> nn.Module:
    """`network` itself with the layers of its head replaced by those of a donor with `out_channels` outputs."""
    layers = head_modules(spec)
    if not layers:
        raise NetworkError(f"no layer of {spec} depends on its number of outputs, so there is no head to swap.")
    donor = spec.build(out_channels=out_channels, seed=seed)
    targets = _all_names(network)
    for layer in layers:
        if layer not in targets:
            raise NetworkError(f"the network has no '{layer}', which {spec} has: it was not built from this specification.")
        for alias in targets[layer]:
            _set_layer(network, alias, donor.get_submodule(layer))
    return network


def _all_names(network: nn.Module) -> dict[str, list[str]]:
    """Every name a module is registered under, by its first name: DynUNet registers its heads under two."""
    by_identity: dict[int, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        by_identity.setdefault(id(module), []).append(name)
    return {names[0]: names for names in by_identity.values()}


def _set_layer(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, layer)


@lru_cache(maxsize=64)
def _changed(key: SpecKey, what: str) -> tuple[str, ...]:
    problem: NetworkError | None = None
    for pair in _PAIRS[what]:
        try:
            one, other = (key.spec.skeleton(**numbers) for numbers in pair)
        except NetworkError as error:
            problem = problem or error
            continue
        return _different_layers(one, other)
    raise problem if problem is not None else NetworkError(f"{key.spec} cannot be built.")


def _different_layers(one: nn.Module, other: nn.Module) -> tuple[str, ...]:
    """Owners of tensors that differ in shape, and layers without tensors that were told another width (norms)."""
    left, right = unique_tensors(one), unique_tensors(other)
    owners = [name.rpartition(".")[0] for name in {**left, **right} if _shape(left, name) != _shape(right, name)]
    others = dict(other.named_modules())
    told = [
        name
        for name, module in one.named_modules()
        if not any(module.children()) and name in others and module.extra_repr() != others[name].extra_repr()
    ]
    wanted = {*owners, *told}
    order = [*dict(one.named_modules()), *others]
    return tuple(dict.fromkeys(name for name in order if name in wanted))


def _shape(tensors: dict[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None


@lru_cache(maxsize=64)
def _head_module(key: SpecKey) -> str | None:
    spec = key.spec
    skeleton = skeleton_of(spec)
    if spec.head is not None:
        return _given_head(spec, skeleton)
    layers = head_modules(spec)
    if not layers or len(skeleton.output) != spec.spatial_dims + 2:
        return None
    shared = _common(layers)
    candidates = [shared] if shared else list(reversed(layers))
    for name in candidates:
        flow = skeleton.flow(name)
        if flow is not None and len(flow.reads) == spec.spatial_dims + 2 and flow.writes[2:] == skeleton.output[2:] and flow.is_output:
            return name
    raise NetworkError(
        f"the head of {spec} cannot be singled out: its outputs come from {', '.join(layers)}. "
        "Name the module that turns the feature map into the output: network.head: NAME"
    )


def _given_head(spec: NetworkSpec, skeleton: Skeleton) -> str | None:
    flow = skeleton.flow(str(spec.head))
    if flow is None:
        raise NetworkError(f"head '{spec.head}' of {spec} does not take one tensor and give one in a forward pass. Name another module.")
    return spec.head if len(flow.reads) == spec.spatial_dims + 2 and len(flow.writes) == spec.spatial_dims + 2 else None


def _common(layers: tuple[str, ...]) -> str:
    paths = [layer.split(".") for layer in layers]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
