"""Batched spatial and intensity operations on tensors; views and their affines; MONAI transforms as augmentations."""

from medssl.augment.intensity import (
    add_noise,
    add_normal_noise,
    bias_field,
    blur,
    contrast,
    curve,
    drop_boxes,
    fill_uniform,
    gamma,
    look_up,
    lower_resolution,
    shuffle_boxes,
    spread,
)
from medssl.augment.monai_transforms import is_affine, transformed
from medssl.augment.spatial import compose, identity, invert, is_identity, resample, resample_nearest, shown_by
from medssl.augment.splines import between_points, points_for
from medssl.augment.views import Look, ViewOptions, Warp, change_intensities, draw_affine, draw_warp, make_view, view_of, viewed

__all__ = [
    "Look",
    "ViewOptions",
    "Warp",
    "add_noise",
    "add_normal_noise",
    "between_points",
    "bias_field",
    "blur",
    "change_intensities",
    "compose",
    "contrast",
    "curve",
    "draw_affine",
    "draw_warp",
    "drop_boxes",
    "fill_uniform",
    "gamma",
    "identity",
    "invert",
    "is_affine",
    "is_identity",
    "look_up",
    "lower_resolution",
    "make_view",
    "points_for",
    "resample",
    "resample_nearest",
    "shown_by",
    "shuffle_boxes",
    "spread",
    "transformed",
    "view_of",
    "viewed",
]
