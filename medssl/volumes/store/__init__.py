"""One folder of volumes ready to be cropped: its table, its files, and what volumes are called by their data."""

from medssl.volumes.store.reading import Store, StoredVolume, stable_id

__all__ = ["Store", "StoredVolume", "stable_id"]
