"""Where a network's encoder is: what the specification says, else what the plugins know, medssl's own table among them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import nn

from medssl.config import did_you_mean
from medssl.contracts import EncoderLayout
from medssl.errors import NetworkError
from medssl.networks.spec import NetworkSpec
from medssl.plugins import Plugins, Provider, blame


def encoder_layout(network: nn.Module, plugins: Plugins | None = None, spec: NetworkSpec | None = None) -> EncoderLayout:
    """The encoder of `network`; `NetworkError` says how to name it where nobody knows. `plugins` None: the installed ones."""
    found = known_layout(network, plugins, spec)
    if found is None:
        outer = [key for key, _ in network.named_modules() if key and key.count(".") < 2]
        raise NetworkError(
            f"medssl does not know where the encoder of {type(network).__name__} ends. Name the submodule whose output is the encoder's "
            f"end (encoder_end=NAME, in a configuration network.encoder_end: NAME), or implement the hook medssl_encoder_end in a plugin. "
            f"Its modules begin with: {', '.join(outer[:30])}"
        )
    return found


def known_layout(
    network: nn.Module, plugins: Plugins | None = None, spec: NetworkSpec | None = None, end: str | None = None
) -> EncoderLayout | None:
    """As `encoder_layout`, with None where nobody knows; `end` goes before the specification's, and a wrong name is an error still."""
    found = _asked(network, plugins if plugins is not None else Plugins.load())
    end = end or (spec.encoder_end if spec is not None else None)
    if end is not None:
        found = replace(found, end=end) if found is not None else EncoderLayout(end)
    if found is not None:
        modules = [name for name, _ in network.named_modules() if name]
        for name in (found.end, *found.levels, *([found.tokens] if found.tokens is not None else [])):
            _check_name(name, modules, type(network).__name__)
    return found


def encoder_end(network: nn.Module, plugins: Plugins | None = None, spec: NetworkSpec | None = None) -> str:
    """The submodule at which the encoder ends."""
    return encoder_layout(network, plugins, spec).end


def _check_name(name: str, modules: Collection[str], family: str) -> None:
    if name not in modules:
        raise NetworkError(f"encoder_end '{name}' is no submodule of {family}{did_you_mean(name, modules)}")


def _asked(network: nn.Module, plugins: Plugins) -> EncoderLayout | None:
    """What the first plugin that knows says; the core's table was registered first and so answers last."""
    providers = {provider.plugin: provider for provider in plugins.providers()}
    for implementation in reversed(plugins.hook.medssl_encoder_end.get_hookimpls()):
        provider = providers.get(implementation.plugin_name, Provider(implementation.plugin_name, implementation.plugin_name, "?"))
        with blame(provider, "medssl_encoder_end"):
            found = implementation.function(network=network)
            if isinstance(found, str):
                found = EncoderLayout(found)
            if found is not None and not isinstance(found, EncoderLayout):
                raise TypeError(f"returned {type(found).__name__}, not the name of a submodule or an EncoderLayout")
        if found is not None:
            layout: EncoderLayout = found
            return layout
    return None
