"""One forward pass that gives the features of a network that were asked for, and stops where nothing more is needed.

Features are "encoder_end", "feature_map", "level 0" and on, "tokens", "class_token" and "output": see `ModuleHead` in
`medssl.contracts`. Hooks are registered at construction and stay silent in forward passes that are not the trunk's own.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from medssl.config import did_you_mean
from medssl.contracts import EncoderLayout
from medssl.errors import NetworkError
from medssl.networks.difference import head_module
from medssl.networks.layout import encoder_layout, known_layout
from medssl.networks.probe import main_output
from medssl.networks.spec import NetworkSpec

if TYPE_CHECKING:
    from medssl.plugins import Plugins

TOKENS = frozenset({"tokens", "class_token"})
"""Features that exist when tokens were left out."""
PLAIN = frozenset({"encoder_end", "feature_map", "output"})


class _Reached(Exception):
    """No error: everything that was asked for has been seen, and the network's forward pass is left early."""


@dataclass
class _Record:
    """One forward pass of one thread: what it looks for, and what it has seen."""

    wanted: frozenset[str]
    visible: Tensor | None
    seen: dict[str, Tensor] = field(default_factory=dict)

    def note(self, feature: str, value: Tensor) -> None:
        """Keep it, and leave the forward pass where this was the last that is wanted."""
        self.seen[feature] = value
        if self.wanted <= self.seen.keys():
            raise _Reached


