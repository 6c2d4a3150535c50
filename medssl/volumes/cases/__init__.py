"""Labelled cases: which image belongs to which label, whose they are, what their values mean, and a store of them."""

from medssl.volumes.cases.case import Case
from medssl.volumes.cases.label_values import LabelValues, proposal
from medssl.volumes.cases.labelled import (
    Prepared,
    case_labels,
    dimensions_of,
    load_case,
    load_labels,
    prepare_volume,
    restore_labels,
    store_cases,
    stored_cases,
)
from medssl.volumes.cases.listing import channels_of, find_cases, label_values_of, training_cases
from medssl.volumes.cases.options import LabelledOptions
from medssl.volumes.cases.patients import describe_patients
from medssl.volumes.cases.sources import header

__all__ = [
    "Case",
    "LabelValues",
    "LabelledOptions",
    "Prepared",
    "case_labels",
    "channels_of",
    "describe_patients",
    "dimensions_of",
    "find_cases",
    "header",
    "label_values_of",
    "load_case",
    "load_labels",
    "prepare_volume",
    "proposal",
    "restore_labels",
    "store_cases",
    "stored_cases",
    "training_cases",
]
