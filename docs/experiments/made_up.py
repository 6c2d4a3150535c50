"""Made-up images with labels, for tasks that ask for more than one grey channel: `colour`, `channels` and `frames`.

Two kinds of tissue lie in a third. What a task asks for can be known from what it shows, by somebody who sees which tissue is where.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
KINDS = ("colour", "channels", "frames")


def made_up(kind: str, count: int, first: int = 0) -> list[dict[str, Any]]:
    """`count` items with `image` (C, *size), `label` (1, *size) and `patient`; each is a function of the kind and its number."""
    make = {"colour": _colour, "channels": _channels, "frames": _frames}[kind]
    return [make(number) for number in range(first, first + count)]


def _item(kind: str, number: int, image: Array, label: Array) -> dict[str, Any]:
    tensors = torch.from_numpy(image.astype(np.float32)), torch.from_numpy(label.astype(np.int64))[None]
    return {"image": tensors[0], "label": tensors[1], "patient": f"{kind} {number}"}


def _colour(number: int) -> dict[str, Any]:
    """64 x 64, red, green and blue in 0 .. 1: a spot with stripes and a smooth one in a grainy field, each of its own colour."""
    draw = np.random.default_rng([1, number])
    axes, label = _two_in_one(draw, (64, 64))
    hues = np.array([[0.80, 0.62, 0.50], [0.45, 0.25, 0.60], [0.30, 0.60, 0.35]]) + draw.normal(0, 0.02, (3, 3))
    stripes = 1 + 0.3 * np.sin(1.6 * axes[0] + 0.8 * axes[1] + draw.uniform(0, 6))
    grain = 1 + 0.15 * draw.standard_normal(label.shape)
    brightness = np.select([label == 1, label == 2], [stripes, np.ones(label.shape)], grain) * draw.uniform(0.8, 1.1)
    return _item("colour", number, np.clip(np.moveaxis(hues[label], -1, 0) * brightness, 0, 1), label)


def _channels(number: int) -> dict[str, Any]:
    """28 x 52 x 28 of two sequences: what is brightest in one is darkest in the other, and each has a bias field of its own."""
    draw = np.random.default_rng([2, number])
    axes, label = _two_in_one(draw, (28, 52, 28))
    values = np.array([[0.4, 0.7, 1.0], [0.8, 1.1, 0.2]])[:, label]
    bias = np.stack([0.15 * np.sin(axes[one % 3] / 9 + draw.uniform(0, 6)) for one in range(2)])
    image = values + bias + 0.04 * draw.standard_normal(values.shape)
    return _item("channels", number, (image - image.mean()) / image.std(), label)


def _frames(number: int) -> dict[str, Any]:
    """64 x 64 at 4 times: a chamber in a wall draws together within a frame and widens again over the others; labels are of the first."""
    draw = np.random.default_rng([3, number])
    axes = np.meshgrid(*[np.arange(64.0)] * 2, indexing="ij")
    middle, radius, wide = draw.uniform(26, 38, 2), draw.uniform(12, 17), draw.uniform(1.3, 1.5)
    distance = np.sqrt(sum((axis - at) ** 2 for axis, at in zip(axes, middle, strict=True)))
    background = 0.3 + 0.1 * np.sin(axes[0] / 7 + draw.uniform(0, 6)) * np.sin(axes[1] / 6 + draw.uniform(0, 6))
    frames = []
    for share in (1.0, 0.5, 0.68, 0.84):
        # The wall keeps its volume: it is thick where the chamber is small.
        outer = np.sqrt((wide * radius) ** 2 - radius**2 + (share * radius) ** 2)
        chamber, wall = distance < share * radius, distance < outer
        frames.append(np.select([chamber, wall], [0.9, 0.55], background) + 0.05 * draw.standard_normal(distance.shape))
    image = np.stack(frames)
    label = np.select([distance < radius, distance < wide * radius], [1, 2], 0)
    return _item("frames", number, (image - image.mean()) / image.std(), label)


def _two_in_one(draw: np.random.Generator, size: tuple[int, ...]) -> tuple[list[Array], Array]:
    """The coordinates of every voxel, and 1 and 2 in two ellipsoids that lie apart along the second axis, else 0."""
    axes = np.meshgrid(*[np.arange(float(side)) for side in size], indexing="ij")
    label = np.zeros(size, np.int64)
    for kind, place in ((1, 0.3), (2, 0.7)):
        middle = [side * (place if axis == 1 else 0.5) + draw.uniform(-0.08, 0.08) * side for axis, side in enumerate(size)]
        radii = [min(size) * draw.uniform(0.22, 0.34) for _ in size]
        apart = sum(((axis - at) / radius) ** 2 for axis, at, radius in zip(axes, middle, radii, strict=True))
        label[apart < 1] = kind
    return axes, label
