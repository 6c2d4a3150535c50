"""One grid within another: voxels of a label that lie on voxels of the image are moved there exactly, all others only by choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.archive.geometry import Flips, voxel_spacing
from medssl.errors import DataError

IN_PLACE = 0.15
"""Voxels of the image by which a voxel of its label may lie off one: rounded headers stay below, and slices may be off by a tenth."""
WAY_OUT = "Resample it onto the image's grid, or let that be done to the nearest voxel: data.resample_labels=true."


class LabelProblem(DataError):
    """A label that cannot be used with its image. Never says what a label's free text says: it may name a person."""


class OtherGrid(LabelProblem):
    """The voxels of the label are none of the image's."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    """(4, 4) voxel -> RAS+ mm."""

    def __str__(self) -> str:
        spacing = "x".join(f"{side:.4g}" for side in voxel_spacing(self.affine))
        origin = ", ".join(f"{x:.4g}" for x in self.affine[:3, 3])
        return f"has shape {list(self.shape)}, spacing {spacing} mm, axes {_axes(self.affine)}, origin ({origin})"


def _axes(affine: NDArray[np.float64]) -> str:
    strongest = np.argmax(np.abs(affine[:3, :3]), axis=0)
    return "".join(("LR", "PA", "IS")[world][int(affine[world, axis] > 0)] for axis, world in enumerate(strongest))


@dataclass(frozen=True)
class Place:
    """How an array lies among the voxels of an image: turned, and from which voxel on."""

    flips: Flips
    corner: tuple[int, int, int]

    def is_whole(self, shape: Sequence[int], target: Sequence[int]) -> bool:
        """Whether an array of these sides has the very voxels of the image."""
        return self.corner == (0, 0, 0) and [shape[axis] for axis in self.flips.order] == list(target)


def place_of(label: Grid, image: Grid) -> Place | None:
    """Where the voxels of `label` lie in `image`; None where they lie between its voxels, or run otherwise.

    An axis of one voxel has no direction: a plane needs only its own two.
    """
    matrix: NDArray[np.float64] = np.linalg.solve(image.affine, label.affine).astype(np.float64)
    order = _order(matrix[:3, :3], label.shape)
    if order is None:
        return None
    sides = np.array(label.shape)
    exact = np.zeros((3, 3))
    for world, axis in enumerate(order):
        exact[world, axis] = -1 if matrix[world, axis] < 0 and sides[axis] > 1 else 1
    corners = (np.indices((2, 2, 2)).reshape(3, 8) * (sides - 1)[:, None]).astype(float)
    found = matrix[:3, :3] @ corners + matrix[:3, 3:]
    turned = exact @ corners
    shift = np.rint((found - turned).mean(axis=1))
    if not np.abs(found - turned - shift[:, None]).max() <= IN_PLACE:
        return None
    first = (turned + shift[:, None]).min(axis=1)
    return Place(Flips(order, tuple(bool(exact[world, axis] < 0) for world, axis in enumerate(order))), _three(first))


def _three(values: NDArray[np.float64]) -> tuple[int, int, int]:
    x, y, z = (int(value) for value in values)
    return x, y, z


def _order(matrix: NDArray[np.float64], shape: Sequence[int]) -> tuple[int, int, int] | None:
    """Axis of the label that runs along the image's axis 0, 1, 2; those of one voxel take what is left."""
    if not np.isfinite(matrix).all():
        return None
    order = [-1, -1, -1]
    for axis in (axis for axis in range(3) if shape[axis] > 1):
        world = int(np.argmax(np.abs(matrix[:, axis])))
        if order[world] >= 0:
            return None
        order[world] = axis
    rest = [axis for axis in range(3) if axis not in order]
    # Of several axes of one voxel each takes the direction nearest to its own.
    for axis in rest:
        free = [world for world in range(3) if order[world] < 0]
        order[max(free, key=lambda world: abs(matrix[world, axis]))] = axis
    return order[0], order[1], order[2]


def paste(array: NDArray[Any], place: Place, target: NDArray[Any]) -> int:
    """Put the voxels of `array` that are not 0 into `target` where they lie in it; returns how many do not."""
    turned = place.flips.apply(array)
    starts = [max(0, first) for first in place.corner]
    ends = [min(side, first + own) for side, first, own in zip(target.shape, place.corner, turned.shape, strict=True)]
    if any(end <= start for start, end in zip(starts, ends, strict=True)):
        return int(np.count_nonzero(turned))
    into = target[tuple(slice(start, end) for start, end in zip(starts, ends, strict=True))]
    windows = zip(starts, ends, place.corner, strict=True)
    part = turned[tuple(slice(start - first, end - first) for start, end, first in windows)]
    np.copyto(into, part, where=part != 0)
    return int(np.count_nonzero(turned)) - int(np.count_nonzero(part)) if part.size < turned.size else 0


def nearest(array: NDArray[Any], label: Grid, image: Grid) -> NDArray[Any]:
    """`array` on the grid of the image, each voxel as the nearest one of the label; 0 where the label does not reach."""
    matrix = np.linalg.solve(label.affine, image.affine)
    out = np.zeros(image.shape, array.dtype)
    x, y = np.meshgrid(np.arange(image.shape[0]), np.arange(image.shape[1]), indexing="ij")
    sides = np.array(array.shape)
    for z in range(image.shape[2]):
        where = [matrix[axis, 0] * x + matrix[axis, 1] * y + (matrix[axis, 2] * z + matrix[axis, 3]) for axis in range(3)]
        index = [np.floor(part + 0.5).astype(np.int64) for part in where]
        inside = np.logical_and.reduce([(part >= 0) & (part < side) for part, side in zip(index, sides, strict=True)])
        out[:, :, z][inside] = array[tuple(part[inside] for part in index)]
    return out


def onto(array: NDArray[Any], label: Grid, image: Grid, resample: bool) -> tuple[NDArray[Any], int]:
    """A whole label map on the image's grid, and its labelled voxels that lie outside of the image.

    Exact where its voxels are voxels of the image, else to the nearest voxel where `resample` allows it, else `OtherGrid`.
    """
    place = place_of(label, image)
    if place is not None:
        out = np.zeros(image.shape, array.dtype)
        return out, paste(array, place, out)
    if not resample:
        raise OtherGrid(f"the label {label}, and the image {image}: its voxels are none of the image's. {WAY_OUT}")
    return nearest(array, label, image), 0
