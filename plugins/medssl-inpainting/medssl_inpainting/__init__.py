"""Hidden and damaged parts of a crop, as pretext tasks for medssl."""

from __future__ import annotations

from medssl import hookimpl
from medssl.contracts import PretextTask
from medssl_inpainting.context_encoder import ContextEncoder
from medssl_inpainting.inpainting import Inpainting
from medssl_inpainting.masked_autoencoder import MaskedAutoencoder
from medssl_inpainting.restoration import Restoration

__all__ = ["ContextEncoder", "Inpainting", "MaskedAutoencoder", "Restoration", "medssl_pretext_tasks"]


@hookimpl
def medssl_pretext_tasks() -> list[type[PretextTask]]:
    """What this package brings."""
    return [ContextEncoder, Inpainting, MaskedAutoencoder, Restoration]
