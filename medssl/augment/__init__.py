"""Batched spatial and intensity operations on tensors; views and their affines; MONAI transforms as augmentations."""

from medssl.augment.intensity import add_noise, blur, contrast, gamma, spread
from medssl.augment.monai_transforms import is_affine, transformed
from medssl.augment.spatial import compose, identity, invert, is_identity, resample, resample_nearest, shown_by
from medssl.augment.views import Look, ViewOptions, draw_affine, make_view, viewed

__all__ = [
    "Look",
    "ViewOptions",
    "add_noise",
    "blur",
    "compose",
    "contrast",
    "draw_affine",
    "gamma",
    "identity",
    "invert",
    "is_affine",
    "is_identity",
    "make_view",
    "resample",
    "resample_nearest",
    "shown_by",
    "spread",
    "transformed",
    "viewed",
]
