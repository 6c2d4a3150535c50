"""Volumes: from an archive to a store, and from a store to batches of crops; labelled volumes for fine-tuning and prediction."""

from medssl.volumes.cases import Case, LabelledOptions, find_cases, modality_of, training_cases
from medssl.volumes.crops import Crop, CropOptions, CropPlan, DataOptions, crop_at
from medssl.volumes.ingest import Incoming, StoreSummary, write_store
from medssl.volumes.labelled import (
    LabelledCrops,
    Prepared,
    check_labels,
    load_case,
    load_labels,
    prepare_volume,
    restore_labels,
)
from medssl.volumes.loader import CropLoader, on_device
from medssl.volumes.preparation import IntensityRule, Preparation, Statistics, statistics
from medssl.volumes.sources import make_store
from medssl.volumes.store import Store, StoredVolume, stable_id

__all__ = [
    "Case",
    "Crop",
    "CropLoader",
    "CropOptions",
    "CropPlan",
    "DataOptions",
    "Incoming",
    "IntensityRule",
    "LabelledCrops",
    "LabelledOptions",
    "Preparation",
    "Prepared",
    "Statistics",
    "Store",
    "StoreSummary",
    "StoredVolume",
    "check_labels",
    "crop_at",
    "find_cases",
    "load_case",
    "load_labels",
    "make_store",
    "modality_of",
    "on_device",
    "prepare_volume",
    "restore_labels",
    "stable_id",
    "statistics",
    "training_cases",
    "write_store",
]
