"""A store as a sequence of MONAI items: what a network sees of each volume, where it lies, in every dataset and loader."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, PersistentDataset, ThreadDataLoader
from monai.transforms import CenterSpatialCropd, Compose, Orientationd, RandSpatialCropd
from torch.utils.data import DataLoader as TorchDataLoader

from medssl.volumes import Channel, CropLoader, DataOptions, Incoming, Store, write_store

Made = Callable[..., Any]
Write = Callable[..., list[Incoming]]


def test_a_store_is_a_sequence(store_folder: Path) -> None:
    store = Store(store_folder)
    items = list(store)
    assert len(items) == len(store) == 5
    for number in range(-5, 5):
        assert torch.equal(store[number]["image"], items[number]["image"])
    assert torch.equal(store[np.int64(1)]["image"], items[1]["image"])
    with pytest.raises(IndexError, match="holds 5 volumes, and there is no number 5"):
        store[5]
    with pytest.raises(IndexError):
        store[-6]
    some = store[1:3]
    assert [item["image"].meta["volume"] for item in some] == [item["image"].meta["volume"] for item in items[1:3]]  # type: ignore[attr-defined]
    assert [store[::-1][place]["image"].meta["volume"] for place in range(5)] == [one["image"].meta["volume"] for one in items[::-1]]
    assert len(store[[0, 4]]) == 2
    assert store.volume(2).volume == items[2]["image"].meta["volume"]


def test_an_item_is_what_the_network_sees_and_lies_where_it_lay(tmp_path: Path, make_body: Made) -> None:
    values = make_body(0, (12, 14, 10)).astype(np.float32)
    turned = np.array([[0.0, -2.0, 0.1, 30.0], [1.5, 0.0, 0.0, -20.0], [0.0, 0.2, -3.0, 7.0], [0, 0, 0, 1]])
    write_store([Incoming("one", "p", "s", "MR", lambda: (values, turned))], tmp_path / "store")
    store = Store(tmp_path / "store")
    image = store[0]["image"]
    assert isinstance(image, MetaTensor) and image.dtype == torch.float32
    line = store.volume(0).lines(store.preparation)[0]
    for voxel in ((2, 3, 4), (11, 0, 9), (6, 7, 5)):
        there = np.linalg.solve(image.affine.numpy(), turned @ np.array([*voxel, 1]))[:3]
        found = image[(0, *np.rint(there).astype(int))]
        assert float(found) == pytest.approx(line.value(float(values[voxel])), abs=1e-4)
    assert "".join(image.meta["space"]) == "RAS"
    assert image.meta["modality"] == "MR" and image.meta["channels"] == ["MR"]
    in_ras = Orientationd("image", axcodes="RAS")({"image": image})["image"]
    torch.testing.assert_close(in_ras.as_tensor(), image.as_tensor())
    with CropLoader(store, DataOptions(store="", size=image.shape[1:], batch=1, foreground=0), 0) as loader:
        torch.testing.assert_close(next(loader)[2].images[0], image.as_tensor())


def test_labels_and_channels(tmp_path: Path, make_body: Made) -> None:
    values = np.stack([make_body(0, (8, 9, 10)), make_body(1, (8, 9, 10))])
    classes = (values[0] > 250).astype(np.uint8)
    channels = (Channel("T1", "MR", 0), Channel("T2", "MR", 1))
    labelled = Incoming("one", "p", "s", "MR", lambda: (values, np.eye(4)), channels, lambda: classes)
    write_store([labelled], tmp_path / "store")
    item = Store(tmp_path / "store")[0]
    assert sorted(item) == ["image", "label"]
    assert item["image"].shape == (2, 8, 9, 10) and item["image"].meta["channels"] == ["T1", "T2"]
    assert item["label"].shape == (1, 8, 9, 10)
    np.testing.assert_array_equal(item["label"][0].numpy(), classes)
    torch.testing.assert_close(item["label"].affine, item["image"].affine)


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("loader", [DataLoader, TorchDataLoader])
def test_workers_of_loaders_read_a_store(store_folder: Path, context: str, loader: type[Any]) -> None:
    store = Store(store_folder)
    wanted = {item["image"].meta["volume"]: item["image"] for item in store}  # opened before the workers begin
    extra = {"collate_fn": _first} if loader is TorchDataLoader else {}
    for _ in range(2):
        batches = list(loader(store, batch_size=1, num_workers=2, multiprocessing_context=context, **extra))
        assert len(batches) == 5
        for batch in batches:
            image = batch["image"] if loader is TorchDataLoader else batch["image"][0]
            name = image.meta["volume"]
            assert torch.equal(image.as_tensor(), wanted[name].as_tensor())
            torch.testing.assert_close(image.affine, wanted[name].affine)


def _first(items: list[Any]) -> Any:
    return items[0]


def test_datasets_with_transforms_stand_on_a_store(store_folder: Path, tmp_path: Path) -> None:
    store = Store(store_folder)
    crop = Compose([CenterSpatialCropd("image", [16, 16, 16]), RandSpatialCropd("image", [8, 8, 8], random_size=False)])
    for dataset in (
        Dataset(store, crop),
        CacheDataset(store, crop, progress=False),
        PersistentDataset(store, crop, tmp_path / "cache", hash_func=_by_name),
    ):
        batches = list(DataLoader(dataset, batch_size=5, num_workers=0))
        assert [batch["image"].shape for batch in batches] == [(5, 1, 8, 8, 8)]
    threaded = list(ThreadDataLoader(Dataset(store, crop), batch_size=1, num_workers=2, use_thread_workers=True))
    assert len(threaded) == 5
    again = pickle.loads(pickle.dumps(store))
    assert torch.equal(again[3]["image"], store[3]["image"])


def _by_name(item: dict[str, Any]) -> bytes:
    return str(item["image"].meta["volume"]).encode()
