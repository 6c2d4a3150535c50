"""Views: changed versions of the same crops, with the affine that says where each voxel came from.

What is drawn and what is applied are apart: `draw_warp` draws where voxels come from, and a `Warp` takes images and labels there, on
the same grid, as often as it is asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from medssl.augment import intensity, spatial
from medssl.augment.monai_transforms import apply_transforms, build_transforms, is_affine
from medssl.augment.splines import FOLDS, between_points, points_for
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
    """Largest rotation in degrees (in mm, so anisotropic voxels do not shear); 0 for none."""
    rotate_about: Literal["axis", "any"] = "axis"
    """In 3D, axis: about one random axis of the crop, which is several times cheaper; any: about each of the three in turn."""
    scale: float = Field(default=1.2, ge=1, le=2)
    """Largest factor of scaling: drawn between 1/scale and scale; 1 for none."""
    stretch: float = Field(default=1.0, ge=1, le=2)
    """The same along each axis by itself."""
    shear: float = Field(default=0.0, ge=0, le=0.5)
    """Largest shear: what a voxel moves along one axis for each voxel along another; 0 for none."""
    shift: Share = 0.05
    """Largest shift along each axis as a share of the crop."""
    elastic: float = Field(default=0.0, ge=0, le=32)
    """Largest elastic displacement in voxels, at most 0.4 times `elastic_step`, so that no tissue folds over itself; 0 for none. No affine
    describes it, so losses that compare voxels of two views refuse it."""
    elastic_step: float = Field(default=24.0, ge=4, le=256)
    """Voxels between the points that are displaced; a smooth spline moves what lies between."""
    contrast: float = Field(default=0.25, ge=0, lt=1)
    """Largest relative change of contrast, and of brightness in standard deviations."""
    gamma: float = Field(default=1.3, ge=1, le=4)
    """Largest exponent of the intensity curve: drawn between 1/gamma and gamma; 1 for none."""
    curve: Share = 0.0
    """How far a random rising intensity curve departs from a straight line; 0 for none."""
    bias: float = Field(default=0.0, ge=0, le=2)
    """Largest logarithm of the gain of a smooth bias field, as MR coils make it; 0 for none."""
    invert: Share = 0.0
    """Chance that bright and dark change places, so that brightness alone says little of what a tissue is."""
    noise: float = Field(default=0.1, ge=0, le=2)
    """Largest added Gaussian noise in standard deviations of the image."""
    blur: float = Field(default=0.7, ge=0, le=8)
    """Largest Gaussian blur: sigma in voxels; 0 for none."""
    low_resolution: float = Field(default=1.0, ge=1, le=16)
    """Largest factor by which voxels are longer along each axis, before the image is interpolated back; 1 for none."""
    dropout: Share = 0.0
    """Largest share of each side of the boxes that show the image's mean instead of it; 0 for none."""
    dropout_boxes: int = Field(default=4, ge=1, le=64)
    """How many boxes there are."""
    chance: Share = 1.0
    """Chance of each kind of change in a sample; flips have their own."""
    transforms: tuple[dict[str, Any], ...] = ()
    """MONAI transforms by import path, such as `{_target_: monai.transforms.RandGaussianNoise, prob: 1.0}`, instead of all the above."""

    @model_validator(mode="after")
    def _transforms_can_be_built(self) -> Self:
        build_transforms(self.transforms)
        return self

    @model_validator(mode="after")
    def _folds_nothing(self) -> Self:
        if self.elastic > FOLDS * self.elastic_step:
            raise ValueError(
                f"elastic {self.elastic:g} folds tissue over itself where points are {self.elastic_step:g} voxels apart: lower it to "
                f"{FOLDS * self.elastic_step:g}, or raise elastic_step to {self.elastic / FOLDS:g}"
            )
        return self

    @property
    def is_affine(self) -> bool:
        """Whether an affine says where every voxel of a view came from."""
        return is_affine(self.transforms) if self.transforms else not self.elastic


