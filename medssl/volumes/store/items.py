"""A store's volumes as the items of a MONAI pipeline: what a network sees of each, as MetaTensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys, SpaceKeys
from numpy.typing import NDArray

from medssl.volumes.preparation import Preparation
from medssl.volumes.store.rows import StoredVolume

IMAGE, LABEL = "image", "label"


def item_of(volume: StoredVolume, preparation: Preparation, arrays: NDArray[Any], classes: NDArray[Any] | None) -> dict[str, Any]:
    """`image` (C, *shape) float32 as a network sees it of raw `arrays` (A, *shape), and `label`, the `classes` (1, *shape) if there are."""
    image = np.empty((len(volume.channels), *volume.shape), np.float32)
    for channel, line, out in zip(volume.channels, volume.lines(preparation), image, strict=True):
        line.into(arrays[channel.array], out)
    meta = {
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_AFFINE: volume.affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.asarray(volume.shape),
        MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
        "volume": volume.volume,
        "patient": volume.patient_name,
        "sample": volume.sample,
        "modality": volume.modality,
        "channels": [channel.name for channel in volume.channels],
    }
    affine = torch.from_numpy(volume.affine.copy())
    item: dict[str, Any] = {IMAGE: MetaTensor(torch.from_numpy(image), affine=affine, meta=dict(meta))}
    if classes is not None:
        item[LABEL] = MetaTensor(torch.from_numpy(classes), affine=affine.clone(), meta={**meta, "channels": [LABEL]})
    return item
