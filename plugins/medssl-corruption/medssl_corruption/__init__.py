"""Corrupted crops for medssl: repeat, clean and tell apart."""

from __future__ import annotations

from medssl import hookimpl
from medssl.contracts import PretextTask
from medssl_corruption.autoencoder import Autoencoder
from medssl_corruption.denoising import Denoising
from medssl_corruption.spot_artifacts import SpotArtifacts

__all__ = ["Autoencoder", "Denoising", "SpotArtifacts", "medssl_pretext_tasks"]


@hookimpl
def medssl_pretext_tasks() -> list[type[PretextTask]]:
    """What this package brings."""
    return [Autoencoder, Denoising, SpotArtifacts]
