"""Labelled volumes for fine-tuning and volumes for prediction, on the same grid and with the same preparation as the store's."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.contracts import Draw
from medssl.errors import ConfigError, DataError
from medssl.volumes.cases import Case, LabelledOptions, header, modality_of
from medssl.volumes.grid import Flips, as_spacing, new_size, resample_labels, restore_nearest, spacing_of, to_ras
from medssl.volumes.hostile import compact, fault
from medssl.volumes.ingest import canonical_grid, sample_points
from medssl.volumes.prefetch import Pending, Prefetch
from medssl.volumes.preparation import Preparation, statistics
from medssl.volumes.store import stable_id

CLASS_POINTS = 512
"""Labelled voxels kept a class and case, to place crops around."""

Batch = tuple[int, Tensor, Tensor, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A volume as a network takes it, and the way back to the grid it came on."""

    array: NDArray[np.float32]
    """(C, X, Y, Z) prepared intensities on RAS+ axes."""
    affine: NDArray[np.float64]
    """(4, 4) voxel of `array` -> RAS+ mm."""
    padding: float
    """Prepared value of the volume's darkest voxel: what surrounds it."""
    original_shape: tuple[int, ...]
    original_affine: NDArray[np.float64]
    flips: Flips

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm along the axes of `array`."""
        return spacing_of(self.affine)


def prepare_volume(
    array: NDArray[Any],
    affine: NDArray[Any],
    preparation: Preparation,
    spacing: float | Sequence[float] | None = None,
    modality: str = "MR",
    name: str = "volume",
) -> Prepared:
    """An (X, Y, Z) array of any orientation, prepared as a store would; raises `DataError` for values or grids that cannot be used."""
    reason = fault(array, affine)
    if reason:
        raise DataError(f"{name} cannot be used: {reason}.")
    placed, placed_affine = canonical_grid(array, affine, as_spacing(spacing))
    placed = compact(placed)
    reason = fault(placed, placed_affine)
    if reason:
        raise DataError(f"{name} cannot be used at spacing {spacing} mm: {reason}. Use a finer spacing.")
    numbers = statistics(placed)
    line = preparation.line(numbers, modality)
    out = np.empty((1, *placed.shape), np.float32)
    line.into(placed[None], out)
    return Prepared(out, placed_affine, line.value(numbers.minimum), array.shape, np.asarray(affine, float), to_ras(affine))


def load_case(path: str | Path, preparation: Preparation, spacing: float | Sequence[float] | None = None, modality: str = "MR") -> Prepared:
    """A NIfTI file prepared as a store would; raises `MissingInput` or `DataError`."""
    from medssl.archive import read_nifti

    image = read_nifti(path)
    return prepare_volume(image.array, image.affine, preparation, spacing, modality, str(path))


def restore_labels(labels: NDArray[Any], prepared: Prepared) -> NDArray[Any]:
    """(X, Y, Z) labels on the grid of `prepared.array` back on the input's own grid, nearest voxel; exact where nothing was resampled."""
    if labels.shape != prepared.array.shape[1:]:
        raise ValueError(f"labels of shape {labels.shape} are not on the prepared grid {prepared.array.shape[1:]}")
    flips = prepared.flips
    turned_shape = [prepared.original_shape[axis] for axis in flips.order]
    turned_spacing = spacing_of(flips.affine(prepared.original_affine, prepared.original_shape))
    if list(labels.shape) != turned_shape or not np.allclose(turned_spacing, prepared.spacing, rtol=1e-4):
        labels = restore_nearest(labels, turned_shape, turned_spacing, prepared.spacing)
    return np.ascontiguousarray(flips.undo(labels))


