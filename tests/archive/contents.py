"""What an index holds, and what it should, in a form that can be compared whatever the order."""

from __future__ import annotations

import numpy as np

from medssl.archive import Index

Content = list[tuple[bytes, list[float]]]


def contents(index: Index) -> Content:
    """Every volume of an index."""
    return wanted(*((volume.array, volume.affine) for volume in (index.read(record.volume) for record in index.volumes())))


def wanted(*volumes: tuple[np.ndarray, np.ndarray]) -> Content:
    """Voxels (x, y, z) and affines to RAS+ mm."""
    return sorted((voxels.astype(np.float32).tobytes(), np.round(affine, 4).ravel().tolist()) for voxels, affine in volumes)
