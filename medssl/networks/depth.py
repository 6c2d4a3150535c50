"""A network's parameters by depth: its head, its decoder, and the levels of its encoder from the end to the stem."""

from __future__ import annotations

from typing import Any

from torch import nn

from medssl.networks.difference import head_tensors
from medssl.networks.layout import known_layout
from medssl.networks.probe import Skeleton, run, skeleton_of
from medssl.networks.spec import NetworkSpec
from medssl.plugins import Plugins


def parts_by_depth(spec: NetworkSpec, plugins: Plugins | None = None) -> tuple[tuple[str, ...], ...]:
    """Names of the parameters in parts, the head first and the stem last.

    What runs before the encoder's end belongs to the level that it leads to, what runs after it is the decoder. Where nobody knows
    where the encoder ends there are two parts: the head, and all else.
    """
    skeleton = skeleton_of(spec)
    layout, ran = known_layout(skeleton.network, plugins, spec), _order_of_running(skeleton)
    ends = sorted({ran[name] for name in (*layout.levels, layout.end) if name in ran}) if layout is not None else []
    heads = set(head_tensors(spec))
    parts: dict[int, list[str]] = {}
    for name, _ in skeleton.network.named_parameters():
        owner = name.rpartition(".")[0]
        # What the network itself holds (a class token) enters where the images do.
        when = ran.get(owner, len(ran)) if owner else 0
        parts.setdefault(0 if name in heads else _depth(when, ends), []).append(name)
    return tuple(tuple(parts[depth]) for depth in sorted(parts))


def _depth(when: int, ends: list[int]) -> int:
    """1 for the decoder, or where no end is known; then the encoder's levels from its end on."""
    return 1 + sum(when <= end for end in ends)


def _order_of_running(skeleton: Skeleton) -> dict[str, int]:
    """Each module that runs in a forward pass -> when it was done, counted from 0."""
    done: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            done.setdefault(name, len(done))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in skeleton.network.named_modules() if name]
    try:
        run(skeleton.network, skeleton.spec, skeleton.base, 2, skeleton.device)
    finally:
        for handle in handles:
            handle.remove()
    return done