def load_labels(path: str | Path, out_channels: int | None = None) -> NDArray[Any]:
    """(X, Y, Z) label map of a NIfTI file on its own grid, uint8 or int16.

    Raises `DataError` for values that are no whole numbers, negative, or `out_channels` and more.
    """
    from medssl.archive import read_nifti

    array = read_nifti(path).array
    if array.dtype != np.int16:
        raise DataError(f"the label {path} holds values that are no whole numbers, such as {_odd(array):g}. Labels are 0, 1, 2 and so on.")
    low, high = int(array.min()), int(array.max())
    if low < 0 or (out_channels is not None and high >= out_channels):
        wrong = low if low < 0 else high
        known = f"the network has {out_channels} outputs, for labels 0 to {out_channels - 1}" if out_channels else "labels start at 0"
        raise DataError(f"the label {path} holds the value {wrong}; {known}. Set network.out_channels to {high + 1} or correct the label.")
    return array.astype(np.uint8) if high < 256 else array


def _odd(array: NDArray[Any]) -> float:
    odd = array[array != np.rint(array)]
    return float(odd[0]) if odd.size else float(array.max())


def check_labels(cases: Sequence[Case], out_channels: int) -> None:
    """Read every label once; raises `DataError` at the first that does not fit the network."""
    for case in cases:
        if case.label is not None:
            load_labels(case.label, out_channels)


@dataclass(frozen=True, eq=False)
class LoadedCase:
    """A case in memory, ready to be cropped."""

    image: NDArray[np.float32]
    """(C, X, Y, Z) prepared."""
    labels: NDArray[Any]
    """(X, Y, Z) on the same grid."""
    points: tuple[NDArray[np.int64], ...]
    """One (P, 3) a class that the case has, background aside."""
    padding: float


def load_labelled(
    case: Case, preparation: Preparation, spacing: float | Sequence[float] | None, modality: str, out_channels: int | None = None
) -> LoadedCase:
    """Image and label of a case on one grid; raises `DataError`."""
    if case.label is None:
        raise DataError(f"case '{case.name}' has no label.")
    prepared = load_case(case.image, preparation, spacing, modality)
    labels = load_labels(case.label, out_channels)
    if labels.shape != prepared.original_shape:
        raise DataError(f"case '{case.name}': label {list(labels.shape)} and image {list(prepared.original_shape)} differ in shape.")
    turned = prepared.flips.apply(labels)
    if turned.shape != prepared.array.shape[1:] or spacing is not None:
        before = spacing_of(prepared.flips.affine(prepared.original_affine, prepared.original_shape))
        turned = resample_labels(turned, before, prepared.spacing)
    turned = np.ascontiguousarray(turned)
    classes = [int(value) for value in np.unique(turned) if value > 0]
    points = tuple(sample_points(turned == value, CLASS_POINTS, stable_id(f"{case.name}/{value}")) for value in classes)
    return LoadedCase(prepared.array, turned, points, prepared.padding)


