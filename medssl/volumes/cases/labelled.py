"""Labelled cases in a store, and volumes for prediction on the same grid and with the same preparation as a store's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medssl.archive import narrow, read_nifti
from medssl.archive.geometry import Flips, to_ras, voxel_spacing
from medssl.archive.labels.merging import ClassMap
from medssl.archive.labels.placing import LabelProblem
from medssl.archive.nifti.names import is_picture_name
from medssl.archive.pictures.files import read_picture_labels
from medssl.errors import DataError
from medssl.volumes.cases.case import Case, pseudonym
from medssl.volumes.cases.label_values import LabelValues
from medssl.volumes.cases.sources import Image, fingerprint, header, is_scaled, read_images, read_labels
from medssl.volumes.grid import as_spacing, restore_nearest
from medssl.volumes.ingest import Incoming, Progress, Unusable, placed, write_store
from medssl.volumes.preparation import Channel, Preparation, Statistics, statistics, usual_preparation
from medssl.volumes.store import Store

MR = (Channel("MR", "MR"),)
"""One channel of MR: what images are taken for where nobody says."""
OTHERS = 6
"""Cases that cannot be used of which a message names at most so many."""


def store_cases(
    cases: Sequence[Case],
    folder: str | Path,
    channels: Sequence[Channel] = MR,
    *,
    spacing: float | Sequence[float] | None = None,
    preparation: Preparation | None = None,
    values: LabelValues | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> Store:
    """The store of these cases in `folder`, images and labels; what is there already, from files that are still the same, is kept.

    Each case is read once, and checked. Raises `DataError` where one cannot be used, and what `write_store` raises.
    """
    if not cases:
        raise DataError("there are no labelled cases to train on.")
    notes: dict[str, tuple[str, ...]] = {}
    dimensions = dimensions_of(cases)
    preparation = preparation or usual_preparation(dimensions)
    incoming = [_incoming(case, tuple(channels), values or LabelValues(), notes, preparation) for case in cases]
    done = write_store(
        incoming, folder, spacing=spacing, preparation=preparation, dimensions=dimensions, workers=workers, progress=progress
    )
    bad = [case for case in cases if case.volume in done.left_out]
    if bad:
        files = ", ".join(map(str, [*bad[0].images, bad[0].label]))
        count = f"{len(bad)} of {len(cases)} cases cannot be used, such as " if len(bad) > 1 else ""
        others = ", ".join(f"'{case.name}'" for case in bad[1:OTHERS])
        also = f" The others: {others}{' and more' if len(bad) > OTHERS else ''}." if others else ""
        raise DataError(f"{count}case '{bad[0].name}' ({files}): {done.left_out[bad[0].volume]}{also}")
    _tell(notes)
    return stored_cases(folder, cases)


def dimensions_of(cases: Sequence[Case]) -> Literal[2, 3]:
    """2 where all are images of one slice, 3 where none is; raises `DataError` for some of each."""
    kinds: dict[bool, Case] = {}
    for case in cases:
        # What cannot be read is told with all others of its kind when it is stored.
        with suppress(DataError):
            shape, _ = header(case.images[0])
            kinds.setdefault(len(shape) < 3 or shape[2] == 1, case)
    if len(kinds) > 1:
        raise DataError(f"case '{kinds[True].name}' is a 2D image and case '{kinds[False].name}' a volume. Train on one kind at a time.")
    return 2 if True in kinds else 3


def _tell(notes: Mapping[str, Sequence[str]]) -> None:
    """One line: what is odd about labels that are used all the same."""
    odd = {name: said for name, said in sorted(notes.items()) if said}
    if odd:
        name, said = next(iter(odd.items()))
        warnings.warn(
            f"the labels of {len(odd)} case(s) are not quite as expected, such as those of '{name}': {'; '.join(said)}.", stacklevel=3
        )


def stored_cases(folder: str | Path, cases: Sequence[Case]) -> Store:
    """Those cases of a store that `store_cases` made."""
    return Store(folder, only=frozenset(case.volume for case in cases))


def _incoming(
    case: Case, channels: tuple[Channel, ...], values: LabelValues, notes: dict[str, tuple[str, ...]], preparation: Preparation
) -> Incoming:
    if case.label is None:
        raise DataError(f"case '{case.name}' has no label.")
    load, labels = partial(read_images, case.images, case.placed_by, preparation), partial(_case_labels, case, values, notes)
    made_of = [fingerprint(source) for source in (*case.images, case.label)]
    made_of += [str(values.document())] if values.classes is not None else []
    made_of += [repr(values.segments)] if values.segments is not None else []
    made_of += ["resampled"] if case.resample else []
    return Incoming(
        case.volume,
        pseudonym(case.patient),
        case.volume,
        channels[0].modality,
        load,
        channels,
        labels,
        " ".join(made_of),
        scaled=is_scaled(case.images),
    )


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
    statistics: tuple[Statistics, ...]
    """Of each channel, before it was prepared."""

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
    *,
    flat: bool = False,
    scaled: bool = True,
) -> Prepared:
    """(X, Y, Z) or (A, X, Y, Z) values of any orientation, prepared as a store would be read.

    `flat`: they may be a 2D image, of one slice; `scaled`: the affine is in mm. Raises `DataError` for values or grids that cannot be used.
    """
    try:
        values, placed_affine, _ = placed(array, affine, as_spacing(spacing), channels, flat=flat, scaled=scaled)
    except Unusable as error:
        at = f" at spacing {spacing} mm" if spacing is not None else ""
        raise DataError(f"{name} cannot be used{at}: {error}.") from error
    numbers = {place: statistics(values[place]) for place in {channel.array for channel in channels}}
    out = np.empty((len(channels), *values.shape[1:]), np.float32)
    for image, channel in zip(out, channels, strict=True):
        preparation.line(numbers[channel.array], channel.modality, channel.name).into(values[channel.array], image)
    return Prepared(
        out,
        placed_affine,
        array.shape[-3:],
        np.asarray(affine, float),
        to_ras(affine, array.shape[-1] == 1),
        tuple(numbers[channel.array] for channel in channels),
    )


def load_case(
    images: str | Path | Sequence[Image],
    preparation: Preparation,
    spacing: float | Sequence[float] | None = None,
    channels: Sequence[Channel] = MR,
    placed_by: Path | None = None,
    *,
    flat: bool = False,
) -> Prepared:
    """The images of a case, prepared as a store would be read; `placed_by` is the file that says where they lie, where they do not.

    `flat`: it may be a 2D image. Raises `MissingInput` or `DataError`.
    """
    paths: list[Image] = [Path(images)] if isinstance(images, str | Path) else list(images)
    array, affine = read_images(paths, placed_by, preparation)
    name = ", ".join(map(str, paths))
    return prepare_volume(array, affine, preparation, spacing, channels, name, flat=flat, scaled=is_scaled(paths))


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


def load_labels(path: str | Path, values: LabelValues | None = None) -> NDArray[Any]:
    """(X, Y, Z) classes of a label map, NIfTI or PNG, on its own grid, uint8 or int16; -1 where they are ignored.

    Raises `DataError` for values that are no whole numbers or no class.
    """
    try:
        array = read_picture_labels(path) if is_picture_name(str(path)) else read_nifti(path).array
        return _classes(array, values or LabelValues())
    except Unusable as error:
        raise DataError(f"the label {path} {error}") from error


def case_labels(case: Case, values: LabelValues) -> NDArray[Any]:
    """(X, Y, Z) classes of a case's label on its image's grid, as `load_labels`; raises `DataError`."""
    try:
        return _case_labels(case, values, {})
    except Unusable as error:
        raise DataError(f"case '{case.name}': {error}") from error


def _case_labels(case: Case, values: LabelValues, notes: dict[str, tuple[str, ...]]) -> NDArray[Any]:
    assert case.label is not None
    try:
        found = read_labels(case.label, lambda: case.grid, values.segments, case.resample)
        if isinstance(found, ClassMap):
            notes[case.name] = found.notes
            return found.array
        return _classes(found.array, values)
    except Unusable as error:
        raise Unusable(f"its label {error}") from error
    except LabelProblem as problem:
        raise Unusable(str(problem).removesuffix(".")) from problem


def _classes(array: NDArray[Any], values: LabelValues) -> NDArray[Any]:
    array = narrow(array)
    if array.dtype != np.int16 and (odd := array[array != np.rint(array)]).size:
        raise Unusable(f"holds values that are no whole numbers, such as {np.float64(odd[0]):.10g}. Labels are 0, 1, 2 and so on.")
    if values.classes is not None:
        return values.classes_in(array)
    low, high = array.min(), array.max()
    array = narrow(array)
    if low < 0:
        raise Unusable(f"holds the value {low:.10g}; labels start at 0. Correct the label, or name its class by data.label_values.")
    if array.dtype != np.int16:
        top = np.iinfo(np.int16).max
        raise Unusable(
            f"holds the value {high:.10g}, and labels go from 0 to {top}. Correct the label, or name its class by data.label_values."
        )
    return array.astype(np.uint8) if high < 256 else array
