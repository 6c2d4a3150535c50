"""Consistency losses for medssl: agreement of answers, SimSiam on embeddings."""

from __future__ import annotations

from medssl import hookimpl
from medssl.contracts import ConsistencyLoss
from medssl_consistency.agreement import Agreement
from medssl_consistency.simsiam import SimSiam

__all__ = ["Agreement", "SimSiam", "medssl_consistency_losses"]


@hookimpl
def medssl_consistency_losses() -> list[type[ConsistencyLoss]]:
    """What this package brings."""
    return [Agreement, SimSiam]