class LabelledCrops:
    """Iterates forever over (step, images (B, C, *size) float32, labels (B, 1, *size) int64, names).

    What a batch holds depends on seed, step and index alone. Every case comes once before any comes again. Cases are loaded when
    first needed and stay in memory, prepared.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        options: LabelledOptions,
        preparation: Preparation,
        seed: int,
        *,
        out_channels: int | None = None,
        first_step: int = 0,
    ) -> None:
        """With `out_channels` every label is read and checked at once.

        Raises `DataError` for labels that do not fit and `ConfigError` where the crop is larger than every case.
        """
        if not cases:
            raise DataError("there are no labelled cases to train on.")
        self.cases, self.options, self.preparation, self.seed = tuple(cases), options, preparation, seed
        self.modality = modality_of(options)
        self._out_channels, self._first = out_channels, first_step
        self._size = (*options.size, 1) if len(options.size) == 2 else options.size
        self._check_size()
        if out_channels is not None:
            check_labels(cases, out_channels)
        self._loaded: dict[str, LoadedCase] = {}
        self._locks = {case.name: threading.Lock() for case in cases}
        self._prefetch: Prefetch[Batch] = Prefetch(self._begin, options.threads, 2)

    @property
    def waited(self) -> float:
        """Seconds that the loop stood still for data so far."""
        return self._prefetch.waited

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self._prefetch.next()

    def close(self) -> None:
        """Stop the threads."""
        self._prefetch.close()

    def __enter__(self) -> LabelledCrops:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def case(self, name: str) -> LoadedCase:
        """A case of that name in memory, loaded when first asked for."""
        with self._locks[name]:
            if name not in self._loaded:
                case = next(case for case in self.cases if case.name == name)
                self._loaded[name] = load_labelled(case, self.preparation, self.options.spacing, self.modality, self._out_channels)
            return self._loaded[name]

    def crop(self, step: int, index: int) -> tuple[str, NDArray[np.float32], NDArray[np.int64]]:
        """Name, image (C, *size) and labels (1, *size) of sample `index` of `step`: a pure function."""
        turn, slot = divmod(step * self.options.batch + index, len(self.cases))
        name = self.cases[_order(self.seed, turn, len(self.cases))[slot]].name
        case = self.case(name)
        corner = self._corner(case, Draw(self.seed, step, [index], "labelled crop"))
        image = np.full((case.image.shape[0], *self._size), case.padding, np.float32)
        labels = np.zeros(self._size, np.int64)
        taken, put = _overlap(corner, self._size, case.labels.shape)
        image[(slice(None), *put)] = case.image[(slice(None), *taken)]
        labels[put] = case.labels[taken]
        size = self.options.size
        return name, image.reshape(-1, *size), labels.reshape(1, *size)

    def _corner(self, case: LoadedCase, draw: Draw) -> tuple[int, ...]:
        numbers = draw.uniform(6)[0].tolist()
        point = None
        if numbers[0] < self.options.foreground and case.points:
            points = case.points[int(numbers[1] * len(case.points))]
            point = points[int(numbers[2] * len(points))]
        corner = []
        for axis, (side, want) in enumerate(zip(case.labels.shape, self._size, strict=True)):
            if side <= want:
                corner.append(-((want - side) // 2))
            elif point is None:
                corner.append(int(numbers[3 + axis] * (side - want + 1)))
            else:
                corner.append(min(max(int(point[axis]) - int(numbers[3 + axis] * want), 0), side - want))
        return tuple(corner)

    def _begin(self, number: int, executor: Executor) -> Pending[Batch]:
        step = self._first + number
        parts = [executor.submit(self.crop, step, index) for index in range(self.options.batch)]

        def finish() -> Batch:
            names, images, labels = zip(*(part.result() for part in parts), strict=True)
            return step, torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)), names

        return parts, finish

    def _check_size(self) -> None:
        shapes = np.asarray([_placed_shape(case.image, self.options.spacing) for case in self.cases])
        largest, usual = shapes.max(axis=0), np.median(shapes, axis=0).astype(int)
        if (largest < np.asarray(self._size)).any():
            count = len(self.options.size)
            raise ConfigError(
                f"data.size {list(self.options.size)} is larger than every image: the longest sides are {largest[:count].tolist()} voxels, "
                f"the median ones {usual[:count].tolist()}. Use data.size="
                f"{np.minimum(self.options.size, usual[:count]).tolist()} or less."
            )


def _placed_shape(path: Path, spacing: float | Sequence[float] | None) -> list[int]:
    shape, affine = header(path)
    if len(shape) != 3:
        raise DataError(f"{path} has shape {list(shape)}; one 3D image is needed.")
    flips, wanted = to_ras(affine), as_spacing(spacing)
    sides, spacings = [shape[axis] for axis in flips.order], spacing_of(flips.affine(affine, shape))
    return sides if wanted is None else [new_size(n, old, new) for n, old, new in zip(sides, spacings, wanted, strict=True)]


def _overlap(corner: Sequence[int], size: Sequence[int], shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The box's part inside the volume, in the volume's voxels and in the crop's."""
    taken = tuple(slice(max(c, 0), min(c + s, n)) for c, s, n in zip(corner, size, shape, strict=True))
    put = tuple(slice(t.start - c, t.stop - c) for t, c in zip(taken, corner, strict=True))
    return taken, put


@lru_cache(maxsize=16)
def _order(seed: int, turn: int, count: int) -> list[int]:
    order: list[int] = Draw(seed, turn, [0], "labelled order").permutation(count)[0].tolist()
    return order
