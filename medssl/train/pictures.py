"""Sheets of pictures: what went in, what was asked for, what came out, side by side with their names.

Slices are shown as a radiologist sees them, the patient's right on the left, front or head up, for arrays in RAS+ order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from medssl.errors import GO_ON, TrainingError
from medssl.faults import faults_as
from medssl.files import make_folder, replacing

CELL = 128
"""Longest side of one picture, in pixels."""
_GAP = 4
_LINE = 16
_PLANES = {2: ("",), 3: ("axial", "coronal", "sagittal")}


def write_sheet(file: str | Path, images: Mapping[str, Tensor], title: str = "", rows: int = 3) -> Path:
    """Write a PNG: one column an entry of `images`, name -> (B, C, *size), and one row for each of up to `rows` samples and plane.

    3D samples are shown by their middle slices. All pictures of a sample share the grey scale of its first column, so that they
    can be compared; three channels are shown as colours, of other numbers the middle one. The file appears whole or not at all.
    """
    path = Path(file)
    cells = {name: tensor.detach().to("cpu", torch.float32).numpy() for name, tensor in images.items()}
    first = next(iter(cells.values()))
    planes = _PLANES[first.ndim - 2]
    labels = [(sample, plane) for sample in range(min(rows, first.shape[0])) for plane in range(len(planes))]
    table = [[_picture(array, first, sample, plane) for array in cells.values()] for sample, plane in labels]
    names = [f"{sample + 1} {planes[plane]}".strip() for sample, plane in labels]
    with faults_as(TrainingError, f"the picture {path} cannot be written", GO_ON):
        make_folder(path.parent)
        with replacing(path) as stream:
            _sheet(table, list(cells), names, title).save(stream, format="PNG", optimize=True)
    return path


def middle_slice(array: NDArray[np.float32], plane: int) -> NDArray[np.float32]:
    """(C, X, Y[, Z]) -> (C, rows, columns): the middle axial (0), coronal (1) or sagittal (2) slice, turned for viewing."""
    if array.ndim == 4:
        axis = 3 - plane
        array = np.take(array, array.shape[axis] // 2, axis=axis)
    turned: NDArray[np.float32] = np.flip(array.transpose(0, 2, 1), axis=(1, 2))
    return turned


def _picture(array: NDArray[np.float32], reference: NDArray[np.float32], sample: int, plane: int) -> Image.Image:
    if sample >= array.shape[0]:
        return Image.new("RGB", (CELL, CELL))
    low, high = grey_range(reference[sample])
    pixels = middle_slice(array[sample], plane)
    shown = pixels if pixels.shape[0] == 3 else np.repeat(pixels[pixels.shape[0] // 2][None], 3, axis=0)
    scaled = np.nan_to_num((shown - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255
    image = Image.fromarray(np.ascontiguousarray(scaled.round().astype(np.uint8).transpose(1, 2, 0)), mode="RGB")
    factor = CELL / max(image.size)
    size = (max(round(image.width * factor), 1), max(round(image.height * factor), 1))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX)


def grey_range(values: NDArray[np.float32]) -> tuple[float, float]:
    """The values shown black and white: the 1st and 99th percentile, apart even where the image is flat or not finite."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(finite, (1, 99)))
    pad = max(abs(low) * 1e-3, 0.5)
    return (low, high) if high > low else (low - pad, low + pad)


def _sheet(table: Sequence[Sequence[Image.Image]], columns: Sequence[str], rows: Sequence[str], title: str) -> Image.Image:
    font = ImageFont.load_default()
    left = 80 if any(rows) else 0
    top = _LINE * (2 if title else 1) + _GAP
    sheet = Image.new("RGB", (left + len(columns) * (CELL + _GAP), top + len(rows) * (CELL + _GAP)), "black")
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_GAP, 2), title, fill="white", font=font)
    for column, name in enumerate(columns):
        draw.text((left + column * (CELL + _GAP), top - _LINE), name, fill="white", font=font)
    for row, name in enumerate(rows):
        y = top + row * (CELL + _GAP)
        draw.text((_GAP, y + CELL // 2 - _LINE // 2), name, fill="white", font=font)
        for column, picture in enumerate(table[row]):
            x = left + column * (CELL + _GAP)
            sheet.paste(picture, (x + (CELL - picture.width) // 2, y + (CELL - picture.height) // 2))
    return sheet
