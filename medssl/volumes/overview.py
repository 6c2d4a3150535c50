"""What an index holds, for a person to look at: volumes by how they were taken, and a sheet of middle slices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medssl.archive import Index, Volume, VolumeRecord
from medssl.archive.geometry import to_ras, voxel_spacing
from medssl.errors import ArchiveError
from medssl.volumes.showing import framed, ranges, save_sheet


@dataclass(frozen=True)
class ArchiveKind:
    """The volumes of an index that are of one modality, body part and manufacturer."""

    modality: str
    body_part: str
    """Empty where the headers do not say."""
    manufacturer: str
    volumes: int
    patients: int
    files: int
    shape: tuple[str, ...]
    """Of each side: smallest, median and largest."""
    spacing: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """As `medssl show --json` prints it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def archive_kinds(index: Index) -> list[ArchiveKind]:
    """The volumes of an index by modality, body part and manufacturer."""
    groups: dict[tuple[str, str, str, int], list[VolumeRecord]] = defaultdict(list)
    for record in index.volumes():
        groups[record.modality, record.body_part or "", record.manufacturer or "", record.dimensions].append(record)
    return [
        ArchiveKind(
            *key[:3],
            len(members),
            len({record.patient for record in members}),
            sum(record.instances for record in members),
            ranges([record.shape[: record.dimensions] for record in members]),
            ranges([record.spacing for record in members if record.spacing]) or ("unknown",),
        )
        for key, members in sorted(groups.items())
    ]


def warnings_of(index: Index) -> dict[str, int]:
    """Warning, without the numbers that differ from one to the next -> volumes that carry it."""
    found: dict[str, int] = defaultdict(int)
    for record in index.volumes():
        for text in {_without_numbers(warning) for warning in record.warnings}:
            found[text] += 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _without_numbers(text: str) -> str:
    return " ".join("..." if any(char.isdigit() for char in word) else word for word in text.split())


def write_overview(index: Index, path: str | Path, rows: int = 8) -> Path:
    """A PNG of up to `rows` volumes, evenly chosen: axial, coronal and sagittal slices through the middle, patient's right on the left.

    A volume that cannot be read has its caption alone.
    """
    records = sorted(index.volumes(), key=lambda record: (record.modality, record.body_part or "", record.volume))
    if not records:
        raise ArchiveError("the index holds no volume to draw. `medssl volumes INDEX --left-out` says why.")
    chosen = np.unique(np.linspace(0, len(records) - 1, min(rows, len(records))).round().astype(int)).tolist()
    return save_sheet([_row(index, records[number]) for number in chosen], Path(path))


def _row(index: Index, record: VolumeRecord) -> tuple[str, list[Image.Image]]:
    sides, spacing = ("x".join(f"{side:.4g}" for side in some) for some in (record.shape, record.spacing))
    caption = "  ".join(filter(None, (record.volume, record.modality, record.body_part, f"{sides} at {spacing} mm" if spacing else sides)))
    try:
        return caption, list(_middles(index.read(record.volume)))
    except ArchiveError:
        return f"{caption}  cannot be read", []


def _middles(volume: Volume) -> Iterator[Image.Image]:
    array = volume.array[0] if volume.array.ndim == 4 else volume.array
    flips = to_ras(volume.affine)
    turned, spacing = flips.apply(array), voxel_spacing(flips.affine(volume.affine, array.shape))
    flat = [axis for axis, side in enumerate(turned.shape) if side == 1]
    for cut in flat[:1] or (2, 1, 0):
        image = turned.take(turned.shape[cut] // 2, cut)
        yield framed(image.astype(np.float32), [spacing[axis] for axis in range(3) if axis != cut])
