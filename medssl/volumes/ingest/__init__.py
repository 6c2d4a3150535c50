"""From images to a store: which images become which volumes, on which grid, and what is written of them."""

from medssl.volumes.ingest.channels import ChannelOptions
from medssl.volumes.ingest.choice import ChoiceOptions
from medssl.volumes.ingest.estimating import StoreEstimate
from medssl.volumes.ingest.items import are_items, store_items
from medssl.volumes.ingest.sources import StoreOptions, estimate_store, is_index, make_store, store_as
from medssl.volumes.ingest.writing import Incoming, Progress, StoreSummary, Unusable, placed, write_store

__all__ = [
    "ChannelOptions",
    "ChoiceOptions",
    "Incoming",
    "Progress",
    "StoreEstimate",
    "StoreOptions",
    "StoreSummary",
    "Unusable",
    "are_items",
    "estimate_store",
    "is_index",
    "make_store",
    "placed",
    "store_as",
    "store_items",
    "write_store",
]
