"""Tiny crops and networks for tests of plugins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from medssl.contracts import Crops, Draw, Level, NetworkInfo, Views


def make_crops(
    batch: int = 3, size: Sequence[int] = (32, 32, 32), channels: int = 1, seed: int = 0, *, per_volume: int = 1, body: bool = False
) -> Crops:
    """`batch` different crops of `size`, `per_volume` of each volume: smooth blobs and noise, mean about 0, spread about 1, all body.

    True values are 100 * image + 40. Voxels are 1 mm wide and each volume is twice as long as its crop.
    Sample b is the same whatever the batch is, so a batch can be compared with its own beginning.
    """
    dims = len(size)
    images = torch.stack([_image(size, channels, seed * 1000 + number) for number in range(batch)])
    number = torch.arange(batch)
    volume = number // per_volume
    corner = (number[:, None] * torch.ones(dims, dtype=torch.int64)) % torch.tensor(size)
    affine = torch.eye(3, dims + 1).repeat(batch, 1, 1)
    affine[:, :dims, -1] = corner.float()
    affine[:, dims:, -1] = 0
    return Crops(
        images=images,
        channels=tuple(f"channel {channel}" for channel in range(channels)),
        index=number,
        sample=volume + 100,
        patient=volume + 1000,
        group=volume,
        affine=affine,
        extent=torch.tensor([*(2.0 * side for side in size), 0.0][:3]).expand(batch, 3).clone(),
        rescale=torch.tensor([100.0, 40.0]).expand(batch, channels, 2).clone(),
        inside=torch.ones(batch),
        body=torch.ones((batch, 1, *size), dtype=torch.bool) if body else None,
    )


def make_info(dims: int = 3, channels: int = 1, stride: int = 4, *, crop: Sequence[int] | None = None, tokens: bool = False) -> NetworkInfo:
    """What a task may know of a small network with a dense output; with `tokens`, of one whose encoder works on tokens of `crop`."""
    strides = (stride,) * dims
    return NetworkInfo(
        dims,
        channels,
        embedding_width=16,
        feature_width=8,
        strides=strides,
        feature_strides=(1,) * dims,
        levels=() if tokens else (Level(8, (1,) * dims), Level(16, strides)),
        token_grid=tuple(side // stride for side in crop) if tokens and crop is not None else (),
        class_token=tokens,
        crop=tuple(crop) if crop is not None else None,
    )


def _image(size: Sequence[int], channels: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((1, channels, *[max(2, side // 8) for side in size]), generator=generator)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    smooth = torch.nn.functional.interpolate(coarse, size=tuple(size), mode=mode, align_corners=True)[0]
    image = smooth + 0.3 * torch.randn((channels, *size), generator=generator)
    return (image - image.mean()) / image.std()


def select(crops: Crops, rows: Sequence[int]) -> Crops:
    """The samples `rows` of `crops`, with the randomness they have in the whole batch."""
    place = torch.tensor(list(rows))
    chosen: dict[str, Any] = {name: value[place] for name, value in vars(crops).items() if isinstance(value, torch.Tensor)}
    return replace(crops, **chosen)


def make_views(crops: Crops, info: NetworkInfo, count: int = 2, channels: int = 2, seed: int = 0, shown: bool = True) -> Views:
    """`count` views of `crops` with random answers of one dense task ("values") and one pooled task ("logits").

    Embeddings of what a task shows are those of the dense task, and of a task of two parts a crop, asked about one view.
    With `shown`, the first voxels along the last axis are not shown by every view. The teacher has answers of its own.
    """
    student = _random_views(crops, info, count, channels, seed)
    teacher = _random_views(crops, info, count, channels, seed + 1)
    mask = torch.ones((len(crops), 1, *crops.size), dtype=torch.bool)
    mask[..., : crops.size[-1] // 4] = False
    visible = mask if shown else None
    return replace(student, shown=visible, teacher=replace(teacher, shown=visible), progress=0.5)


def _random_views(crops: Crops, info: NetworkInfo, count: int, channels: int, seed: int) -> Views:
    def draw(part: str, *shape: int) -> tuple[torch.Tensor, ...]:
        return tuple(Draw(seed, 0, crops.index, f"{part}/{view}").normal(*shape) for view in range(count))

    grid = tuple(max(1, side // 2) for side in crops.size)
    dims = crops.spatial_dims
    return Views(
        crops=crops,
        answers={"dense": draw("dense", channels, *crops.size), "pooled": draw("pooled", 5)},
        kinds={"dense": "values", "pooled": "logits"},
        embeddings=draw("embedding", info.embedding_width),
        feature_maps=draw("feature map", info.feature_width, *grid),
        affines=torch.eye(dims, dims + 1).expand(count, len(crops), dims, dims + 1).clone(),
        task_embeddings={"dense": draw("task embedding", info.embedding_width), "parts": draw("parts", 2, info.embedding_width)[:1]},
    )
