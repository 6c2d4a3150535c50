"""What a row of the table says of one volume, and whether that can be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.archive.geometry import usable_spacing
from medssl.volumes.preparation import Channel, Line, Preparation, Statistics
from medssl.volumes.unusable import LONGEST


@dataclass(frozen=True, eq=False)
class StoredVolume:
    """One volume of a store, without its voxels."""

    volume: str
    sample: int
    """int64 of the volume's content: the same for the same data, whatever their pseudonyms."""
    patient: int
    """int64 of the smallest content among the patient's volumes."""
    modality: str
    channels: tuple[Channel, ...]
    statistics: tuple[Statistics, ...]
    """Of each channel."""
    shape: tuple[int, ...]
    """The D spatial sides: 2 of an image, 3 of a volume."""
    spacing: tuple[float, ...]
    """Millimetres; () of an image of which it is unknown."""
    affine: NDArray[np.float64]
    """(4, 4) voxel -> RAS+ mm; of an image of unknown spacing it counts pixels."""
    box: tuple[tuple[int, ...], tuple[int, ...]]
    """First and one past the last corner of the foreground."""
    points: NDArray[np.int32] = field(repr=False)
    """(P, D) voxels of the foreground, evenly drawn."""
    classes: tuple[int, ...] | None
    """Values that its label file holds; None where it has no label."""
    class_points: tuple[NDArray[np.int32], ...] = field(repr=False)
    """(P, D) voxels of each class, evenly drawn; background and classes without a voxel on this grid are left out."""
    series: str
    patient_name: str
    """The patient's pseudonym."""
    dtype: str | None
    """"i2" or "f4", the type of its file; None where the store does not know."""
    digest: str | None
    """Of its file."""
    labels_digest: str | None
    """Of the file of its label."""

    @property
    def steps(self) -> tuple[float, ...]:
        """The spacing, or 1 along each axis where it is unknown: distances are then in pixels."""
        return self.spacing or (1.0,) * len(self.shape)

    def lines(self, preparation: Preparation) -> tuple[Line, ...]:
        """What prepares each channel."""
        pairs = zip(self.channels, self.statistics, strict=True)
        return tuple(preparation.line(numbers, channel.modality, channel.name) for channel, numbers in pairs)

    def body(self, arrays: NDArray[Any]) -> NDArray[np.bool_]:
        """Where any channel of raw `arrays` (A, ...) is above its own threshold."""
        return body_of(arrays, self.channels, self.statistics)


def body_of(arrays: NDArray[Any], channels: Sequence[Channel], statistics: Sequence[Statistics]) -> NDArray[np.bool_]:
    """Where any channel of raw `arrays` (A, ...) is above its own threshold; of one that several channels show the first counts."""
    thresholds = {channel.array: numbers for channel, numbers in zip(reversed(channels), reversed(statistics), strict=True)}
    masks = [numbers.foreground(arrays[array]) for array, numbers in sorted(thresholds.items())]
    return masks[0] if len(masks) == 1 else np.logical_or.reduce(masks)


def volume_of_row(row: Mapping[str, Any], sample: int, patient: int) -> StoredVolume:
    """What a row says, unchecked; raises one of `ROW_ERRORS` where it cannot be understood."""
    dims = len(row["shape"])
    box = row["box"]
    return StoredVolume(
        volume=row["volume"],
        sample=sample,
        patient=patient,
        modality=row["modality"],
        channels=tuple(Channel(*one) for one in zip(row["channels"], row["modalities"], row["arrays"], strict=True)),
        statistics=statistics_of_row(row["statistics"]),
        shape=tuple(row["shape"]),
        spacing=tuple(row["spacing"]),
        affine=np.asarray(row["affine"], np.float64).reshape(4, 4),
        box=(tuple(box[:dims]), tuple(box[dims:])),
        points=_points(row["points"], dims),
        classes=None if row["classes"] is None else tuple(row["classes"]),
        class_points=tuple(_points(content, dims) for content in row["class_points"] or () if content),
        series=row["series"],
        patient_name=row["patient"],
        dtype=row["dtype"],
        digest=row["digest"],
        labels_digest=row["labels_digest"],
    )


def why_unsound(one: StoredVolume) -> str | None:
    """What in a row cannot be; None where it describes a volume."""
    dims = len(one.shape)
    numbers = [number for statistics in one.statistics for number in astuple(statistics)]
    lo, hi = one.box
    inside = all(0 <= a < b <= side for a, b, side in zip(lo, hi, one.shape, strict=True))
    points = [one.points, *one.class_points]
    checks = {
        "shape": dims in (2, 3) and all(0 < side <= LONGEST for side in one.shape),
        "spacing": len(one.spacing) in ((0, 2) if dims == 2 else (3,)) and usable_spacing(one.spacing),
        "affine": bool(np.isfinite(one.affine).all()),
        "channels": bool(one.channels) and all(channel.array in range(2**15) for channel in one.channels),
        "names": all(isinstance(name, str) for channel in one.channels for name in (channel.name, channel.modality)),
        "statistics": len(one.statistics) == len(one.channels) and all(map(math.isfinite, numbers)),
        "box": len(lo) == len(hi) == dims and inside,
        "points": all((part < one.shape).all() for part in points),
        "classes": one.classes is None or len(one.class_points) <= len(one.classes),
    }
    return next((name for name, sound in checks.items() if not sound), None)


def statistics_of_row(numbers: Sequence[float]) -> tuple[Statistics, ...]:
    """Those of each channel, of the numbers that the table holds."""
    width = len(fields(Statistics))
    return tuple(Statistics(*numbers[start : start + width]) for start in range(0, len(numbers), width))


def _points(content: bytes, dims: int) -> NDArray[np.int32]:
    return np.frombuffer(content, "<u2").reshape(-1, dims).astype(np.int32)
