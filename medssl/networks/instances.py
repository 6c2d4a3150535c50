"""A network that exists already (a bundle's `network_def`, a model with weights) as something that can be built again.

Where its attributes say what it was built with, that is its specification. Otherwise it is copied, and the copy gets layers for another
number of outputs: those that the output comes from, found by running it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import NetworkError

_WEIGHTS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
_ALIASES = {"spatial_dims": "dimensions"}
"""Parameter -> attribute that MONAI's networks keep it in under another name."""
_SIDES = (16, 32, 64, 96, 128, 48, 224)
"""Sides of images on which a network is tried."""


def said_by(network: nn.Module, parameters: Collection[str]) -> dict[str, Any]:
    """Those of the `parameters` of its class that the network keeps as plain values."""
    kept = vars(network)
    names = {name: name if name in kept else _ALIASES.get(name, name) for name in parameters}
    return {name: kept[attribute] for name, attribute in names.items() if attribute in kept and _plain(kept[attribute])}


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str | Enum)


def alike(network: nn.Module, other: nn.Module) -> bool:
    """Whether both have the same layers and, with the weights of the first, answer the same."""
    if _layers(network) != _layers(other) or _shapes(network) != _shapes(other):
        return False
    ours, theirs = (deepcopy(one).cpu().eval() for one in (network, other))
    theirs.load_state_dict(ours.state_dict())
    for images in examples(network):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                answers = [_tensors(one(images)) for one in (ours, theirs)]
            except Exception:  # noqa: BLE001 - whatever a network raises says that it does not take this size
                continue
        return len(answers[0]) == len(answers[1]) and all(map(torch.equal, *answers))
    return False


def _layers(network: nn.Module) -> list[tuple[str, str, str]]:
    return [(name, type(module).__qualname__, module.extra_repr()) for name, module in network.named_modules()]


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d | nn.Conv3d] | None:
    """Name and layer of the first convolution: what reads the images, as far as a network that exists can tell; None without one."""
    return next(((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Conv3d)), None)


def examples(network: nn.Module, device: str = "cpu") -> Iterator[Tensor]:
    """Two images of several sizes for a network, as its first convolution says what it takes."""
    found = first_convolution(network)
    if found is None:
        raise NetworkError(
            f"a live {type(network).__name__} has no convolution that says what images it takes. Give a partial of its class."
        )
    _, first = found
    stream = torch.Generator().manual_seed(0)
    for side in _SIDES:
        shape = (2, first.in_channels, *[side] * (first.weight.dim() - 2))
        yield torch.empty(shape, device=device) if device == "meta" else torch.randn(shape, generator=stream)


@dataclass(frozen=True)
class Copies:
    """Copies of a live network, with its weights, for any number of outputs: what `NetworkSpec` builds it by."""

    network: nn.Module

    def __call__(self, out_channels: int) -> nn.Module:
        """A copy on torch's current device; layers for another number of outputs have first weights of their own."""
        head = head_layers(self.network)
        copy = deepcopy(self.network).to(torch.get_default_device()).requires_grad_(True)
        if out_channels != head.outputs:
            _resize(copy, head, out_channels)
        return copy


@dataclass(frozen=True)
class Head:
    """The layers of a live network that its number of outputs depends on."""

    outputs: int
    last: tuple[str, ...]
    """Layers with weights; the first of them reads the feature map."""
    norms: tuple[str, ...]


@lru_cache(maxsize=16)
def head_layers(network: nn.Module) -> Head:
    """Found by trying: the last layers with weights, and the norms behind the first of them, are given another width."""
    for device in ("meta", "cpu"):
        copy = deepcopy(network).to(device)
        for images in examples(network, device):
            try:
                run = _run_of(copy, images)
            except Exception:  # noqa: BLE001 - whatever a network raises says that it does not take this size
                continue
            for head in _candidates(run):
                if _answers_with(copy, head, head.outputs + 3, images):
                    return head
            break
    raise NetworkError(
        f"the layers of a live {type(network).__name__} that its outputs come from cannot be found. Give what builds it instead, for "
        f"example functools.partial({type(network).__name__}, spatial_dims=3, in_channels=1)."
    )


def _run_of(network: nn.Module, images: Tensor) -> list[tuple[str, nn.Module]]:
    """Layers with weights and norms in the order in which they run."""
    seen: list[tuple[str, nn.Module]] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.append((name, module)))
        for name, module in network.named_modules()
        if isinstance(module, _WEIGHTS + _NORMS)
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _candidates(run: list[tuple[str, nn.Module]]) -> Iterator[Head]:
    """The last layer with those before it that keep its width, then with fewer of them."""
    places = [place for place, (_, module) in enumerate(run) if isinstance(module, _WEIGHTS)]
    if not places:
        return
    width = _out(run[places[-1]][1])
    count = 1
    while count < len(places) and _in(run[places[-count]][1]) == width == _out(run[places[-count - 1]][1]):
        count += 1
    for taken in range(count, 0, -1):
        chosen = places[-taken:]
        norms = [name for name, module in run[chosen[0] :] if isinstance(module, _NORMS) and _norm_width(module) == width]
        yield Head(width, tuple(run[place][0] for place in chosen), tuple(dict.fromkeys(norms)))


def _answers_with(network: nn.Module, head: Head, outputs: int, images: Tensor) -> bool:
    copy = deepcopy(network)
    try:
        _resize(copy, head, outputs)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            answers = _tensors(copy(images))
    except Exception:  # noqa: BLE001 - whatever a network raises says that these are not all of its layers
        return False
    return bool(answers) and answers[0].shape[1] == outputs  # what follows it (hidden states, coarse answers) is not trained on


def _resize(network: nn.Module, head: Head, outputs: int) -> None:
    for place, name in enumerate(head.last):
        layer: Any = network.get_submodule(name)
        inputs = _in(layer) if place == 0 else outputs
        if getattr(layer, "groups", 1) != 1:
            raise NetworkError(f"its last layer '{name}' works in groups")
        kernel = layer.weight.shape[2:]
        pair = (inputs, outputs) if getattr(layer, "transposed", False) else (outputs, inputs)
        layer.weight = nn.Parameter(layer.weight.new_empty((*pair, *kernel)))
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.new_empty(outputs))
        for attribute, value in (("in_channels", inputs), ("in_features", inputs), ("out_channels", outputs), ("out_features", outputs)):
            if hasattr(layer, attribute):
                setattr(layer, attribute, value)
        layer.reset_parameters()
    for name in head.norms:
        norm: Any = network.get_submodule(name)
        setattr(norm, "num_channels" if isinstance(norm, nn.GroupNorm) else "num_features", outputs)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            held = getattr(norm, kind, None)
            if held is not None:
                fresh = held.new_empty(outputs)
                setattr(norm, kind, nn.Parameter(fresh) if isinstance(held, nn.Parameter) else fresh)
        norm.reset_parameters()


def _out(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _in(layer: Any) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)


def _norm_width(norm: Any) -> int:
    return int(norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features)
