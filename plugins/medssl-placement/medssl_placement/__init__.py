"""Placing patches, for medssl."""

from __future__ import annotations

from medssl import hookimpl
from medssl.contracts import PretextTask
from medssl_placement.relative_position import RelativePosition

__all__ = ["RelativePosition", "medssl_pretext_tasks"]


@hookimpl
def medssl_pretext_tasks() -> list[type[PretextTask]]:
    """What this package brings."""
    return [RelativePosition]
