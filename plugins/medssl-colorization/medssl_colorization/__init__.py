"""Colour from luminance and one modality from another, for medssl."""

from __future__ import annotations

from medssl import hookimpl
from medssl.contracts import PretextTask
from medssl_colorization.colorization import Colorization
from medssl_colorization.cross_modality import CrossModality

__all__ = ["Colorization", "CrossModality", "medssl_pretext_tasks"]


@hookimpl
def medssl_pretext_tasks() -> list[type[PretextTask]]:
    """What this package brings."""
    return [Colorization, CrossModality]
