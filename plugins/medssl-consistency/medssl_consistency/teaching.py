"""What losses with a teacher share: what it makes of the views, and how slowly it follows."""

from __future__ import annotations

import math

from torch import Tensor

from medssl.contracts import Views


def taught(views: Views, module: str) -> list[Tensor]:
    """V x (B, ...): what the teacher's copy of `module` makes of its embeddings of the views, held still."""
    assert views.teacher is not None
    project = views.teacher.modules[module]
    return [project(embedding).detach() for embedding in views.teacher.embeddings]


def rising(momentum: float, progress: float) -> float:
    """From `momentum` to 1 along half a cosine (Grill et al., NeurIPS 2020)."""
    return 1 - (1 - momentum) * (math.cos(math.pi * progress) + 1) / 2
