"""One folder of volumes ready to be cropped: its table, its files, what volumes are called by their data, and which kinds there are."""

from medssl.volumes.store.kinds import Kind, choose_kind, kinds_document, kinds_of, kinds_seen
from medssl.volumes.store.reading import Store
from medssl.volumes.store.rows import StoredVolume

__all__ = ["Kind", "Store", "StoredVolume", "choose_kind", "kinds_document", "kinds_of", "kinds_seen"]