@dataclass(frozen=True)
class Warp:
    """Where the voxels of a view come from."""

    affine: Tensor
    """(B, D, D + 1) voxel of the view -> voxel of the crop."""
    displacement: Tensor | None = None
    """(B, D, *size) voxels that are added to it; None: none."""

    def images(self, images: Tensor) -> Tensor:
        """The view of (B, C, *size), by linear interpolation."""
        return spatial.resample(images, self.affine, displacement=self.displacement)

    def nearest(self, values: Tensor, outside: int | float | bool) -> Tensor:
        """The view of labels or masks (B, C, *size), by nearest voxel; `outside` where it leaves the crop."""
        return spatial.resample_nearest(values, self.affine, outside, displacement=self.displacement)


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
    view, warp = _view(images, options, draw, spacing)
    return view, warp.affine


def view_of(crops: Crops, options: Look, draw: Draw) -> tuple[Crops, Tensor]:
    """As `make_view`, of images, labels and body."""
    images, warp = _view(crops.images, options, draw, crops.spacing)
    return viewed(crops, images, warp), warp.affine


def _view(images: Tensor, options: Look, draw: Draw, spacing: Tensor | None) -> tuple[Tensor, Warp]:
    if options.transforms:
        view, affine = apply_transforms(build_transforms(options.transforms), images, draw)
        return view, Warp(affine)
    warp = draw_warp(images.shape[2:], options, draw.fork("affine"), spacing)
    return change_intensities(warp.images(images), options, draw.fork("intensity")), warp


def viewed(crops: Crops, images: Tensor, warp: Warp | Tensor) -> Crops:
    """`crops` as a view shows them: `images`, with `warp` (or its affine, B, D, D + 1) applied to all else.

    Labels and body are taken by nearest voxel; outside the crop nothing is known (-1) and nothing is body.
    """
    labels, body = crops.labels, crops.body
    warp = warp if isinstance(warp, Warp) else Warp(warp)
    return replace(
        crops,
        images=images,
        affine=spatial.compose(crops.affine, warp.affine),
        labels=None if labels is None else warp.nearest(labels, -1),
        body=None if body is None else warp.nearest(body, False),
    )


def draw_warp(size: Sequence[int], options: Look, draw: Draw, spacing: Tensor | None = None) -> Warp:
    """Where the voxels of random views of a grid of `size` come from."""
    affine = draw_affine(tuple(size), options, draw, spacing)
    if not options.elastic:
        return Warp(affine)
    part, dims = draw.fork("elastic"), len(size)
    points = part.uniform(dims, *points_for(size, options.elastic_step), low=-options.elastic, high=options.elastic)
    points = points * _chosen(draw, "elastic", options.chance).view(-1, *[1] * (dims + 1))
    return Warp(affine, between_points(points, size))


def draw_affine(size: torch.Size | tuple[int, ...], options: Look, draw: Draw, spacing: Tensor | None = None) -> Tensor:
    """(B, D, D + 1) random affines of a grid of `size`: flip, scale, rotation about the centre, shift."""
    dims = len(size)

    def chosen(kind: str) -> Tensor:
        return _chosen(draw, kind, options.chance).unsqueeze(1)

    flips = 1 - 2 * (draw.uniform(dims) < options.flip).float()
    scale = _between(draw.uniform(1), options.scale) ** chosen("scale")
    angle = draw.uniform(1, low=-1.0) * math.radians(options.rotate) * chosen("rotate")
    axis = draw.integers(0, 3)
    shift = draw.uniform(dims, low=-1.0) * options.shift * torch.tensor(size, device=draw.device) * chosen("shift")
    if options.stretch > 1:
        scale = scale * _between(draw.fork("stretch").uniform(dims), options.stretch) ** chosen("stretch")
    matrix = torch.diag_embed(flips * scale)
    if options.shear:
        amount = draw.fork("shear").uniform(dims, dims, low=-options.shear, high=options.shear).triu(1)
        matrix = (torch.eye(dims, device=draw.device) + amount * chosen("shear").unsqueeze(2)) @ matrix
    if options.rotate:
        mm = torch.ones_like(flips) if spacing is None else spacing
        turn = spatial.rotation(axis, angle[:, 0], dims)
        if options.rotate_about == "any" and dims == 3:
            others = draw.fork("any").uniform(2, low=-1.0) * math.radians(options.rotate) * chosen("rotate")
            for step, other in enumerate(others.unbind(1), 1):
                turn = spatial.rotation((axis + step) % 3, other, dims) @ turn
        matrix = turn * mm[:, None, :] / mm[:, :, None] @ matrix
    affine = spatial.about_centre(matrix, size)
    return torch.cat([affine[..., :-1], affine[..., -1:] + shift.unsqueeze(-1)], dim=-1)


