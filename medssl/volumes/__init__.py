"""Volumes: from an archive to a store, and from a store to batches of crops; labelled volumes for fine-tuning and prediction."""

from medssl.volumes.crops import Crop, CropOptions, CropPlan, DataOptions, crop_at
from medssl.volumes.ingest import Incoming, StoreSummary, write_store
from medssl.volumes.loader import CropLoader
from medssl.volumes.preparation import IntensityRule, Preparation, Statistics, statistics
from medssl.volumes.sources import make_store
from medssl.volumes.store import Store, StoredVolume, stable_id

__all__ = [
    "Crop",
    "CropLoader",
    "CropOptions",
    "CropPlan",
    "DataOptions",
    "Incoming",
    "IntensityRule",
    "Preparation",
    "Statistics",
    "Store",
    "StoreSummary",
    "StoredVolume",
    "crop_at",
    "make_store",
    "stable_id",
    "statistics",
    "write_store",
]
