"""Neighbouring slices of a volume as the channels of a 2D crop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medssl.errors import ConfigError
from medssl.train import pretrain
from medssl.volumes import Channel, CropLoader, CropOptions, DataOptions, Incoming, Preparation, Store, crop_at, write_store

RAW = Preparation(other={"kind": "raw"})


def make(folder: Path, *, labels: bool = False, arrays: int = 1, depth: int = 12) -> Store:
    values = np.random.default_rng(0).integers(0, 1000, (arrays, 30, 28, depth)).astype(np.int16)
    channels = tuple(Channel(f"c{number}", "MR", number) for number in range(arrays))
    classes = (lambda: (values[0] > 500).astype(np.uint8)) if labels else None
    item = Incoming("v", "p", "s", "MR", lambda: (values, np.diag([1.0, 1, 3, 1])), channels, classes)
    write_store([item], folder, preparation=RAW)
    return Store(folder)


def test_channels_are_neighbouring_slices(tmp_path: Path) -> None:
    store = make(tmp_path / "s", labels=True)
    whole, classes = store.read_whole(0)[0], store.read_labels(0, (0, 0, 0), store.volume(0).shape)[0]
    options = DataOptions(store="", size=(16, 12), slab=3, batch=6)
    with CropLoader(store, options, 1, body=True) as loader:
        _, _, crops = next(loader)
    assert crops.channels == ("slice 0", "slice 1", "slice 2") and crops.axis == "slice"
    assert crops.images.shape == (6, 3, 16, 12) and crops.rescale.shape == (6, 3, 2) and crops.body is not None
    for number in range(6):
        crop = crop_at(store, options, 1, number)
        x, y, z = crop.place.corner
        expected = whole[x : x + 16, y : y + 12, z : z + 3].transpose(2, 0, 1)
        assert np.array_equal(crops.images[number], expected) and np.array_equal(crop.image, expected)
        # What is said of the crop is said of its middle slice.
        assert crops.affine[number, 2, -1] == 3 * (z + 1)
        assert crops.labels is not None and crop.labels is not None
        middle = classes[x : x + 16, y : y + 12, z + 1]
        assert np.array_equal(crops.labels[number, 0], middle) and np.array_equal(crop.labels[0], middle)


def test_the_middle_slice_is_that_of_crops_of_one(tmp_path: Path) -> None:
    """A buffer is given out again only when nothing refers to it."""
    store = make(tmp_path / "s", labels=True)
    with CropLoader(store, DataOptions(store="", size=(16, 12), slab=5, batch=2), 1, body=True) as loader:
        kept = [next(loader)[2] for _ in range(4)]
        copies = [(crops.images.clone(), crops.labels.clone()) for crops in kept if crops.labels is not None]
        for _ in range(4):
            next(loader)
    for crops, (images, labels) in zip(kept, copies, strict=True):
        assert bool((crops.images == images).all()) and crops.labels is not None and bool((crops.labels == labels).all())


def test_a_volume_of_fewer_slices_is_padded(tmp_path: Path) -> None:
    store = make(tmp_path / "s", depth=2)
    image = crop_at(store, CropOptions(size=(8, 8), slab=5), 0, 0).image
    outside = [number for number in range(5) if len(np.unique(image[number])) == 1]
    assert len(outside) == 3


@pytest.mark.parametrize(("arrays", "size", "message"), [(2, (8, 8), "have 2 channels already"), (1, (8, 8, 8), "two sides")])
def test_what_cannot_be_a_slab_is_told(arrays: int, size: tuple[int, ...], message: str, tmp_path: Path) -> None:
    store = make(tmp_path / "s", arrays=arrays)
    with pytest.raises(ConfigError, match=message):
        CropLoader(store, DataOptions(store="", size=size, slab=3, batch=1), 0)


def test_a_network_is_pretrained_on_slabs(tmp_path: Path) -> None:
    make(tmp_path / "s")
    network = {"name": "UNet", "spatial_dims": 2, "in_channels": 3, "options": {"channels": [4, 8], "strides": [2]}}
    config = {
        "network": network,
        "data": {"store": str(tmp_path / "s"), "size": [16, 16], "slab": 3, "batch": 2},
        "tasks": [{"name": "inpainting"}],
        "train": {"steps": 2, "checkpoint_every": 2},
    }
    pretrain(config=config, out=tmp_path / "run", verbose=False)
    with pytest.raises(ConfigError, match=r"slice 0, slice 1, slice 2.*in_channels: 3"):
        pretrain(config={**config, "network": {**network, "in_channels": 1}}, out=tmp_path / "other", verbose=False)
