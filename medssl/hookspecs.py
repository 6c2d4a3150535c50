"""The doors: every hook that a plugin may implement. Types only.

A plugin is any installed package with an entry point in the group `medssl` that names a module with functions decorated by
`medssl.hookimpl`. The core's own sources and encoder table come in through these same hooks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import nn

    from medssl.contracts import ConsistencyLoss, EncoderLayout, PretextTask
    from medssl.run import Run
    from medssl.source import ArchiveSource

hookspec = pluggy.HookspecMarker("medssl")
hookimpl = pluggy.HookimplMarker("medssl")


@hookspec
def medssl_pretext_tasks() -> Iterable[type[PretextTask]]:  # type: ignore[empty-body]
    """The pretext tasks of this package. A class names itself: `name = "inpainting"`."""


@hookspec
def medssl_consistency_losses() -> Iterable[type[ConsistencyLoss]]:  # type: ignore[empty-body]
    """The consistency losses of this package. A class names itself: `name = "simsiam"`."""


@hookspec
def medssl_archive_sources() -> Iterable[type[ArchiveSource]]:  # type: ignore[empty-body]
    """Readers of instances. A class names the schemes it opens: `schemes = ("folder",)`."""


@hookspec(firstresult=True)
def medssl_encoder_end(network: nn.Module) -> str | EncoderLayout | None:
    """Where this network's encoder ends: the dotted name of the submodule whose output is the encoder's end, or an `EncoderLayout` that
    also names its levels and where tokens can be left out; None if unknown."""


@hookspec
def medssl_handlers(run: Run) -> Iterable[Any]:  # type: ignore[empty-body]
    """ignite or MONAI handlers to attach to a run; `run` has its folder, config, objective and state."""
