"""Labelled cases in a store, and volumes for prediction on the same grid and with the same preparation as a store's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.archive import read_nifti, read_nifti_channels
from medssl.archive.geometry import Flips, to_ras, voxel_spacing
from medssl.errors import DataError
from medssl.volumes.cases import Case, pseudonym
from medssl.volumes.grid import as_spacing, restore_nearest
from medssl.volumes.ingest import Incoming, Progress, Unusable, placed, write_store
from medssl.volumes.preparation import Channel, Preparation, statistics
from medssl.volumes.store import Store

MR = (Channel("MR", "MR"),)
"""One channel of MR: what images are taken for where nobody says."""


def store_cases(
    cases: Sequence[Case],
    folder: str | Path,
    channels: Sequence[Channel] = MR,
    *,
    spacing: float | Sequence[float] | None = None,
    preparation: Preparation | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> Store:
    """The store of these cases in `folder`, images and labels; what is there already, from files that are still the same, is kept.

    Each case is read once, and checked. Raises `DataError` where one cannot be used, and what `write_store` raises.
    """
    if not cases:
        raise DataError("there are no labelled cases to train on.")
    incoming = [_incoming(case, tuple(channels)) for case in cases]
    done = write_store(incoming, folder, spacing=spacing, preparation=preparation, workers=workers, progress=progress)
    bad = [case for case in cases if case.volume in done.left_out]
    if bad:
        files = ", ".join(map(str, [*bad[0].images, bad[0].label]))
        count = f"{len(bad)} of {len(cases)} cases cannot be used, such as " if len(bad) > 1 else ""
        raise DataError(f"{count}case '{bad[0].name}' ({files}): {done.left_out[bad[0].volume]}")
    return Store(folder, only=frozenset(case.volume for case in cases))


def _incoming(case: Case, channels: tuple[Channel, ...]) -> Incoming:
    if case.label is None:
        raise DataError(f"case '{case.name}' has no label.")
    load, labels = partial(_read_images, case.images), partial(_case_labels, case.label)
    return Incoming(case.volume, pseudonym(case.patient), case.volume, channels[0].modality, load, channels, labels, _fingerprint(case))


def _fingerprint(case: Case) -> str:
    """Sizes and times of the files: what tells that they were changed."""
    paths = [*case.images, *([case.label] if case.label is not None else [])]
    return " ".join(f"{stat.st_size}/{stat.st_mtime_ns}" for stat in (path.stat() for path in paths))


def _read_images(paths: Sequence[Path]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """(A, X, Y, Z) values and affine of the images of a case."""
    images = [read_nifti_channels(path) for path in paths]
    shapes = {image.array.shape[1:] for image in images}
    if len(shapes) > 1:
        raise Unusable(f"its images have different shapes: {', '.join(str(list(shape)) for shape in sorted(shapes))}")
    return images[0].array if len(images) == 1 else np.concatenate([image.array for image in images]), images[0].affine


@dataclass(frozen=True, eq=False)
class Prepared:
    """A volume as a network takes it, and the way back to the grid it came on."""

    array: NDArray[np.float32]
    """(C, X, Y, Z) prepared intensities on RAS+ axes."""
    affine: NDArray[np.float64]
    """(4, 4) voxel of `array` -> RAS+ mm."""
    original_shape: tuple[int, ...]
    """The three sides."""
    original_affine: NDArray[np.float64]
    flips: Flips

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm along the axes of `array`."""
        return voxel_spacing(self.affine)


def prepare_volume(
    array: NDArray[Any],
    affine: NDArray[Any],
    preparation: Preparation,
    spacing: float | Sequence[float] | None = None,
    channels: Sequence[Channel] = MR,
    name: str = "volume",
) -> Prepared:
    """(X, Y, Z) or (A, X, Y, Z) values of any orientation, prepared as a store would be read.

    Raises `DataError` for values or grids that cannot be used.
    """
    try:
        values, placed_affine, _ = placed(array, affine, as_spacing(spacing), channels)
    except Unusable as error:
        at = f" at spacing {spacing} mm" if spacing is not None else ""
        raise DataError(f"{name} cannot be used{at}: {error}.") from error
    numbers = {place: statistics(values[place]) for place in {channel.array for channel in channels}}
    out = np.empty((len(channels), *values.shape[1:]), np.float32)
    for image, channel in zip(out, channels, strict=True):
        preparation.line(numbers[channel.array], channel.modality, channel.name).into(values[channel.array], image)
    return Prepared(out, placed_affine, array.shape[-3:], np.asarray(affine, float), to_ras(affine))


