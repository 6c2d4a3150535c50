"""Corrupted crops for medssl: repeat and clean."""

from __future__ import annotations

from medssl import hookimpl
from medssl.contracts import PretextTask
from medssl_corruption.autoencoder import Autoencoder
from medssl_corruption.denoising import Denoising

__all__ = ["Autoencoder", "Denoising", "medssl_pretext_tasks"]


@hookimpl
def medssl_pretext_tasks() -> list[type[PretextTask]]:
    """What this package brings."""
    return [Autoencoder, Denoising]
