"""Where the regions come from: around random seeds, without any class."""

from __future__ import annotations

import torch
from torch import Tensor

from medssl.augment import blur
from medssl.contracts import Crops, Draw
from medssl.errors import ConfigError, DataError
from medssl.learn.ops import standardise

TRIES = 16
"""Places that are drawn for each seed; the first that will do is taken."""


def seeds(eligible: Tensor, count: int, draw: Draw) -> Tensor:
    """(B, K, D) voxels drawn at random, of `eligible` (B, 1, *size) bool wherever one of a few tries is."""
    size = eligible.shape[2:]
    sides = torch.tensor(size, device=eligible.device)
    places = (draw.uniform(count, TRIES, len(size)) * sides).long()
    first = _at(eligible, places.flatten(1, 2)).view(-1, count, TRIES).float().argmax(dim=2)
    return places.gather(2, first[:, :, None, None].expand(-1, -1, 1, len(size))).squeeze(2)


def near_and_alike(images: Tensor, count: int, radius: tuple[float, float], likeness: tuple[float, float], draw: Draw) -> Tensor:
    """(B, K, *size) bool: within a random number of voxels of a seed, and within a random share of the crop's spread of it.

    Seeds lie in what is brighter than the darkest tenth of the crop's range: air is no region.
    """
    smooth = blur(standardise(images), images.new_full((len(images),), 1.2))
    dims = smooth.dim() - 2
    low, high = smooth.amin(dim=(*range(1, dims + 2),), keepdim=True), smooth.amax(dim=(*range(1, dims + 2),), keepdim=True)
    bright = (smooth > low + 0.1 * (high - low)).any(dim=1, keepdim=True)
    seed = seeds(bright, count, draw.fork("seeds"))
    far = draw.uniform(count, low=radius[0], high=radius[1])
    unlike = draw.uniform(count, low=likeness[0], high=likeness[1])
    found = _within(seed, far, smooth.shape[2:])
    for channel in smooth.unbind(dim=1):
        value = _at(channel.unsqueeze(1), seed)
        found &= (channel.unsqueeze(1) - value.view(*value.shape, *[1] * dims)).abs() < unlike.view(*unlike.shape, *[1] * dims)
    return found


def of_label_maps(maps: Tensor, count: int, draw: Draw) -> Tensor:
    """(B, K, *size) bool: each the set of voxels with one of the values of `maps` (B, 1, *size) int64; 0 is no region."""
    value = _at(maps, seeds(maps > 0, count, draw.fork("seeds")))
    return (maps == value.view(*value.shape, *[1] * (maps.dim() - 2))) & (maps > 0)


def supervoxels(images: Tensor, voxels: float) -> Tensor:
    """(B, 1, *size) int64 label maps from 1: pieces of about `voxels` voxels by SLIC, on the CPU (Achanta et al., TPAMI 2012)."""
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise ConfigError(
            "regions: supervoxels need scikit-image, which is not installed. pip install 'medssl-regions[supervoxels]', "
            "or take regions: near-and-alike."
        ) from error
    pieces = max(2, round(images[0, 0].numel() / voxels))
    maps = [
        torch.from_numpy(slic(image, n_segments=pieces, compactness=0.1, channel_axis=0, start_label=1))
        for image in standardise(images).cpu().numpy()
    ]
    return torch.stack(maps).unsqueeze(1).long().to(images.device)


def masks_of(crops: Crops, channel: str) -> Tensor:
    """(B, 1, *size) int64 label maps that lie in the store as a channel, in the values that they had before preparation."""
    if channel not in crops.channels:
        raise DataError(f"region-matching: no channel is called '{channel}' (masks); there are {', '.join(crops.channels)}.")
    place = crops.channels.index(channel)
    scale, shift = (value.view(-1, 1, *[1] * crops.spatial_dims) for value in crops.rescale[:, place].unbind(dim=1))
    return (crops.images[:, place : place + 1] * scale + shift).round().long()


def _within(seed: Tensor, radius: Tensor, size: torch.Size) -> Tensor:
    """(B, K, *size) bool: voxels nearer than `radius` (B, K) to `seed` (B, K, D)."""
    dims = len(size)
    total = torch.zeros((), device=seed.device)
    for axis, side in enumerate(size):
        steps = torch.arange(side, device=seed.device)
        away = (steps - seed[..., axis, None]).float().square()
        total = total + away.view(*away.shape[:2], *[side if other == axis else 1 for other in range(dims)])
    return total < radius.square().view(*radius.shape, *[1] * dims)


def _at(values: Tensor, voxels: Tensor) -> Tensor:
    """(B, P): the one channel of `values` (B, 1, *size) at `voxels` (B, P, D)."""
    place = torch.zeros_like(voxels[..., 0])
    for axis, side in enumerate(values.shape[2:]):
        place = place * side + voxels[..., axis]
    return values.flatten(1).gather(1, place)
