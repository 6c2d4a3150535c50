"""Made-up patients with real anatomy: the MNI152 T1 template, warped and given another contrast for each patient.

The template and its tissue maps (Fonov et al., NeuroImage 2011) ship with the package nilearn, so nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medssl.errors import MissingInput

Floats = NDArray[np.float32]

LABELS = ("grey matter", "white matter")
"""Names of the label values 1, 2; 0 is everything else."""
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
"""Slice planes: which patient axis each image axis runs along, the slices last."""


@dataclass(frozen=True)
class Scan:
    """One made-up scan with its truth."""

    image: NDArray[np.int16]
    """(X, Y, Z), the slices along the last axis."""
    labels: NDArray[np.uint8]
    """(X, Y, Z): 0 other, 1 grey matter, 2 white matter."""
    affine: NDArray[np.float64]
    """4x4, voxel -> RAS+ mm."""
    plane: str
    """Slice plane: axial, coronal or sagittal."""


@dataclass(frozen=True)
class Template:
    """The template's maps on one grid, values 0 .. 1."""

    t1: Floats
    grey: Floats
    white: Floats
    to_voxel: NDArray[np.float64]
    """4x4, RAS+ mm -> voxel."""


@lru_cache(maxsize=1)
def template() -> Template:
    """The MNI152 T1 at 1 mm with its grey and white matter maps, read from the installed package nilearn."""
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise MissingInput("the demo takes its anatomy from the package nilearn. Install it with: pip install 'medssl[demo]'")
    folder = Path(spec.origin).parent / "datasets" / "data"
    maps: dict[str, Floats] = {}
    affine: NDArray[np.float64] = np.eye(4)
    for name in ("t1", "gm", "wm"):
        found = sorted(folder.glob(f"mni_icbm152_{name}_tal_nlin_sym_09a*.nii.gz"))
        if not found:
            raise MissingInput(f"nilearn is installed but has no MNI152 map '{name}'. Install the version named in constraints.txt.")
        image = nib.load(found[0])
        affine = np.asarray(image.affine, dtype=np.float64)
        maps[name] = np.asarray(image.dataobj, dtype=np.float32) / np.float32(255)
    return Template(maps["t1"], maps["gm"], maps["wm"], np.asarray(np.linalg.inv(affine), dtype=np.float64))


def make_scan(patient: int, seed: int = 0, spacing: float = 3.0) -> Scan:
    """The scan of one patient; a function of (patient, seed). `spacing` in mm is varied by up to 5 % a patient."""
    random = np.random.default_rng([seed, patient])
    plane = tuple(PLANES)[patient % len(PLANES)]
    shape, affine = _grid(random, plane, spacing)
    points = _world(shape, affine) + _warp(random, shape)
    maps = template()
    voxels = np.tensordot(maps.to_voxel[:3, :3], points, axes=1) + maps.to_voxel[:3, 3][:, None, None, None]
    t1, grey, white = (ndimage.map_coordinates(m, voxels, order=1, mode="constant") for m in (maps.t1, maps.grey, maps.white))
    labels = np.argmax([np.full_like(grey, 0.34), grey, white], axis=0).astype(np.uint8)
    return Scan(_contrast(random, t1), labels, affine, plane)


def _grid(random: np.random.Generator, plane: str, spacing: float) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and affine of a slightly tilted grid that covers the head, its slices in `plane`."""
    extent = np.array([162.0, 198.0, 168.0])
    center = np.array([0.0, -18.0, 6.0]) + random.uniform(-4, 4, 3)
    axes = np.array(PLANES[plane])
    sides = spacing * random.uniform(0.95, 1.05) * np.array([1.0, 1.0, random.uniform(0.95, 1.05)])
    shape = np.ceil(extent[axes] / sides).astype(int)
    tilt = _rotation(np.radians(random.uniform(-8, 8, 3)))
    directions = tilt[:, axes] * sides
    affine = np.eye(4)
    affine[:3, :3] = directions
    affine[:3, 3] = center - directions @ ((shape - 1) / 2)
    return tuple(int(side) for side in shape), affine


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _world(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, X, Y, Z): the RAS+ mm of each voxel."""
    points = np.tensordot(affine[:3, :3], np.indices(shape), axes=1) + affine[:3, 3][:, None, None, None]
    return np.asarray(points, dtype=np.float64)


def _smooth(random: np.random.Generator, shape: tuple[int, ...], knots: int) -> Floats:
    """A smooth random field of standard deviation about 1."""
    coarse = random.standard_normal((knots,) * 3)
    field = ndimage.zoom(coarse, [side / knots for side in shape], order=3, mode="nearest", grid_mode=True)
    return np.asarray(field, dtype=np.float32)


def _warp(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """(3, X, Y, Z): a smooth displacement of some millimetres."""
    return np.stack([_smooth(random, shape, 5) * 4.0 for _ in range(3)])


def _contrast(random: np.random.Generator, t1: Floats) -> NDArray[np.int16]:
    """Another scanner: a curve, a bias field, noise and a scale of its own."""
    curve = t1 ** random.uniform(0.6, 1.8)
    bias = np.exp(0.15 * _smooth(random, t1.shape, 3))
    noisy = np.abs(curve * bias + random.normal(0, 0.03, t1.shape))
    values: NDArray[np.int16] = np.clip(np.rint(noisy * random.uniform(400, 1500)), 0, 4095).astype(np.int16)
    return values
