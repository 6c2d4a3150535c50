"""Which box is cut out of which volume: a pure function of (seed, global number of the sample).

The global number counts all samples of a run: step times the global batch plus the place in it. So any number of reader threads,
ranks, micro batches or restarts gives the same crops, and every volume comes once before any comes again.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from medssl.config import BaseOptions
from medssl.contracts import Draw
from medssl.errors import ConfigError
from medssl.volumes.crops.boxes import Along, along, along_at, covered, interpolated
from medssl.volumes.crops.order import shuffled
from medssl.volumes.store import Store, StoredVolume

FRACTION = 4
"""The share of a crop that is body is counted on every fourth voxel of each axis."""
UNKNOWN = -1
"""The label of a voxel of which nothing is known."""


class CropOptions(BaseOptions):
    """How crops are placed."""

    size: tuple[int, ...] = Field(min_length=2, max_length=3)
    """Sides of a crop in voxels along x, y, z of RAS+. Two sides on a store of 3D volumes give axial slices."""
    slab: int = Field(default=1, ge=1, le=64)
    """With two sides on a store of 3D volumes of one channel: so many neighbouring axial slices become the channels of a crop."""
    crops_per_volume: int = Field(default=1, ge=1, le=64)
    """Neighbouring crops of a batch that come from one volume; must divide the batch."""
    overlap: float | None = Field(default=None, ge=0, lt=1)
    """With `crops_per_volume`: least share of each side that every further crop of a volume has in common with its first one, which is
    placed as any crop; null: each lies where it likes."""
    foreground: float = Field(default=0.9, ge=0, le=1)
    """Share of the crops that are placed around a point of the body or, in a labelled volume, of one of its classes, each class alike;
    the others lie anywhere in the volume."""
    small: Literal["pad", "leave out"] = "pad"
    """What becomes of volumes that are smaller than the crop: padded with their darkest value, or left out."""
    size_mm: tuple[float, ...] | None = None
    """Sides of a crop in mm, whatever the grid of its volume: what lies in them becomes `size` voxels, by linear interpolation, or by
    averaging where voxels become larger; null: a crop's voxels are those of the store."""
    balance: str = "volume"
    """What comes equally often: each volume, or each value of a column of the store's table: patient, whatever the number of volumes,
    modality, series, channels, spacing."""

    @model_validator(mode="after")
    def _mm_fit(self) -> Self:
        if self.size_mm is not None and len(self.size_mm) != len(self.size):
            raise ValueError(f"size_mm {list(self.size_mm)} needs {len(self.size)} sides as size {list(self.size)} has")
        if self.voxel_mm is not None and not all(0.01 <= side <= 1000 for side in self.voxel_mm):
            raise ValueError(f"size_mm {list(self.size_mm or ())} makes voxels of {list(self.voxel_mm)} mm; they go from 0.01 to 1000 mm")
        return self

    @property
    def voxel_mm(self) -> tuple[float, ...] | None:
        """Sides of a crop's voxels where it has its own."""
        return None if self.size_mm is None else tuple(mm / side for mm, side in zip(self.size_mm, self.size, strict=True))

    @field_validator("size")
    @classmethod
    def _positive(cls, size: tuple[int, ...]) -> tuple[int, ...]:
        if not all(1 <= side <= 4096 for side in size):
            raise ValueError(f"each side must be from 1 to 4096 voxels, not {list(size)}")
        return size


class LoadOptions(CropOptions):
    """How crops are placed, joined to batches and read ahead."""

    batch: int = Field(default=2, ge=1, le=4096)
    """Crops in one forward pass of one process."""
    threads: int = Field(default=2, ge=1, le=64)
    """Threads that read and prepare crops ahead of the training."""
    ahead: int = Field(default=2, ge=1, le=32)
    """Batches that are kept ready."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch % self.crops_per_volume:
            raise ValueError(f"batch {self.batch} is not a multiple of crops_per_volume {self.crops_per_volume}")
        return self


class DataOptions(LoadOptions):
    """The `data:` key of a pretraining configuration."""

    store: str
    """Folder of the store (`medssl store ... --out FOLDER`)."""
    unfinished: bool = False
    """Train on what is there of a store that was not finished, instead of refusing it."""


@dataclass(frozen=True)
class Place:
    """One box of one volume; a corner below zero or an end beyond the volume is padding."""

    number: int
    """The volume's place in the store."""
    corner: tuple[int, ...]
    """(3,) or, in a store of 2D images, (2,) voxels."""
    size: tuple[int, ...]
    """Sides in voxels of the volume, as many as it has axes."""
    spacing: tuple[float, ...] | None = None
    """mm of the crop's own voxels, the first of which begins where the box does; None: they are the volume's."""

    def affine(self, volume: StoredVolume, dims: int) -> NDArray[np.float32]:
        """(3, dims + 1): voxel of the crop, by its first `dims` axes, -> mm along the volume's axes from its first voxel's centre."""
        matrix = np.zeros((3, dims + 1), np.float32)
        for axis, (side, corner, own) in enumerate(zip(volume.steps, self.corner, self.spacing or volume.steps, strict=True)):
            # Of slices that are channels the middle of them counts.
            middle = 0 if axis < dims else (self.size[axis] - 1) / 2
            matrix[axis, -1] = side * (corner + middle) + (own - side) / 2
            if axis < dims:
                matrix[axis, axis] = own
        return matrix


