"""The picture at the end of the demo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SCALE = 4
CAPTION = 22
COLORS = np.array([[0, 0, 0], [230, 159, 0], [86, 180, 233]], dtype=np.uint8)
"""Colours of the label values that people with any colour vision tell apart (Okabe and Ito)."""


def write_picture(columns: Mapping[str, NDArray[Any]], path: Path) -> Path:
    """Middle slices side by side: integer label maps in colour, the rest in grey. Arrays (X, Y, Z) of one shape."""
    tiles = [_tile(name, volume[:, :, volume.shape[2] // 2], grey=name == "image") for name, volume in columns.items()]
    sheet = Image.new("RGB", (sum(tile.width for tile in tiles), tiles[0].height))
    left = 0
    for tile in tiles:
        sheet.paste(tile, (left, 0))
        left += tile.width
    sheet.save(path)
    return path


def _tile(name: str, plane: NDArray[Any], *, grey: bool) -> Image.Image:
    turned = np.flipud(plane.T)
    if grey:
        top = max(float(np.percentile(turned, 99.5)), 1e-6)
        shown = np.repeat(np.clip(turned / top * 255, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    else:
        shown = COLORS[turned.astype(np.int64)]
    picture = Image.fromarray(shown).resize((turned.shape[1] * SCALE, turned.shape[0] * SCALE), Image.Resampling.NEAREST)
    tile = Image.new("RGB", (picture.width, picture.height + CAPTION))
    tile.paste(picture, (0, CAPTION))
    ImageDraw.Draw(tile).text((6, 5), name, fill="white")
    return tile
