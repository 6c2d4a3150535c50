"""The network that a checkpoint names: read without importing anything, and built only where whoever uses it knows the module.

A checkpoint may come from anywhere, and importing a module runs it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from medssl.config import check
from medssl.errors import CheckpointError
from medssl.networks.spec import NetworkSpec
from medssl.plugins import plugin_modules

MONAI = "monai.networks.nets"
LARGEST = 10_000
"""Larger numbers describe no network: building one would take all memory, or hours."""


def stored_spec(document: Any, where: str, trusted: Collection[str] = ()) -> NetworkSpec:
    """The specification in a checkpoint, which may be built.

    Its network is MONAI's, of an installed plugin, or of one of the modules `trusted`; any other is a `CheckpointError`, before
    anything of it is imported.
    """
    spec = described_spec(document, where)
    known = {MONAI, *plugin_modules(), *trusted}
    if spec.target is not None and not any(spec.target.startswith(f"{module}.") for module in known):
        raise CheckpointError(
            f"{where} is {spec.target!r}, and building it runs that module, which is neither MONAI's nor an installed plugin's. Where you "
            f"trust it, name it: --trust {spec.target.rpartition('.')[0]} for a prediction (in Python trusted=[...]), "
            "or the network itself under `network:` for a training."
        )
    return spec


def described_spec(document: Any, where: str) -> NetworkSpec:
    """The specification in a checkpoint, to be compared and shown."""
    if not isinstance(document, Mapping):
        raise CheckpointError(f"{where} is damaged: it is a {type(document).__name__}. Copy the checkpoint again from where it came.")
    spec = check(NetworkSpec, document, where)
    if any(abs(number) > LARGEST for number in _numbers(spec.model_dump(mode="json"))):
        raise CheckpointError(f"{where} holds a number beyond {LARGEST}: no network is built with it. Copy the checkpoint again.")
    return spec


def _numbers(value: Any) -> list[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) else []