def change_intensities(images: Tensor, options: Look, draw: Draw) -> Tensor:
    """`images` (B, C, *size) with other intensities, and in part hidden, as `options` say."""

    def chosen(kind: str) -> Tensor:
        return _chosen(draw, kind, options.chance)

    if options.bias:
        points = draw.fork("bias").uniform(1, *[5] * (images.dim() - 2), low=-options.bias, high=options.bias)
        images = intensity.bias_field(images, points * chosen("bias").view(-1, *[1] * (images.dim() - 1)))
    if options.blur:
        images = intensity.blur(images, draw.uniform() * options.blur * chosen("blur"))
    if options.low_resolution > 1:
        factor = options.low_resolution ** (draw.fork("low resolution").uniform(images.dim() - 2) * chosen("low resolution").unsqueeze(1))
        images = intensity.lower_resolution(images, factor)
    if options.contrast:
        gain, bias = draw.uniform(2, low=-options.contrast, high=options.contrast).unbind(1)
        images = intensity.contrast(images, 1 + gain * chosen("contrast"), bias * chosen("contrast"))
    if options.gamma > 1:
        images = intensity.gamma(images, _between(draw.uniform(), options.gamma) ** chosen("gamma"))
    if options.curve:
        images = intensity.curve(images, _heights(draw.fork("curve"), options.curve * chosen("curve")))
    if options.noise:
        amount = draw.uniform() * options.noise * chosen("noise")
        images = intensity.add_normal_noise(images, draw.fork("noise"), amount)
    if options.invert:
        images = intensity.invert(images, draw.uniform() < options.invert)
    if options.dropout:
        # Where boxes lie is read, so it is drawn where that waits for nothing.
        at_hand = draw.on_cpu()
        images = _without_boxes(images, options, at_hand.fork("dropout"), _chosen(at_hand, "dropout", options.chance))
    return images


def _heights(draw: Draw, strength: Tensor, pieces: int = 4) -> Tensor:
    """(B, pieces + 1) heights of a rising curve from 0 to 1: straight at strength 0, wholly random at 1."""
    steps = strength.unsqueeze(1) * draw.uniform(pieces, low=0.05) + (1 - strength.unsqueeze(1)) / pieces
    heights = torch.cat([torch.zeros_like(steps[:, :1]), steps.cumsum(dim=1)], dim=1)
    return heights / heights[:, -1:]


def _without_boxes(images: Tensor, options: Look, draw: Draw, chosen: Tensor) -> Tensor:
    sides = torch.tensor(images.shape[2:])
    size = draw.uniform(options.dropout_boxes, len(sides)) * options.dropout * sides * chosen.view(-1, 1, 1)
    corner = draw.uniform(options.dropout_boxes, len(sides)) * (sides - size)
    return intensity.drop_boxes(images, corner.round(), size.round())


def _chosen(draw: Draw, kind: str, chance: float) -> Tensor:
    """(B,) 1 for the samples in which that kind of change is made, 0 for the others."""
    if chance == 1:
        return torch.ones(len(draw), device=draw.device)
    return (draw.fork(f"chance of {kind}").uniform() < chance).float()


def _between(unit: Tensor, factor: float) -> Tensor:
    """Uniform numbers in [0, 1) to log-uniform ones between 1/factor and factor."""
    return torch.exp((2 * unit - 1) * math.log(factor))
