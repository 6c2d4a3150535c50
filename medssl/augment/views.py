"""Views: changed versions of the same crops, with the affine that says where each voxel came from."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from medssl.augment import intensity, spatial
from medssl.augment.monai_transforms import apply_transforms, build_transforms
from medssl.config import BaseOptions
from medssl.contracts import Crops, Draw

if TYPE_CHECKING:
    from typing import Self

Share = Annotated[float, Field(ge=0, le=1)]


class Look(BaseOptions):
    """How one view differs from its crop."""

    flip: Share = 0.5
    """Chance of a flip along each axis."""
    rotate: float = Field(default=20.0, ge=0, le=180)
    """Largest rotation in degrees (in mm, so anisotropic voxels do not shear), in 3D about one random axis; 0 for none."""
    scale: float = Field(default=1.2, ge=1, le=2)
    """Largest factor of scaling: drawn between 1/scale and scale; 1 for none."""
    shift: Share = 0.05
    """Largest shift along each axis as a share of the crop."""
    contrast: float = Field(default=0.25, ge=0, lt=1)
    """Largest relative change of contrast, and of brightness in standard deviations."""
    gamma: float = Field(default=1.3, ge=1, le=4)
    """Largest exponent of the intensity curve: drawn between 1/gamma and gamma; 1 for none."""
    invert: Share = 0.0
    """Chance that bright and dark change places, so that brightness alone says little of what a tissue is."""
    noise: float = Field(default=0.1, ge=0, le=2)
    """Largest added Gaussian noise in standard deviations of the image."""
    blur: float = Field(default=0.7, ge=0, le=8)
    """Largest Gaussian blur: sigma in voxels; 0 for none."""
    transforms: tuple[dict[str, Any], ...] = ()
    """MONAI transforms by import path, such as `{_target_: monai.transforms.RandGaussianNoise, prob: 1.0}`, instead of all the above."""

    @model_validator(mode="after")
    def _transforms_can_be_built(self) -> Self:
        build_transforms(self.transforms)
        return self


class ViewOptions(Look):
    """The `views:` key: how views differ. Only consistency losses look at views; without one the crops are used as they are."""

    count: int = Field(default=2, ge=2, le=8)
    """How many views of each crop a consistency loss compares."""
    clean: bool = True
    """View 0 is the crop as it is, so that the original and a messed-up version are compared; false: every view is changed."""


def make_view(images: Tensor, options: Look, draw: Draw, spacing: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One view of `images` (B, C, *size) and its affine (B, D, D + 1), voxel of the view -> voxel of the crop.

    Everything random comes from `draw`. `spacing` (B, D) mm keeps rotations rigid where voxels are not cubes.
    """
    if options.transforms:
        return apply_transforms(build_transforms(options.transforms), images, draw)
    affine = draw_affine(images.shape[2:], options, draw.fork("affine"), spacing)
    return _intensities(spatial.resample(images, affine), options, draw.fork("intensity")), affine


def viewed(crops: Crops, images: Tensor, affine: Tensor) -> Crops:
    """`crops` as a view shows them: `images`, with `affine` (B, D, D + 1; voxel of the view -> voxel of the crop) applied to all else.

    Labels and body are taken by nearest voxel; outside the crop nothing is known (-1) and nothing is body.
    """
    labels, body = crops.labels, crops.body
    return replace(
        crops,
        images=images,
        affine=spatial.compose(crops.affine, affine),
        labels=None if labels is None else spatial.resample_nearest(labels, affine, -1),
        body=None if body is None else spatial.resample_nearest(body, affine, False),
    )


def draw_affine(size: torch.Size | tuple[int, ...], options: Look, draw: Draw, spacing: Tensor | None = None) -> Tensor:
    """(B, D, D + 1) random affines of a grid of `size`: flip, scale, rotation about the centre, shift."""
    dims = len(size)
    flips = 1 - 2 * (draw.uniform(dims) < options.flip).float()
    scale = _between(draw.uniform(1), options.scale)
    angle = draw.uniform(low=-1.0) * math.radians(options.rotate)
    axis = draw.integers(0, 3)
    shift = draw.uniform(dims, low=-1.0) * options.shift * torch.tensor(size, device=draw.device)
    matrix = torch.diag_embed(flips * scale)
    if options.rotate:
        mm = torch.ones_like(flips) if spacing is None else spacing
        turn = spatial.rotation(axis, angle, dims)
        matrix = turn * mm[:, None, :] / mm[:, :, None] @ matrix
    affine = spatial.about_centre(matrix, size)
    return torch.cat([affine[..., :-1], affine[..., -1:] + shift.unsqueeze(-1)], dim=-1)


def _intensities(images: Tensor, options: Look, draw: Draw) -> Tensor:
    if options.blur:
        images = intensity.blur(images, draw.uniform() * options.blur)
    if options.contrast:
        gain, bias = draw.uniform(2, low=-options.contrast, high=options.contrast).unbind(1)
        images = intensity.contrast(images, 1 + gain, bias)
    if options.gamma > 1:
        images = intensity.gamma(images, _between(draw.uniform(), options.gamma))
    if options.noise:
        amount = draw.uniform() * options.noise
        images = intensity.add_noise(images, draw.normal(*images.shape[1:]), amount)
    if options.invert:
        images = intensity.invert(images, draw.uniform() < options.invert)
    return images


def _between(unit: Tensor, factor: float) -> Tensor:
    """Uniform numbers in [0, 1) to log-uniform ones between 1/factor and factor."""
    return torch.exp((2 * unit - 1) * math.log(factor))
