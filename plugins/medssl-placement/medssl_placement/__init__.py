"""Where things lie, as pretext tasks for medssl."""

from __future__ import annotations

from medssl import hookimpl
from medssl.contracts import PretextTask
from medssl_placement.jigsaw import Jigsaw
from medssl_placement.position import Position
from medssl_placement.relative_position import RelativePosition
from medssl_placement.volume_contrast import VolumeContrast

__all__ = ["Jigsaw", "Position", "RelativePosition", "VolumeContrast", "medssl_pretext_tasks"]


@hookimpl
def medssl_pretext_tasks() -> list[type[PretextTask]]:
    """What this package brings."""
    return [Jigsaw, Position, RelativePosition, VolumeContrast]
