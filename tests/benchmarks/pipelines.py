"""What three published pretrainings do to a sample, from the volume on, beside their own pipelines on the same volume.

The peers' steps are written from their descriptions: MONAI's tutorial "self-supervised pretraining", nnssl's masked autoencoder and
Models Genesis. Each peer crops a volume that lies in memory, ready to be cropped, so that only the steps are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from medssl_inpainting.restoration import Restoration
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.measure import Spent, alternately, call_cost, whole_cost
from benchmarks.report import Row
from medssl.augment import Look, drop_boxes_, make_view, shuffle_boxes_
from medssl.contracts import Crops, Draw, NetworkInfo
from medssl.learn.ops import block_mask
from medssl.volumes import CropLoader, DataOptions, Store

SIZE = (96, 96, 96)
BATCH = 4
BATCHES = 40
"""Of ours; a loader reads a few batches ahead, which should not count for much."""
SAMPLES = 60
"""Of the peers; where a step comes by chance, as many as that mean something."""
MAE = Look(flip=0.5, rotate=30, rotate_about="any", scale=1.4, shift=0, contrast=0, gamma=1, noise=0, blur=0, chance=0.2)
Array = NDArray[Any]


def pipeline_rows(volume: Array, store: Store, repeat: int) -> list[Row]:
    """CPU ms a delivered sample."""
    whole = (np.clip(volume, -1000, 1000) / 1000).astype(np.float32)
    steps: list[tuple[str, Callable[[Crops, int], Any], str, Callable[[Array], Any] | None, float]] = [
        ("MONAI's tutorial: two corrupted views and the target", _two_views, "MONAI transforms on a cached volume", _tutorial(), 1 / 4),
        ("nnssl's MAE: rotation and scale in one of five, mirror, mask", _masked, "batchgenerators", _nnssl(), 1 / 10),
        ("Models Genesis: curve, local shuffle, in- and out-painting", _restored, "its steps a sample", _genesis(), 1 / 17),
    ]
    rows = []
    for what, ours, name, peer, bar in steps:
        if peer is None:
            continue
        found = alternately(
            {
                "ours": lambda ours=ours: call_cost(lambda: _loop(store, ours)),
                "peer": lambda peer=peer: call_cost(lambda: [peer(whole) for _ in range(SAMPLES)]),
            },
            repeat,
        )
        mine, theirs = 1000 * found["ours"].cpu / (BATCHES * BATCH), 1000 * found["peer"].cpu / SAMPLES
        rows.append(Row(what, mine, theirs, name, "CPU ms", bar))
    return [*rows, *tutorial_rows(volume, store, repeat)]


def tutorial_rows(volume: Array, store: Store, repeat: int) -> list[Row]:
    """MONAI's tutorial as it is written, from a NIfTI file on: with what comes before the first random step cached, and without."""
    from monai.data import CacheDataset, DataLoader, Dataset
    from nibabel.loadsave import save
    from nibabel.nifti1 import Nifti1Image

    with TemporaryDirectory(prefix="medssl-tutorial-") as folder:
        file = Path(folder) / "ct.nii.gz"
        save(Nifti1Image(volume, np.diag([0.7, 0.7, 1.0, 1.0])), file)
        items = [{"image": str(file)}] * (SAMPLES // 2)
        # Of one volume only one copy is cached, so that making it takes no longer than it must.
        cached = CacheDataset(items, _as_written(), hash_as_key=True, progress=False)
        plain = Dataset(items[:1], _as_written())

        def each(dataset: Any, workers: int) -> Callable[[], Spent]:
            loader = DataLoader(dataset, batch_size=2, shuffle=True, num_workers=workers)
            return lambda: whole_cost(lambda: [None for _ in loader])

        found = alternately(
            {"ours": lambda: call_cost(lambda: _loop(store, _two_views)), "cached": each(cached, 2), "plain": each(plain, 0)},
            min(repeat, 3),
        )
    ours, with_cache, without = (
        1000 * found[name].cpu / samples for name, samples in (("ours", BATCHES * BATCH), ("cached", 2 * len(items)), ("plain", 2))
    )
    return [
        Row("MONAI's tutorial as written", ours, with_cache, "CacheDataset and DataLoader with 2 workers", "CPU ms", 1 / 12),
        Row("MONAI's tutorial as written", ours, without, "Dataset and DataLoader, nothing cached", "CPU ms", 1 / 200),
    ]


def _loop(store: Store, step: Callable[[Crops, int], Any]) -> None:
    options = DataOptions(store=str(store.folder), size=SIZE, batch=BATCH, threads=2)
    with CropLoader(store, options, 0) as loader, torch.no_grad():
        for number, _, crops in islice(loader, BATCHES):
            step(crops, number)


def _two_views(crops: Crops, step: int) -> tuple[Tensor, Tensor, Tensor]:
    first, second = (_corrupted(crops.images, Draw(0, step, crops.index, f"view {view}")) for view in range(2))
    return first, second, crops.images


def _corrupted(images: Tensor, draw: Draw) -> Tensor:
    """Six boxes hidden, voxels of ten boxes of 8^3 shuffled."""
    size = draw.integers(5, 33, 6, 3)
    hidden = drop_boxes_(images.clone(), (draw.uniform(6, 3) * (96 - size)).round(), size)
    return shuffle_boxes_(hidden, draw.integers(0, 89, 10, 3), 8, draw.permutation(512))


def _masked(crops: Crops, step: int) -> Tensor:
    draw = Draw(0, step, crops.index, "mae")
    images, _ = make_view(crops.images, MAE, draw.fork("view"), crops.spacing)
    return torch.where(block_mask(draw, SIZE, 16, 0.75, 0.75), 0.0, images)


def _restored(crops: Crops, step: int) -> Any:
    return _RESTORATION.make(crops, Draw(0, step, crops.index, "genesis"))


_RESTORATION = Restoration(Restoration.Options(), NetworkInfo(3, 1, 1, 1, (1,), None))


def _corner(volume: Array, random: np.random.Generator) -> tuple[slice, ...]:
    first = [int(random.integers(0, side - want + 1)) for side, want in zip(volume.shape, SIZE, strict=True)]
    return tuple(slice(a, a + side) for a, side in zip(first, SIZE, strict=True))


def _tutorial() -> Callable[[Array], Any]:
    from monai.transforms import Compose, RandSpatialCropd

    steps = Compose([RandSpatialCropd(keys=["image"], roi_size=SIZE, random_size=False), *_two_damaged()])
    return lambda volume: steps({"image": torch.from_numpy(volume)[None]})


def _two_damaged() -> list[Any]:
    from monai.transforms import CopyItemsd, OneOf, RandCoarseDropoutd, RandCoarseShuffled

    def damaged(key: str) -> list[Any]:
        inside = RandCoarseDropoutd(keys=[key], prob=1.0, holes=6, spatial_size=5, dropout_holes=True, max_spatial_size=32)
        outside = RandCoarseDropoutd(keys=[key], prob=1.0, holes=6, spatial_size=20, dropout_holes=False, max_spatial_size=64)
        return [OneOf([inside, outside]), RandCoarseShuffled(keys=[key], prob=0.8, holes=10, spatial_size=8)]

    return [CopyItemsd(keys=["image"], times=2, names=["gt_image", "image_2"]), *damaged("image"), *damaged("image_2")]


def _as_written() -> Any:
    from monai import transforms

    keys = ["image"]
    return transforms.Compose(
        [
            transforms.LoadImaged(keys),
            transforms.EnsureChannelFirstd(keys),
            transforms.Spacingd(keys, pixdim=(2.0, 2.0, 2.0), mode="bilinear"),
            transforms.ScaleIntensityRanged(keys, a_min=-57, a_max=164, b_min=0.0, b_max=1.0, clip=True),
            transforms.CropForegroundd(keys, source_key="image", allow_smaller=True),
            transforms.SpatialPadd(keys, spatial_size=SIZE),
            transforms.RandSpatialCropSamplesd(keys, roi_size=SIZE, random_size=False, num_samples=2),
            *_two_damaged(),
        ]
    )


def _nnssl() -> Callable[[Array], Any] | None:
    if find_spec("batchgenerators") is None:
        return None
    from batchgenerators.transforms.spatial_transforms import MirrorTransform, SpatialTransform

    random, angle = np.random.default_rng(0), float(np.radians(30))
    spatial = SpatialTransform(
        SIZE,
        patch_center_dist_from_border=None,
        do_elastic_deform=False,
        do_rotation=True,
        angle_x=(-angle, angle),
        angle_y=(-angle, angle),
        angle_z=(-angle, angle),
        do_scale=True,
        scale=(0.7, 1.4),
        border_mode_data="constant",
        order_data=3,
        random_crop=False,
        p_rot_per_sample=0.2,
        p_scale_per_sample=0.2,
    )
    mirror = MirrorTransform((0, 1, 2))

    def one(volume: Array) -> Array:
        # Its loader cuts out a larger patch, so that a rotation finds what it needs.
        larger = tuple(min(side, 136) for side in volume.shape)
        first = [int(random.integers(0, side - want + 1)) for side, want in zip(volume.shape, larger, strict=True)]
        patch = volume[tuple(slice(a, a + side) for a, side in zip(first, larger, strict=True))][None, None].copy()
        image: Array = mirror(**spatial(data=patch))["data"]
        mask = np.kron(random.random((6, 6, 6)) < 0.75, np.ones((16, 16, 16), bool))
        return np.where(mask, np.float32(0), image)

    return one


def _genesis() -> Callable[[Array], Array]:
    random = np.random.default_rng(0)

    def one(volume: Array) -> Array:
        image = (volume[_corner(volume, random)] + 1) / 2
        if random.random() < 0.9:
            image = bezier(image, random)
        if random.random() < 0.5:
            image = local_shuffle(image, random)
        if random.random() < 0.9:
            image = painted(image, random, inner=random.random() < 0.2)
        return image

    return one


def bezier(image: Array, random: np.random.Generator) -> Array:
    t = np.linspace(0, 1, 100_000)
    x, y = (3 * a * t * (1 - t) ** 2 + 3 * b * t**2 * (1 - t) + t**3 for a, b in random.random((2, 2)))
    return np.interp(image, np.sort(x), np.sort(y) if random.random() < 0.5 else y)


def local_shuffle(image: Array, random: np.random.Generator) -> Array:
    changed = image.copy()
    for _ in range(10_000):
        sides = [int(random.integers(1, side // 10 + 1)) for side in SIZE]
        box = tuple(slice(a := int(random.integers(0, side - n)), a + n) for side, n in zip(SIZE, sides, strict=True))
        window = image[box].flatten()
        random.shuffle(window)
        changed[box] = window.reshape(sides)
    return changed


def painted(image: Array, random: np.random.Generator, inner: bool) -> Array:
    noise = random.random(SIZE)
    changed = image.copy() if inner else noise.copy()
    for _ in range(5):
        low, high = (6, 3) if inner else (7 / 3, 7 / 4)
        sides = [int(random.integers(int(side / low), int(side / high) + 1)) for side in SIZE]
        box = tuple(slice(a := int(random.integers(3, side - n - 3)), a + n) for side, n in zip(SIZE, sides, strict=True))
        changed[box] = random.random() if inner else image[box]
        if random.random() > 0.95:
            break
    return changed
