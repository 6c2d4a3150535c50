"""Which box is cut out of which volume, and batches of such boxes."""

from medssl.volumes.crops.loader import CropLoader, on_device
from medssl.volumes.crops.places import UNKNOWN, Crop, CropOptions, CropPlan, DataOptions, LoadOptions, channels_of_crops, crop_at

__all__ = [
    "UNKNOWN",
    "Crop",
    "CropLoader",
    "CropOptions",
    "CropPlan",
    "DataOptions",
    "LoadOptions",
    "channels_of_crops",
    "crop_at",
    "on_device",
]
