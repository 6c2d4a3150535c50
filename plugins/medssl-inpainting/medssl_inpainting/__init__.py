"""Block-masked volume inpainting for medssl."""

from __future__ import annotations

from medssl import hookimpl
from medssl.contracts import PretextTask
from medssl_inpainting.inpainting import Inpainting

__all__ = ["Inpainting", "medssl_pretext_tasks"]


@hookimpl
def medssl_pretext_tasks() -> list[type[PretextTask]]:
    """What this package brings."""
    return [Inpainting]
