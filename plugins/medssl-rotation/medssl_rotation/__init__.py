"""Rotation for medssl."""

from __future__ import annotations

from medssl import hookimpl
from medssl.contracts import PretextTask
from medssl_rotation.rotation import Rotation

__all__ = ["Rotation", "medssl_pretext_tasks"]


@hookimpl
def medssl_pretext_tasks() -> list[type[PretextTask]]:
    """What this package brings."""
    return [Rotation]
