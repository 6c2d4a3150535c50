"""A store's volumes as the items of a MONAI pipeline: what a network sees of each, as MetaTensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys, SpaceKeys

if TYPE_CHECKING:
    from medssl.volumes.store.reading import Store

IMAGE, LABEL = "image", "label"


def item_of(store: Store, number: int) -> dict[str, Any]:
    """`image` (C, *shape) float32 as it is prepared for a network and, where the volume has one, `label` (1, *shape) of classes."""
    volume = store.volume(number)
    arrays = store.read_whole(number)
    image = np.empty((len(volume.channels), *volume.shape), np.float32)
    for channel, line, out in zip(volume.channels, volume.lines(store.preparation), image, strict=True):
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
    if volume.classes is not None:
        classes = store.read_labels(number, (0,) * len(volume.shape), volume.shape)
        item[LABEL] = MetaTensor(torch.from_numpy(classes), affine=affine.clone(), meta={**meta, "channels": [LABEL]})
    return item
