"""Tiny crops and networks for tests of plugins."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medssl.contracts import Crops, NetworkInfo


def make_crops(batch: int = 3, size: Sequence[int] = (32, 32, 32), channels: int = 1, seed: int = 0) -> Crops:
    """`batch` different crops of `size`: smooth blobs and noise, mean about 0, spread about 1, all inside the body.

    Sample b is the same whatever the batch is, so a batch can be compared with its own beginning.
    """
    dims = len(size)
    images = torch.stack([_image(size, channels, seed * 1000 + number) for number in range(batch)])
    number = torch.arange(batch)
    volume = torch.tensor([2 * side for side in size])
    return Crops(
        images=images,
        channels=tuple(f"channel {channel}" for channel in range(channels)),
        index=number,
        sample=number + 100,
        patient=number + 1000,
        group=number,
        corner=(number[:, None] * torch.ones(dims, dtype=torch.int64)) % torch.tensor(size),
        spacing=torch.ones(batch, dims),
        volume_size=volume.expand(batch, dims).clone(),
        inside=torch.ones(batch),
    )


def make_info(dims: int = 3, channels: int = 1, stride: int = 4) -> NetworkInfo:
    """What a task may know of a small network with a dense output."""
    return NetworkInfo(dims, channels, embedding_width=16, feature_width=8, strides=(stride,) * dims)


def _image(size: Sequence[int], channels: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((1, channels, *[max(2, side // 8) for side in size]), generator=generator)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    smooth = torch.nn.functional.interpolate(coarse, size=tuple(size), mode=mode, align_corners=True)[0]
    image = smooth + 0.3 * torch.randn((channels, *size), generator=generator)
    return (image - image.mean()) / image.std()
