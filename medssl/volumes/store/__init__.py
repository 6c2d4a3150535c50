"""One folder of volumes ready to be cropped: its table, its files, what volumes are called by their data, and which kinds there are."""

from medssl.volumes.store.kinds import Kind, Seen, are_shown_raw, choose_kind, kinds_document, kinds_of, kinds_seen
from medssl.volumes.store.reading import Store
from medssl.volumes.store.rows import StoredVolume
from medssl.volumes.store.values import Doubts

__all__ = ["Doubts", "Kind", "Seen", "Store", "StoredVolume", "are_shown_raw", "choose_kind", "kinds_document", "kinds_of", "kinds_seen"]
