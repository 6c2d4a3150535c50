"""Where voxels lie: pure functions from DICOM positions and orientations to affines and regular runs of slices.

DICOM speaks LPS+ millimetres, medssl RAS+ (the convention of NIfTI and MONAI): x and y change sign. An affine maps the
index (x, y, z) of an array (columns, rows, slices) to the millimetres of the voxel's centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

SAME_PLACE = 0.01
"""Millimetres along the normal by which slices at one place may differ."""
COSINE = 1e-3
"""Largest difference of direction cosines that still counts as one orientation."""

SPACING = (1e-3, 1e3)
"""Millimetres between voxels that an image of a body can have."""
FARTHEST = 1e6
"""Millimetres from the origin at which a voxel of a body can lie."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def usable_spacing(spacing: Sequence[float]) -> bool:
    """Are these distances between voxels that an image of a body can have?"""
    return all(SPACING[0] <= side <= SPACING[1] for side in spacing)


def usable_position(position: Sequence[float]) -> bool:
    """Is this a point where a voxel of a body can lie?"""
    return all(abs(value) < FARTHEST for value in position)


def usable_orientation(orientation: Sequence[float]) -> bool:
    """Are the six direction cosines finite, of unit length and at right angles (within the rounding of headers)?"""
    cosines = np.asarray(orientation, float)
    if cosines.shape != (6,) or not np.isfinite(cosines).all():
        return False
    row, column = cosines[:3], cosines[3:]
    return bool(abs(np.linalg.norm(row) - 1) < 0.01 and abs(np.linalg.norm(column) - 1) < 0.01 and abs(row @ column) < 0.01)


def slice_normal(orientation: Sequence[float]) -> Float:
    """(3,) unit vector: rows' direction x columns' direction."""
    cosines = np.asarray(orientation, float)
    normal: Float = np.cross(cosines[:3], cosines[3:])
    return normal / np.linalg.norm(normal)


def affine_from_dicom(orientation: Sequence[float], pixel_spacing: Sequence[float], origin: Float, step: Float) -> Float:
    """(4, 4) voxel -> RAS+ mm of an array (columns, rows, slices).

    `orientation`: ImageOrientationPatient; `pixel_spacing`: PixelSpacing (between rows, between columns); `origin` and `step`:
    LPS mm of the first slice's first voxel and from slice to slice, which need not be normal to the slice (gantry tilt).
    """
    cosines = np.asarray(orientation, float)
    affine = np.eye(4)
    affine[:3, 0] = cosines[:3] / np.linalg.norm(cosines[:3]) * pixel_spacing[1]
    affine[:3, 1] = cosines[3:] / np.linalg.norm(cosines[3:]) * pixel_spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = origin
    result: Float = _LPS_TO_RAS @ affine
    return result


def image_affine(pixel_spacing: Sequence[float]) -> Float:
    """(4, 4) voxel -> mm of a 2D image (columns, rows, 1) with PixelSpacing (between rows, between columns), () where it is unknown: then
    a step counts 1.

    It lies as an axial slice does that is looked at: columns to the patient's left, rows to the back, its first pixel at 0.
    """
    rows, columns = pixel_spacing or (1.0, 1.0)
    return np.diag([-columns, -rows, 1.0, 1.0])


def voxel_spacing(affine: Float) -> tuple[float, ...]:
    """Millimetres between neighbours along each axis of the affine."""
    return tuple(float(length) for length in np.linalg.norm(np.asarray(affine)[:3, :3], axis=0))


@dataclass(frozen=True)
class Flips:
    """Permutation and flips that bring an array to the closest RAS+ axes; nothing is interpolated."""

    order: tuple[int, ...]
    """Axis of the input that becomes axis 0, 1, 2."""
    flipped: tuple[bool, ...]
    """Whether the new axis 0, 1, 2 runs backwards."""

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """(..., X, Y, Z) of the input -> (..., X, Y, Z) of RAS+; a view."""
        return self._reversed(_transposed(array, self.order))

    def undo(self, array: NDArray[Any]) -> NDArray[Any]:
        """The exact inverse of `apply`; a view."""
        return _transposed(self._reversed(array), np.argsort(self.order).tolist())

    def _reversed(self, array: NDArray[Any]) -> NDArray[Any]:
        x, y, z = (slice(None, None, -1 if flip else 1) for flip in self.flipped)
        return array[..., x, y, z]

    def affine(self, affine: Float, shape: Sequence[int]) -> NDArray[Any]:
        """The affine of the turned array, for an input of three sides `shape`."""
        step = np.zeros((4, 4))
        step[3, 3] = 1
        for new, (old, flip) in enumerate(zip(self.order, self.flipped, strict=True)):
            step[old, new] = -1 if flip else 1
            step[old, 3] = shape[old] - 1 if flip else 0
        return np.asarray(affine, float) @ step


def _transposed(array: NDArray[Any], order: Sequence[int]) -> NDArray[Any]:
    lead = array.ndim - 3
    return array.transpose((*range(lead), *(lead + axis for axis in order)))


def to_ras(affine: Float, flat: bool = False) -> Flips:
    """The flips and permutation towards RAS+ of an invertible (4, 4) affine: the assignment with the largest total cosine.

    `flat`: of one slice, whose third axis stays the third whichever way it lies.
    """
    columns = np.asarray(affine, float)[:3, :3]
    cosines = columns / np.linalg.norm(columns, axis=0)
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    order = max(orders, key=lambda axes: sum(abs(cosines[world, axis]) for world, axis in enumerate(axes)))
    turned = [(axis, bool(cosines[world, axis] < 0)) for world, axis in enumerate(order)]
    if flat:
        turned = [*(one for one in turned if one[0] != 2), (2, False)]
    return Flips(tuple(axis for axis, _ in turned), tuple(flip for _, flip in turned))


def shear_degrees(affine: Float) -> float:
    """Angle between the third axis and the normal of the first two: 0 for a box, the gantry's tilt for a tilted CT."""
    first, second, third = np.asarray(affine)[:3, :3].T
    normal = np.cross(first, second)
    cosine = abs(normal @ third) / (np.linalg.norm(normal) * np.linalg.norm(third))
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


def sort_along_normal(positions: Float, normal: Float) -> NDArray[np.int64]:
    """The order of (N, 3) positions along the normal; equal ones keep their order."""
    return np.argsort(positions @ normal, kind="stable")


def place_labels(distances: Float, tolerance: float = SAME_PLACE) -> NDArray[np.int64]:
    """For sorted distances along the normal the number of the place each belongs to: 0, 0, 1, 2, 2 ..."""
    return np.concatenate([[0], np.cumsum(np.diff(distances) > tolerance)]).astype(np.int64)