def load_case(
    images: str | Path | Sequence[Path],
    preparation: Preparation,
    spacing: float | Sequence[float] | None = None,
    channels: Sequence[Channel] = MR,
) -> Prepared:
    """The NIfTI files of a case, prepared as a store would be read; raises `MissingInput` or `DataError`."""
    paths = [Path(images)] if isinstance(images, str | Path) else list(images)
    array, affine = _read_images(paths)
    return prepare_volume(array, affine, preparation, spacing, channels, ", ".join(map(str, paths)))


def restore_labels(labels: NDArray[Any], prepared: Prepared) -> NDArray[Any]:
    """(X, Y, Z) labels on the grid of `prepared.array` back on the input's own grid, nearest voxel; exact where nothing was resampled."""
    if labels.shape != prepared.array.shape[1:]:
        raise ValueError(f"labels of shape {labels.shape} are not on the prepared grid {prepared.array.shape[1:]}")
    flips = prepared.flips
    turned_shape = [prepared.original_shape[axis] for axis in flips.order]
    turned_spacing = voxel_spacing(flips.affine(prepared.original_affine, prepared.original_shape))
    if list(labels.shape) != turned_shape or not np.allclose(turned_spacing, prepared.spacing, rtol=1e-4):
        labels = restore_nearest(labels, turned_shape, turned_spacing, prepared.spacing)
    return np.ascontiguousarray(flips.undo(labels))


def load_labels(path: str | Path, out_channels: int | None = None) -> NDArray[Any]:
    """(X, Y, Z) label map of a NIfTI file on its own grid, uint8 or int16.

    Raises `DataError` for values that are no whole numbers, negative, or `out_channels` and more.
    """
    try:
        return _read_labels(path, out_channels)
    except Unusable as error:
        raise DataError(f"the label {path} {error}") from error


def _case_labels(path: Path) -> NDArray[Any]:
    try:
        return _read_labels(path)
    except Unusable as error:
        raise Unusable(f"its label {error}") from error


def _read_labels(path: str | Path, out_channels: int | None = None) -> NDArray[Any]:
    array = read_nifti(path).array
    if array.dtype != np.int16:
        raise Unusable(_why_no_labels(array))
    low, high = int(array.min()), int(array.max())
    reason = _wrong_value(low, high, out_channels)
    if reason:
        raise Unusable(reason)
    return array.astype(np.uint8) if high < 256 else array


def _wrong_value(low: int, high: int, out_channels: int | None) -> str | None:
    if low >= 0 and (out_channels is None or high < out_channels):
        return None
    if low < 0:
        return f"holds the value {low}; labels start at 0. Correct the label."
    return (
        f"holds the value {high}; the network has {out_channels} outputs, for labels 0 to {int(out_channels or 1) - 1}. "
        f"Set network.out_channels to {high + 1} or correct the label."
    )


def _why_no_labels(array: NDArray[Any]) -> str:
    odd = array[array != np.rint(array)]
    if odd.size:
        return f"holds values that are no whole numbers, such as {np.float64(odd[0]):.10g}. Labels are 0, 1, 2 and so on."
    return f"holds the value {float(array.max()):.10g}, and labels go from 0 to {np.iinfo(np.int16).max}. Correct the label."


def check_labels(cases: Sequence[Case], out_channels: int) -> None:
    """Read every label once; raises `DataError` at the first that does not fit the network."""
    for case in cases:
        if case.label is not None:
            load_labels(case.label, out_channels)


def check_classes(store: Store, cases: Sequence[Case], out_channels: int) -> None:
    """As `check_labels`, of cases that are in a store: nothing is read again."""
    found = {volume.volume: volume.classes or (0,) for volume in store.volumes}
    for case in cases:
        reason = _wrong_value(min(found[case.volume]), max(found[case.volume]), out_channels)
        if reason:
            raise DataError(f"the label {case.label} {reason}")
