"""Volumes: from an archive to a store, and from a store to batches of crops; labelled volumes for fine-tuning and prediction."""

from medssl.volumes.cases import Case, LabelledOptions, channels_of, find_cases, grid_sides, label_values_of, training_cases
from medssl.volumes.crops import Crop, CropOptions, CropPlan, DataOptions, LoadOptions, crop_at, refuse_too_large
from medssl.volumes.grid import as_spacing
from medssl.volumes.ingest import Incoming, StoreSummary, write_store
from medssl.volumes.kinds import Kind, choose_kind, kinds_document, kinds_of, kinds_seen
from medssl.volumes.label_values import LabelValues, proposal
from medssl.volumes.labelled import (
    Prepared,
    load_case,
    load_labels,
    prepare_volume,
    restore_labels,
    store_cases,
    stored_cases,
)
from medssl.volumes.loader import CropLoader, on_device
from medssl.volumes.patients import describe_patients
from medssl.volumes.preparation import Channel, IntensityRule, Preparation, Statistics, statistics
from medssl.volumes.sources import make_store
from medssl.volumes.store import Store, StoredVolume, stable_id

__all__ = [
    "Case",
    "Channel",
    "Crop",
    "CropLoader",
    "CropOptions",
    "CropPlan",
    "DataOptions",
    "Incoming",
    "IntensityRule",
    "Kind",
    "LabelValues",
    "LabelledOptions",
    "LoadOptions",
    "Preparation",
    "Prepared",
    "Statistics",
    "Store",
    "StoreSummary",
    "StoredVolume",
    "as_spacing",
    "channels_of",
    "choose_kind",
    "crop_at",
    "describe_patients",
    "find_cases",
    "grid_sides",
    "kinds_document",
    "kinds_of",
    "kinds_seen",
    "label_values_of",
    "load_case",
    "load_labels",
    "make_store",
    "on_device",
    "prepare_volume",
    "proposal",
    "refuse_too_large",
    "restore_labels",
    "stable_id",
    "statistics",
    "store_cases",
    "stored_cases",
    "training_cases",
    "write_store",
]
