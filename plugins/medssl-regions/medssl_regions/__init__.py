"""Region matching for medssl: find a region of one view again in another."""

from __future__ import annotations

from medssl import hookimpl
from medssl.contracts import PretextTask
from medssl_regions.region_matching import RegionMatching

__all__ = ["RegionMatching", "medssl_pretext_tasks"]


@hookimpl
def medssl_pretext_tasks() -> list[type[PretextTask]]:
    """What this package brings."""
    return [RegionMatching]
