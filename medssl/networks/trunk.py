"""One forward pass that gives the encoder's end, the shared feature map and the output, and stops where nothing more is needed.

Hooks are registered at construction and stay silent in forward passes that are not the trunk's own.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from medssl.config import did_you_mean
from medssl.errors import NetworkError
from medssl.networks.difference import head_module
from medssl.networks.encoders import known_end
from medssl.networks.probe import main_output
from medssl.networks.spec import NetworkSpec

if TYPE_CHECKING:
    from medssl.plugins import Plugins

Part = Literal["encoder_end", "feature_map", "output"]
PARTS: tuple[Part, ...] = ("encoder_end", "feature_map", "output")


class _Reached(Exception):
    """No error: everything that was asked for has been seen, and the network's forward pass is left early."""


class _Taps:
    """What the hooks write into, one record a thread; empty between forward passes, so it can be copied at any time."""

    def __init__(self) -> None:
        self.records: dict[int, tuple[dict[str, Tensor], frozenset[str]]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Taps:
        return _Taps()

    def encoder(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        record = self.records.get(threading.get_ident())
        if record is None:
            return None
        end = _last_tensor(output)
        record[0]["encoder_end"] = end
        _stop_if_complete(record)
        # Layers behind the end may work in place (DenseNet's ReLU): they get a copy, so the end is the same with and without them.
        return end.clone() if isinstance(output, Tensor) else None

    def head(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        record = self.records.get(threading.get_ident())
        if record is not None:
            record[0]["feature_map"] = inputs[0]
            _stop_if_complete(record)


def _stop_if_complete(record: tuple[dict[str, Tensor], frozenset[str]]) -> None:
    if record[1] <= record[0].keys():
        raise _Reached


def _last_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    tensors = [item for item in output if isinstance(item, Tensor)] if isinstance(output, list | tuple) else []
    if not tensors:
        raise NetworkError(
            f"the module at the encoder's end returns {type(output).__name__}, not a tensor. Name another: encoder_end: NAME"
        )
    return tensors[-1]


class Trunk:
    """`network`, built from `spec`, tapped at the encoder's end and before its head. Not a module: it owns no parameters.

    `trunk(images)` gives a dict of tensors: "encoder_end" (B, E, *grid), "feature_map" (B, F, *grid: the input of the head),
    "output". Gradients flow as in a plain forward pass; a deep copy, also as part of a larger object, taps the copied network.
    """

    def __init__(self, network: nn.Module, spec: NetworkSpec, plugins: Plugins | None = None) -> None:
        self.network = network
        self.spec = spec
        self.end = encoder_end(network, plugins, spec)
        self.head = head_module(spec)
        self._taps = _Taps()
        self._handles = [network.get_submodule(self.end).register_forward_hook(self._taps.encoder)]
        if self.head is not None:
            self._handles.append(network.get_submodule(self.head).register_forward_pre_hook(self._taps.head))

    @property
    def parts(self) -> frozenset[Part]:
        """What this network can give: classifiers have no feature map."""
        return frozenset(part for part in PARTS if part != "feature_map" or self.head is not None)

    def __call__(self, images: Tensor, needs: Collection[Part] | None = None) -> dict[str, Tensor]:
        """What `needs` names (default: everything there is); the forward pass stops once it has been seen."""
        wanted = self.parts if needs is None else frozenset(needs)
        missing = wanted - self.parts
        if missing:
            raise NetworkError(f"{self.spec} has no {', '.join(sorted(missing))}: it gives {', '.join(sorted(self.parts))}.")
        thread, seen = threading.get_ident(), dict[str, Tensor]()
        self._taps.records[thread] = (seen, wanted)
        try:
            output = self.network(images)
            seen["output"] = main_output(output, images.shape[2:])
        except _Reached:
            pass
        finally:
            del self._taps.records[thread]
        return self._given(seen, wanted, images)

    def _given(self, seen: dict[str, Tensor], wanted: frozenset[Part], images: Tensor) -> dict[str, Tensor]:
        for part, module in (("encoder_end", self.end), ("feature_map", self.head)):
            if part in wanted and part not in seen:
                raise NetworkError(f"{self.spec}: the module '{module}' was not run in the forward pass, so there is no {part}.")
        if "encoder_end" in wanted and seen["encoder_end"].dim() == 3:
            seen["encoder_end"] = tokens_to_grid(seen["encoder_end"], images.shape[2:], self.spec.options.get("patch_size"))
        return {part: seen[part] for part in PARTS if part in wanted}

    def close(self) -> None:
        """Take the hooks off: the network is as it was built."""
        for handle in self._handles:
            handle.remove()


class Encoder:
    """The forward pass to the encoder's end: `encoder(images)` gives (B, E, *grid)."""

    def __init__(self, network: nn.Module, spec: NetworkSpec, plugins: Plugins | None = None) -> None:
        self.trunk = Trunk(network, spec, plugins)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, E, *grid) of images (B, C, *size)."""
        return self.trunk(images, {"encoder_end"})["encoder_end"]


def tokens_to_grid(tokens: Tensor, size: Sequence[int], patch: int | Sequence[int] | None = None) -> Tensor:
    """(B, N, E) tokens, with or without a class token first, as (B, E, *grid) of patches."""
    count, dims = tokens.shape[1], len(size)
    if patch is None:
        side = max(1, round((float(_product(size)) / count) ** (1 / dims)))
        patch = (side,) * dims
    sides = (patch,) * dims if isinstance(patch, int) else tuple(patch)
    grid = tuple(whole // part for whole, part in zip(size, sides, strict=True))
    extra = count - _product(grid)
    if extra not in (0, 1):
        raise NetworkError(f"{count} tokens do not fill a grid of {grid} patches: give patch_size in the network's options.")
    return tokens[:, extra:].transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def _product(numbers: Sequence[int]) -> int:
    result = 1
    for number in numbers:
        result *= int(number)
    return result


def encoder_end(network: nn.Module, plugins: Plugins | None = None, spec: NetworkSpec | None = None) -> str:
    """The submodule at which the encoder ends: `spec.encoder_end`, else a plugin's answer, else medssl's own table.

    Without `plugins` the table is asked first and installed plugins only where it does not know. `NetworkError` says how to name it.
    """
    modules = dict(network.named_modules())
    given = spec.encoder_end if spec is not None else None
    name = given or (known_end(network) if plugins is None else None) or _asked(network, plugins)
    family = type(network).__name__
    if name is None:
        outer = [key for key in modules if key and key.count(".") < 2]
        raise NetworkError(
            f"medssl does not know where the encoder of {family} ends. Name the submodule whose output is the encoder's end in the "
            f"configuration (network.encoder_end: NAME), or implement the hook medssl_encoder_end in a plugin. "
            f"Its modules begin with: {', '.join(outer[:30])}"
        )
    if name not in modules or name == "":
        raise NetworkError(f"encoder_end '{name}' is no submodule of {family}{did_you_mean(name, [key for key in modules if key])}")
    return name


def _asked(network: nn.Module, plugins: Plugins | None) -> str | None:
    from medssl.plugins import Plugins, Provider, blame

    host = plugins if plugins is not None else Plugins.load()
    providers = {provider.plugin: provider for provider in host.providers()}
    for implementation in reversed(host.hook.medssl_encoder_end.get_hookimpls()):
        provider = providers.get(implementation.plugin_name, Provider(implementation.plugin_name, implementation.plugin_name, "?"))
        with blame(provider, "medssl_encoder_end"):
            name = implementation.function(network=network)
            if name is not None and not isinstance(name, str):
                raise TypeError(f"returned {type(name).__name__}, not the name of a submodule")
        if name is not None:
            return str(name)
    return None
