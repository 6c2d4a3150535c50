"""What a store holds, for a person to look at: numbers by modality, and a sheet of slices with the box of the foreground."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medssl.errors import StoreError
from medssl.faults import faults_as
from medssl.files import make_folder, replacing
from medssl.volumes.store import Store, StoredVolume

CELL = 160
"""Longest side of a picture in pixels."""
BINS = 64
_LINE, _GAP = 14, 6


@dataclass(frozen=True)
class Kind:
    """The volumes of one modality with the same channels."""

    modality: str
    channels: tuple[str, ...]
    volumes: int
    patients: int
    shape: tuple[str, ...]
    """Of each side: smallest, median and largest."""
    spacing: tuple[str, ...]
    values: tuple[float, float, float, float]
    """Of the foreground: medians over the volumes of the 0.5th percentile, the mean, the 99.5th percentile and the deviation."""

    def document(self) -> dict[str, Any]:
        """As `medssl show --json` prints it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def kinds(store: Store) -> list[Kind]:
    """The store's volumes by modality and channels."""
    groups: dict[tuple[str, tuple[str, ...]], list[StoredVolume]] = defaultdict(list)
    for volume in store.volumes:
        groups[volume.modality, tuple(channel.name for channel in volume.channels)].append(volume)
    return [_kind(*key, members) for key, members in sorted(groups.items())]


def _kind(modality: str, channels: tuple[str, ...], members: Sequence[StoredVolume]) -> Kind:
    statistics = [numbers for volume in members for numbers in volume.statistics]
    columns = ([getattr(one, name) for one in statistics] for name in ("low", "mean", "high", "std"))
    low, mean, high, std = (round(float(np.median(column)), 4) for column in columns)
    return Kind(
        modality,
        channels,
        len(members),
        len({volume.patient for volume in members}),
        ranges([volume.shape for volume in members]),
        ranges([volume.spacing for volume in members if volume.spacing]) or ("unknown",),
        (low, mean, high, std),
    )


def ranges(rows: Sequence[Sequence[float]]) -> tuple[str, ...]:
    """Smallest, median and largest of each column; nothing of no rows."""
    if not rows:
        return ()
    array = np.asarray(rows, float)
    return tuple(f"{a:.4g} {b:.4g} {c:.4g}" for a, b, c in zip(array.min(0), np.median(array, 0), array.max(0), strict=True))


def write_sheet(store: Store, path: str | Path, rows: int = 8) -> Path:
    """A PNG of up to `rows` volumes, evenly chosen: slices through the middle of the foreground with its box, and a histogram.

    Slices are shown with the patient's right on the left, front or head up. The histogram is of all values of the first channel's
    array; what is not body is grey.
    """
    chosen = np.unique(np.linspace(0, len(store) - 1, min(rows, len(store))).round().astype(int)).tolist()
    table = [(_caption(store.volume(number)), [*_slices(store, number), _histogram(store, number)]) for number in chosen]
    return save_sheet(table, Path(path))


def save_sheet(table: Sequence[tuple[str, Sequence[Image.Image]]], file: Path) -> Path:
    """Pictures in rows under their captions, as one PNG."""
    with faults_as(StoreError, f"the picture {file} cannot be written"):
        make_folder(file.parent)
        with replacing(file) as stream:
            _sheet(table).save(stream, format="PNG")
    return file


def _caption(volume: StoredVolume) -> str:
    sides, spacing = ("x".join(f"{side:.4g}" for side in some) for some in (volume.shape, volume.spacing))
    at = f"at {spacing} mm" if spacing else "of unknown spacing"
    return f"{volume.volume}  {', '.join(channel.name for channel in volume.channels)}  {sides} {at}"


def _slices(store: Store, number: int) -> Iterator[Image.Image]:
    """Axial, coronal and sagittal, or the image itself; of the first channel, prepared as a network sees it."""
    volume = store.volume(number)
    lo, hi = volume.box
    channel, line = volume.channels[0], volume.lines(store.preparation)[0]
    cuts = (None,) if len(volume.shape) == 2 else (2, 1, 0)
    for cut in cuts:
        corner, size = [0] * len(volume.shape), list(volume.shape)
        if cut is not None:
            corner[cut], size[cut] = (lo[cut] + hi[cut]) // 2, 1
        raw = store.read(number, corner, size)[channel.array]
        flat = raw if cut is None else raw.squeeze(cut)
        image = np.empty(flat.shape, np.float32)
        line.into(flat, image)
        axes = [axis for axis in range(len(volume.shape)) if axis != cut]
        yield framed(image, [volume.steps[axis] for axis in axes], [(lo[axis], hi[axis]) for axis in axes])


def framed(image: NDArray[np.float32], spacing: Sequence[float], box: Sequence[tuple[int, int]] | None = None) -> Image.Image:
    """(X, Y) values as a picture in true proportions with the box drawn, if there is one."""
    low, high = (float(value) for value in np.percentile(image, (0.5, 99.5)))
    grey = ((image - low) / max(high - low, 1e-6)).clip(0, 1) * 255
    lengths = [side * mm for side, mm in zip(image.shape, spacing, strict=True)]
    width, height = (max(1, round(CELL * length / max(lengths))) for length in lengths)
    turned = np.ascontiguousarray(np.flip(grey.T.round().astype(np.uint8), (0, 1)))
    picture = Image.fromarray(turned).resize((width, height), Image.Resampling.BOX).convert("RGB")
    if box is None:
        return picture
    (x0, x1), (y0, y1) = (
        (round((side - hi) / side * pixels), round((side - lo) / side * pixels) - 1)
        for (lo, hi), side, pixels in zip(box, image.shape, (width, height), strict=True)
    )
    ImageDraw.Draw(picture).rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=(255, 160, 0))
    return picture


def _histogram(store: Store, number: int) -> Image.Image:
    volume = store.volume(number)
    values, numbers = store.read_whole(number)[volume.channels[0].array], volume.statistics[0]
    top = max(numbers.high, numbers.minimum + 1e-6)
    counts, edges = np.histogram(values, BINS, (numbers.minimum, top))
    heights = np.sqrt(counts / max(1, counts.max()))
    picture = Image.new("RGB", (CELL, CELL), (16, 16, 16))
    draw = ImageDraw.Draw(picture)
    for place, (height, edge) in enumerate(zip(heights, edges, strict=False)):
        colour = (255, 160, 0) if edge >= numbers.threshold else (110, 110, 110)
        left, right = (round(CELL * step / BINS) for step in (place, place + 1))
        draw.rectangle((left, CELL - 1 - round(float(height) * (CELL - _LINE - 2)), right - 2, CELL - 1), fill=colour)
    draw.text((2, 0), f"{numbers.minimum:.4g} .. {top:.4g}", fill="white", font=ImageFont.load_default())
    return picture


def _sheet(table: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    columns = max(len(pictures) for _, pictures in table)
    row = _LINE + CELL + _GAP
    sheet = Image.new("RGB", (columns * (CELL + _GAP) + _GAP, len(table) * row + _GAP), "black")
    draw = ImageDraw.Draw(sheet)
    for number, (caption, pictures) in enumerate(table):
        draw.text((_GAP, number * row + 2), caption, fill="white", font=ImageFont.load_default())
        for column, picture in enumerate(pictures):
            x = _GAP + column * (CELL + _GAP) + (CELL - picture.width) // 2
            sheet.paste(picture, (x, number * row + _LINE + 2 + (CELL - picture.height) // 2))
    return sheet
