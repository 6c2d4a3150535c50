"""What must hold of cases before anything is trained: a label each, on its image's grid, and the same channels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl.archive.geometry import voxel_spacing
from medssl.archive.labels.placing import WAY_OUT, Grid, place_of
from medssl.errors import DataError
from medssl.volumes.cases.case import Case
from medssl.volumes.cases.options import LabelledOptions
from medssl.volumes.cases.sources import grid_of, header, is_scaled, label_grid


def checked(options: LabelledOptions, training: Sequence[Case], validation: Sequence[Case] = ()) -> tuple[list[Case], list[Case]]:
    """Both parts as lists, every case with a label on its image's grid and with the same channels."""
    where, cases = options.dataset or options.images or options.index, [*training, *validation]
    if not cases:
        raise DataError(f"no cases in {where}. Give images with labels.")
    bare = [case for case in cases if case.label is None]
    if bare:
        raise DataError(
            f"{len(bare)} of {len(cases)} images in {where} have no label, such as {bare[0].images[0].name}. "
            "Add the labels, remove the images, or name the labelled cases in data.splits."
        )
    usual = channel_count(cases[0])
    unplaced: list[str] = []
    placed: dict[str, Case] = {}
    for case in cases:
        placed[case.name], grid = _on_one_grid(replace(case, resample=options.resample_labels), unplaced)
        _refuse_one_slice(case, grid, options)
        count = channel_count(case)
        # Colours may all become grey: that is seen when they are read.
        if count != usual and is_scaled(case.images):
            raise DataError(
                f"case '{case.name}' has {count} channel(s) and case '{cases[0].name}' has {usual}. All cases must have the same channels."
            )
    if unplaced:
        warnings.warn(
            f"{len(unplaced)} file(s) say not where they lie (qform and sform codes are 0) and are taken to lie where their partner does, "
            f"such as {unplaced[0]}.",
            stacklevel=2,
        )
    return [placed[case.name] for case in training], [placed[case.name] for case in validation]


def channel_count(case: Case) -> int:
    """How many channels a case has: its files, or the fourth axis of its one file."""
    shape, _ = header(case.images[0])
    return len(case.images) if len(case.images) > 1 or len(shape) < 4 else shape[3]


def _refuse_one_slice(case: Case, grid: Grid, options: LabelledOptions) -> None:
    if min(grid.shape) == 1 and len(options.size) == 3:
        two = [side for side in options.size if side > 1][:2]
        raise DataError(
            f"case '{case.name}' is one slice ({' x '.join(map(str, grid.shape))} voxels), and data.size has three sides. Train in 2D: "
            f"data.size={two} and network.spatial_dims=2."
        )


def _on_one_grid(case: Case, unplaced: list[str]) -> tuple[Case, Grid]:
    """The case with what says where its images lie, and their grid; what is `unplaced` is named there.

    Raises `DataError` where a further image or a whole label map lies on another grid.
    """
    shape, affine = header(case.images[0])
    of_label = label_grid(case.label) if case.label is not None else None
    if affine is None and isinstance(case.label, Path) and of_label is not None and of_label[1] is not None:
        unplaced.append(str(case.images[0]))
        affine, case = of_label[1], replace(case, placed_by=case.label)
        if of_label[0] != shape[:3]:
            raise DataError(f"case '{case.name}': {_nowhere(case)}, and its label has another shape: {list(of_label[0])}.")
    if affine is None:
        raise DataError(f"case '{case.name}': {_nowhere(case)}. Convert it again with its orientation.")
    image = grid_of(shape, affine)
    for path in case.images[1:]:
        other_shape, other = header(path)
        near = other is not None and np.allclose(affine, other, rtol=0, atol=1e-2 * max(1e-3, min(voxel_spacing(affine))))
        if other is None or shape[:3] != other_shape or not near:
            where = f"{path} {_grid(other_shape, other) if other is not None else 'says not where it lies'}"
            raise _differs(case, image, f"image {where}. Resample the image onto the image's grid.", "image")
    if of_label is None:
        return case, image
    own_shape, own = of_label
    if own is None:
        unplaced.append(str(case.label))
        own = affine
    label = grid_of(own_shape, own)
    place = place_of(label, image)
    if not case.resample and (len(own_shape) > 3 or place is None or not place.is_whole(label.shape, image.shape)):
        raise _differs(case, image, f"label {case.label} {_grid(own_shape, own)}. {WAY_OUT}", "label")
    return case, image


def _nowhere(case: Case) -> str:
    return f"the image {case.images[0]} says not where it lies (qform and sform codes are 0)"


def _differs(case: Case, image: Grid, other: str, what: str) -> DataError:
    return DataError(f"case '{case.name}': the {what}'s grid differs from the image's: image {case.images[0]} {image}; {other}")


def _grid(shape: tuple[int, ...], affine: NDArray[np.float64]) -> str:
    return f"{grid_of(shape, affine)}{f' and a fourth axis of {shape[3]}' if len(shape) > 3 else ''}"