@dataclass(frozen=True)
class Crop:
    """One crop and what `contracts.Crops` says of it."""

    image: NDArray[np.float32]
    """(C, *size) prepared."""
    place: Place
    volume: StoredVolume
    inside: float
    affine: NDArray[np.float32]
    """(3, D + 1) voxel of the crop -> mm in the volume."""
    labels: NDArray[np.int64] | None
    """(1, *size) classes, where the store has them."""


class CropPlan:
    """What is fixed for a store and options: which volumes take part, and how they are drawn."""

    def __init__(self, store: Store, options: CropOptions) -> None:
        """Raises `ConfigError`, with the fix, where the crop does not fit the store."""
        self.store, self.options = store, options
        self.size = _full_size(store, options)
        """Sides of a crop, as many as the volumes have axes."""
        self.numbers = _usable(store, self.size, options)
        self._groups = None if options.balance == "volume" else _grouped(store, options.balance, self.numbers)

    def place(self, seed: int, sample: int) -> Place:
        """The box of the sample with that global number."""
        return self.places(seed, [sample])[0]

    def places(self, seed: int, samples: Sequence[int]) -> list[Place]:
        """The box of each sample; together they cost little more than one."""
        several, overlap, dims = self.options.crops_per_volume, self.options.overlap, len(self.size)
        firsts = samples if overlap is None else [sample - sample % several for sample in samples]
        draws = Draw(seed, 0, firsts, "corner").uniform(2 + 2 * dims).tolist()
        shares = None if overlap is None else Draw(seed, 0, samples, "overlap").uniform(dims).tolist()
        found = []
        for place, (sample, first) in enumerate(zip(samples, firsts, strict=True)):
            number = self._number(seed, sample // several)
            box, spacing = self._box(number)
            corner = self._corner(number, box, draws[place])
            if overlap is not None and shares is not None and sample != first:
                corner = self._moved(number, box, corner, overlap, shares[place])
            found.append(Place(number, corner, box, spacing))
        return found

    def _box(self, number: int) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
        """Sides in voxels of a volume that a crop covers, the last of them perhaps in part, and the spacing of its own voxels."""
        own = self.options.voxel_mm
        if own is None:
            return self.size, None
        volume = self.store.volume(number)
        spacing = (*own, *volume.spacing[len(own) :])
        return covered(self.size, spacing, volume.spacing), spacing

    def _moved(
        self, number: int, box: tuple[int, ...], corner: tuple[int, ...], overlap: float, shares: Sequence[float]
    ) -> tuple[int, ...]:
        """A corner at most so far from another that the boxes share `overlap` of each side; it stays within the volume where that was."""
        moved = []
        for at, share, side, want in zip(corner, shares, self.store.volume(number).shape, box, strict=True):
            reach = want - math.ceil(overlap * want)
            to = at + int(share * (2 * reach + 1)) - reach
            moved.append(at if side <= want else min(max(to, 0), side - want))
        return tuple(moved)

    def _number(self, seed: int, position: int) -> int:
        """Each volume once an epoch; with groups each group once a turn, and of each its volumes once an epoch of its own."""
        if self._groups is None:
            return int(self.numbers[shuffled(position, len(self.numbers), f"{seed}/volumes")])
        turn = position // len(self._groups)
        chosen = shuffled(position, len(self._groups), f"{seed}/groups")
        group = self._groups[chosen]
        return int(group[shuffled(turn, len(group), f"{seed}/group {chosen}")])

    def _corner(self, number: int, box: tuple[int, ...], numbers: Sequence[float]) -> tuple[int, ...]:
        volume = self.store.volume(number)
        point = _point(volume, numbers[1]) if numbers[0] < self.options.foreground else None
        corner = []
        for axis, (side, want) in enumerate(zip(volume.shape, box, strict=True)):
            share = numbers[2 + axis]
            if side <= want:
                corner.append(-((want - side) // 2))
            elif point is None:
                corner.append(int(share * (side - want + 1)))
            else:
                corner.append(min(max(int(point[axis]) - int(share * want), 0), side - want))
        return tuple(corner)


def _point(volume: StoredVolume, share: float) -> NDArray[np.int32] | None:
    """A voxel of the body or, of a labelled volume, of a class, each class alike; None where it has none."""
    sets = (volume.points,) if volume.classes is None else volume.class_points
    if not sets:
        return None
    chosen, rest = divmod(share * len(sets), 1)
    points = sets[int(chosen)]
    return points[int(rest * len(points))] if len(points) else None


def _grouped(store: Store, name: str, numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The numbers of each value of a column. Values come in the order of their first volumes: pseudonyms are others elsewhere."""
    if name not in store.columns:
        raise ConfigError(
            f"data.balance '{name}' is no column of the store {store.folder}. Take volume, or one of {', '.join(sorted(store.columns))}."
        )
    values = [str(value) for value in store.column(name)]
    groups: dict[str, list[int]] = {}
    for number in numbers.tolist():
        groups.setdefault(values[number], []).append(number)
    return [np.asarray(group) for group in groups.values()]


def channels_of_crops(store: Store, options: CropOptions) -> tuple[str, ...]:
    """The names of the channels that crops have: those of the store, or its neighbouring slices."""
    if options.slab == 1:
        return store.channels
    if len(store.channels) > 1:
        raise ConfigError(
            f"data.slab makes channels of slices, and the volumes of {store.folder} have {len(store.channels)} channels already "
            f"({', '.join(store.channels)}). Leave slab out, or make a store of one channel."
        )
    if len(options.size) != 2 or store.spatial_dims != 3:
        raise ConfigError(
            f"data.slab makes channels of the neighbouring slices of volumes: it needs a data.size of two sides, not {list(options.size)}, "
            f"and a store of 3D volumes; {store.folder} holds {store.spatial_dims}D images. Leave slab out."
        )
    return tuple(f"slice {number}" for number in range(options.slab))


def _full_size(store: Store, options: CropOptions) -> tuple[int, ...]:
    dims, size = store.spatial_dims, options.size
    if len(size) == dims:
        return tuple(size)
    if len(size) == 2 and dims == 3:
        return (*size, options.slab)
    raise ConfigError(f"data.size {list(size)} has {len(size)} sides, the store {store.folder} holds {dims}D images. Give {dims} sides.")


def _usable(store: Store, size: tuple[int, ...], options: CropOptions) -> NDArray[np.int64]:
    shapes = store.shapes()
    if options.voxel_mm is not None:
        spacings = store.column("spacing")
        if not all(spacings):
            raise ConfigError(f"data.size_mm: {spacings.count([])} images of {store.folder} are of unknown spacing. Leave size_mm out.")
        mm = np.asarray(spacings)
        wanted = mm.copy()
        wanted[:, : len(options.size)] = options.voxel_mm
        shapes = np.floor(shapes * mm / wanted + 1e-6).astype(np.int64)
    fits = (shapes >= np.asarray(size)).all(axis=1)
    shown, usual = ([int(side) for side in sides[: len(options.size)]] for sides in (shapes.max(axis=0), np.median(shapes, axis=0)))
    sides = f"the longest sides are {shown} voxels, the median ones {usual}"
    if options.small == "leave out":
        if not fits.any():
            raise ConfigError(
                f"data.size {list(options.size)} is larger than every volume of {store.folder}, and data.small leaves such out: {sides}. "
                "Take smaller crops, or data.small=pad."
            )
        return np.flatnonzero(fits)
    if any(side < want for side, want in zip(shown, options.size, strict=True)):
        warnings.warn(
            f"data.size {list(options.size)} is larger than every volume of {store.folder}: {sides}. What is beyond them is padded with "
            "the darkest value, and costs as much as voxels that teach something.",
            stacklevel=3,
        )
    return np.arange(len(store))


def extent(volume: StoredVolume) -> tuple[float, float, float]:
    """mm, or pixels where a spacing is unknown: the sides of a volume; the third of a 2D image is 0."""
    sides = [side * step for side, step in zip(volume.shape, volume.steps, strict=True)]
    return sides[0], sides[1], sides[2] if len(sides) == 3 else 0.0


def read_crop(
    store: Store,
    place: Place,
    out: NDArray[np.float32],
    *,
    labels: NDArray[np.int64] | None = None,
    body: NDArray[np.bool_] | None = None,
    scratch: dict[Any, NDArray[Any]] | None = None,
) -> float:
    """Fill `out` (C, *size) with the prepared box, padding included; the share of it that is body comes back.

    `labels` and `body` (*size), where given, become the classes and the mask of the body. `scratch` keeps the buffers of raw values
    from one call of a thread to its next.
    """
    volume = store.volume(place.number)
    axes, size = _axes(place, volume, out.shape[1:]), out.shape[1:]
    corner, sides = [axis.first for axis in axes], [axis.end - axis.first for axis in axes]
    raw = _buffer((store.arrays(place.number), *sides), store.dtype(place.number), scratch)
    store.read(place.number, corner, sides, raw)
    raw = interpolated(raw, axes)
    kept, shown = raw.shape[1:], tuple(slice(axis.lo, axis.hi) for axis in axes)
    for image, channel, numbers, line in zip(out, volume.channels, volume.statistics, volume.lines(store.preparation), strict=True):
        if kept != size:
            image[...] = line.value(numbers.minimum)
        line.into(raw[channel.array], image[shown])
    if body is not None:
        body[...] = False
        body[shown] = volume.body(raw)
    every = tuple(slice(None, None, FRACTION if side >= 2 * FRACTION else 1) for side in kept)
    sparse = volume.body(raw[(slice(None), *every)])
    share = float(np.count_nonzero(sparse) / sparse.size)
    if labels is not None:
        _read_labels(store, place.number, axes, labels, scratch)
    return share * math.prod(kept) / math.prod(size)


def _axes(place: Place, volume: StoredVolume, size: Sequence[int]) -> list[Along]:
    if place.spacing is None:
        return [along(*one) for one in zip(place.corner, size, volume.shape, strict=True)]
    ratios = [own / one for own, one in zip(place.spacing, volume.spacing, strict=True)]
    return [along_at(*one) for one in zip(place.corner, size, volume.shape, ratios, strict=True)]


def _read_labels(store: Store, number: int, axes: Sequence[Along], out: NDArray[np.int64], scratch: dict[Any, NDArray[Any]] | None) -> None:
    """What surrounds a labelled volume is background; of a volume without label nothing is known."""
    if store.volume(number).classes is None:
        out[...] = UNKNOWN
        return
    raw = _buffer((1, *(axis.end - axis.first for axis in axes)), store.labels_dtype(number), scratch)
    store.read_labels(number, [axis.first for axis in axes], raw.shape[1:], raw)
    values = raw[0]
    for place, axis in enumerate(axes):
        values = axis.nearest(values, place)
    out[...] = 0
    out[tuple(slice(axis.lo, axis.hi) for axis in axes)] = values


def _buffer(shape: tuple[int, ...], dtype: np.dtype[Any], scratch: dict[Any, NDArray[Any]] | None) -> NDArray[Any]:
    count = int(np.prod(shape))
    if scratch is None:
        return np.empty(shape, dtype)
    flat = scratch.get(dtype)
    if flat is None or flat.size < count:
        flat = scratch[dtype] = np.empty(count, dtype)
    return flat[:count].reshape(shape)


def crop_at(store: Store, options: CropOptions, seed: int, sample: int) -> Crop:
    """The crop of the sample with that global number: what the loader delivers there."""
    plan = CropPlan(store, options)
    place = plan.place(seed, sample)
    images = np.empty((len(channels_of_crops(store, options)), *options.size), np.float32)
    labels = np.empty(plan.size, np.int64) if store.labelled else None
    inside = read_crop(store, place, by_slices(images, plan), labels=labels)
    volume, size = store.volume(place.number), options.size
    if labels is not None and labels.ndim > len(size):
        labels = labels[..., plan.size[-1] // 2]
    classes = None if labels is None else labels[None]
    return Crop(images, place, volume, inside, place.affine(volume, len(size)), classes)


def by_slices(images: NDArray[np.float32], plan: CropPlan) -> NDArray[np.float32]:
    """(C, *size) of a crop as its box has them, (channels of the volume, *sides of the box): a view."""
    if images.ndim == 1 + len(plan.size):
        return images
    return np.moveaxis(images, 0, -1)[None] if plan.options.slab > 1 else images[..., None]