class _Taps:
    """What the hooks write into, one record a thread; empty between forward passes, so it can be copied at any time."""

    def __init__(self) -> None:
        self.records: dict[int, _Record] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Taps:
        return _Taps()

    def before_head(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        record = self.records.get(threading.get_ident())
        if record is not None and "feature_map" in record.wanted:
            record.note("feature_map", inputs[0])

    def embedded(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """Leave out the tokens that are not visible: what follows works on (and costs) the visible ones alone."""
        record = self.records.get(threading.get_ident())
        if record is None or record.visible is None:
            return None
        if record.visible.dim() != 2 or not 0 < record.visible.shape[1] <= output.shape[1] or len(record.visible) != len(output):
            raise NetworkError(
                f"`visible` has shape {tuple(record.visible.shape)}; for {len(output)} inputs of {output.shape[1]} tokens it is "
                f"({len(output)}, 1 to {output.shape[1]})."
            )
        return output.gather(1, record.visible.unsqueeze(2).expand(-1, -1, output.shape[2]))


@dataclass(frozen=True)
class _Tap:
    """A forward hook that notes a module's output as `feature`; an object, so that a deep copy writes into the copied taps."""

    taps: _Taps
    feature: str

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        record = self.taps.records.get(threading.get_ident())
        if record is None or self.feature not in record.wanted:
            return None
        record.note(self.feature, _last_tensor(output, self.feature))
        # Layers behind it may work in place (DenseNet's ReLU): they get a copy, so the feature is the same with and without them.
        return output.clone() if isinstance(output, Tensor) else None


def _last_tensor(output: Any, feature: str) -> Tensor:
    if isinstance(output, Tensor):
        return output
    tensors = [item for item in output if isinstance(item, Tensor)] if isinstance(output, list | tuple) else []
    if not tensors:
        raise NetworkError(
            f"the module at the {feature.replace('_', ' ')} returns {type(output).__name__}, not a tensor. "
            "Name another submodule: network.encoder_end: NAME"
        )
    return tensors[-1]


class Trunk:
    """`network`, built from `spec` where that is known, tapped at its encoder and before its head. Not a module: it owns no parameters.

    `trunk(images)` gives a dict of features. Gradients flow as in a plain forward pass; a deep copy, also as part of a larger
    object, taps the copied network. A network whose encoder nobody knows gives "feature_map" and "output" alone.
    """

    def __init__(
        self, network: nn.Module, spec: NetworkSpec | None, plugins: Plugins | None = None, encoder_end: str | None = None
    ) -> None:
        """Without a `spec` (a network that somebody else has built) there is no feature map; `encoder_end` goes before what is known."""
        self.network, self.spec, self._plugins = network, spec, plugins
        self._name = str(spec) if spec is not None else type(network).__name__
        self.layout = known_layout(network, plugins, spec, encoder_end)
        self.head = head_module(spec) if spec is not None else None
        self._taps = _Taps()
        self._handles: list[Any] = []
        if self.layout is not None:
            self._tap_encoder(self.layout)
        if self.head is not None:
            self._handles.append(network.get_submodule(self.head).register_forward_pre_hook(self._taps.before_head))

    def _tap_encoder(self, layout: EncoderLayout) -> None:
        # The end last: where it is also the last level, that level is noted before the pass is left.
        where = [*((f"level {number}", name) for number, name in enumerate(layout.levels)), ("encoder_end", layout.end)]
        for feature, name in where:
            self._handles.append(self.network.get_submodule(name).register_forward_hook(_Tap(self._taps, feature)))
        if layout.tokens is not None:
            self._handles.append(self.network.get_submodule(layout.tokens).register_forward_hook(self._taps.embedded))

    @property
    def features(self) -> tuple[str, ...]:
        """What this network can give: classifiers have no feature map, convolutions no tokens."""
        layout = self.layout
        encoder = ["encoder_end", *(f"level {number}" for number in range(len(layout.levels)))] if layout is not None else []
        tokens = ["tokens"] if layout is not None and layout.tokens is not None else []
        tokens += ["class_token"] if self.has_class_token else []
        return (*encoder, *tokens, *(["feature_map"] if self.head is not None else []), "output")

    def check(self, needs: Collection[str], asker: str = "the call") -> None:
        """Raise `NetworkError` where the network does not have what `needs` names; `asker` is who needs it, for the message."""
        missing = sorted(set(needs) - set(self.features))
        if not missing:
            return
        if "encoder_end" in missing:
            encoder_layout(self.network, self._plugins, self.spec)
        if set(missing) <= TOKENS:
            why = "no tokens, since its encoder does not work on tokens. Take ViT or UNETR."
            if "tokens" in self.features:
                why = "no class token. Read tokens instead, or take a ViT with classification: true."
            raise NetworkError(f"{asker} reads {', '.join(missing)}, and {self._name} has {why}")
        known = tuple(feature for feature in self.features if feature != missing[0])
        raise NetworkError(f"{asker} reads {', '.join(missing)}, and {self._name} has none{did_you_mean(missing[0], known)}")

    def __call__(self, images: Tensor, needs: Collection[str] | None = None, visible: Tensor | None = None) -> dict[str, Tensor]:
        """What `needs` names (default: encoder's end, feature map, output, where they exist); the pass stops once all has been seen.

        With `visible` (B, V) int64, numbers of tokens, the encoder sees these alone, in that order, and gives "tokens" and "class_token".
        """
        wanted = frozenset(self.features) & PLAIN if needs is None else frozenset(needs)
        self.check(wanted)
        if visible is not None:
            self._check_visible(wanted)
        plain = frozenset("encoder_end" if feature in TOKENS else feature for feature in wanted)
        record, thread = _Record(plain, visible), threading.get_ident()
        self._taps.records[thread] = record
        try:
            record.seen["output"] = main_output(self.network(images), images.shape[2:])
        except _Reached:
            pass
        finally:
            del self._taps.records[thread]
        return self._given(record.seen, wanted, plain, images)

    def _check_visible(self, wanted: frozenset[str]) -> None:
        if self.layout is None or self.layout.tokens is None:
            raise NetworkError(f"{self._name} cannot leave tokens out: its encoder does not work on tokens. Take ViT or UNETR.")
        if not wanted <= TOKENS:
            raise NetworkError(f"with tokens left out there is no {', '.join(sorted(wanted - TOKENS))}: read tokens or class_token.")

    def _given(self, seen: dict[str, Tensor], wanted: frozenset[str], plain: frozenset[str], images: Tensor) -> dict[str, Tensor]:
        missing = sorted(plain - seen.keys())
        if missing:
            raise NetworkError(f"{self._name}: nothing was run in the forward pass that gives {', '.join(missing)}.")
        given = {feature: self._on_grid(seen[feature], images) for feature in wanted - TOKENS}
        if wanted & TOKENS:
            end, extra = seen["encoder_end"], int(self.has_class_token)
            every = {"tokens": end[:, extra:], "class_token": end[:, 0]}
            given |= {feature: every[feature] for feature in wanted & TOKENS}
        return given

    def _on_grid(self, value: Tensor, images: Tensor) -> Tensor:
        return tokens_to_grid(value, images.shape[2:], self._patch_size()) if value.dim() == 3 else value

    def _patch_size(self) -> Any:
        return self.spec.options.get("patch_size") if self.spec is not None else None

    @property
    def has_class_token(self) -> bool:
        """Whether the encoder puts a class token before its tokens."""
        if self.layout is None or self.layout.tokens is None:
            return False
        owner = self.network.get_submodule(self.layout.tokens.rpartition(".")[0])
        return hasattr(owner, "cls_token")

    def close(self) -> None:
        """Take the hooks off: the network is as it was built."""
        for handle in self._handles:
            handle.remove()


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
