"""Stores and pretrainings from what a MONAI script has: datalists, transforms, datasets."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, Dataset, MetaTensor
from monai.networks.nets import SegResNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandFlipd,
    ScaleIntensityd,
)
from torch.utils.data import Subset

import medssl
from medssl.contracts import Crops
from medssl.errors import DataError, MedsslError, UsageError
from medssl.monai import PrepareImaged, Store, store_items
from medssl.testing.dicom import made_affine, made_volume, write_series

KEYS = ["image", "label"]
LOAD = Compose([LoadImaged(KEYS), EnsureChannelFirstd(KEYS)])
SMALL = partial(SegResNet, spatial_dims=3, in_channels=1, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))
TASK: dict[str, Any] = {"name": "inpainting", "block": 4}


@pytest.fixture(scope="module")
def files(ct: Path) -> list[dict[str, Any]]:
    images = sorted((ct / "images").glob("*.nii.gz"))
    return [{"image": str(path), "label": ct / "labels" / path.name, "patient": f"p{n // 2}"} for n, path in enumerate(images)]


def test_a_datalist_of_paths_is_prepared_as_any_store(files: list[dict[str, Any]], tmp_path: Path) -> None:
    done = store_items(files, tmp_path / "store", modality="CT")
    store = Store(tmp_path / "store")
    assert done.volumes == len(store) == 4
    assert store.preparation.rule("CT").kind == "window"
    assert all(item["image"].min() == -1 and set(item) == set(KEYS) for item in store)
    assert len(set(store.patients.tolist())) == 2
    kept = {path.read_bytes() for path in (tmp_path / "store" / "table").iterdir()}
    assert not any(b"case" in content or b"p0" in content for content in kept)


def test_what_transforms_make_is_what_a_network_sees(files: list[dict[str, Any]], tmp_path: Path) -> None:
    pipeline = Compose([LOAD, Orientationd(KEYS, axcodes="LPS"), ScaleIntensityd("image")])
    store_items(files, tmp_path / "listed", transform=pipeline)
    store_items(Dataset(files, pipeline), tmp_path / "dataset")
    store_items(CacheDataset(files, pipeline, progress=False), tmp_path / "cached")
    wanted = {}
    for item in Dataset(files, Compose([LOAD, ScaleIntensityd("image")])):
        wanted[item["image"].numpy().tobytes()] = item
    for name in ("listed", "dataset", "cached"):
        store = Store(tmp_path / name)
        assert len(store) == 4 and len(set(store.patients.tolist())) == 2
        for item in store:
            same = wanted[item["image"].numpy().tobytes()]  # back on RAS, with the values of the transforms
            torch.testing.assert_close(item["image"].affine, same["image"].affine)
            assert torch.equal(item["label"].as_tensor(), same["label"].as_tensor())


def test_what_was_made_is_kept_until_files_or_transforms_change(files: list[dict[str, Any]], tmp_path: Path) -> None:
    def made(top: float) -> int:
        return store_items(Dataset(files, Compose([LOAD, ScaleIntensityd("image", maxv=top)])), tmp_path / "store").added

    assert [made(1.0), made(1.0), made(2.0)] == [4, 0, 4]
    assert max(float(item["image"].max()) for item in Store(tmp_path / "store")) == 2


class Bare(torch.utils.data.Dataset[Any]):
    """A dataset of somebody's own: two channels in memory."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> dict[str, Any]:
        stream = torch.Generator().manual_seed(number)
        image = torch.randn(2, 9, 8, 7, generator=stream)
        return {"image": MetaTensor(image, affine=torch.diag(torch.tensor([1.0, 2, 3, 1]))), "subject": number // 2}


def test_any_dataset_of_dictionaries(tmp_path: Path) -> None:
    store_items(Bare(), tmp_path / "own")
    store = Store(tmp_path / "own")
    assert len(store.channels) == 2 and len(set(store.patients.tolist())) == 2
    assert store.volume(0).spacing == (1, 2, 3)
    assert store_items(Subset(Bare(), [0, 2]), tmp_path / "subset").volumes == 2
    write_series(tmp_path / "series", made_volume(), made_affine())
    store_items([{"image": tmp_path / "series"}], tmp_path / "dicom")
    assert Store(tmp_path / "dicom").volume(0).modality == "CT"


def test_refusals_are_one_message(files: list[dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "store"
    with pytest.raises(UsageError, match=r"draw at random \(RandFlipd\)"):
        store_items(files, out, transform=Compose([LOAD, Compose([RandFlipd("image")])]))
    with pytest.raises(UsageError, match="holds no item"):
        store_items([], out)
    with pytest.raises(DataError, match="channels first"):
        store_items([{"image": np.zeros((96, 96, 9))}], tmp_path / "a")
    with pytest.raises(DataError, match="item 0 has no 'image', only img"):
        store_items([{"img": torch.zeros(1, 9, 9, 9)}], tmp_path / "b")
    with pytest.raises(DataError, match="no map of classes"):
        store_items([{"image": torch.randn(1, 9, 9, 9), "label": torch.rand(1, 9, 9, 9)}], tmp_path / "c")
    with pytest.warns(UserWarning, match="Normalise them in the transforms"):
        store_items(files, tmp_path / "d", transform=LOAD)
    lost = [*files, {"image": "/data/Mueller.nii.gz", "label": "/data/Mueller.nii.gz"}]
    done = store_items(lost, tmp_path / "e", transform=Compose([LOAD, NormalizeIntensityd("image")]))
    assert done.volumes == 4 and "Mueller" not in done.left_out["item-000004"]
    assert not (out / "store.json").exists()


class Seen:
    """A handler that keeps what the run was shown."""

    def __init__(self) -> None:
        self.crops: list[Crops] = []

    def attach(self, engine: Any) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_STARTED, lambda: self.crops.extend(engine.state.batch))


def pretrained(data: Any, out: Path, **keys: Any) -> tuple[Any, Seen]:
    seen = Seen()
    options: dict[str, Any] = {"steps": 2, "size": [8, 8, 8], "batch": 2, "verbose": False, **keys}
    return medssl.pretrain(SMALL, data, [TASK], out=out, handlers=[seen], **options), seen


def test_pretraining_on_datasets(files: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("medssl_inpainting")
    pipeline = Compose([LOAD, NormalizeIntensityd("image")])
    run, seen = pretrained(Dataset(files, pipeline), tmp_path / "one")
    _, again = pretrained(CacheDataset(files, pipeline, progress=False), tmp_path / "two")
    for ours, theirs in zip(seen.crops, again.crops, strict=True):
        assert torch.equal(ours.images, theirs.images) and torch.equal(ours.sample, theirs.sample)
        assert torch.equal(ours.patient, theirs.patient)
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("one", "two")]
    assert rows[0] == rows[1] and rows[0]
    prepare = PrepareImaged("image", run)
    item = Dataset(files, pipeline)[0]
    assert torch.equal(prepare(item)["image"].as_tensor(), item["image"].as_tensor())
    longer, _ = pretrained(Dataset(files, pipeline), tmp_path / "one", resume=True, steps=2)
    assert longer.state.step == 2
    with pytest.raises(UsageError, match="holds items of other data"):
        pretrained(Dataset(files[:2], pipeline), tmp_path / "one", resume=True)
    with pytest.warns(UserWarning, match="item-000004 is left out"):
        pretrained(Dataset([*files, {"image": "none.nii.gz", "label": "none.nii.gz"}], pipeline), tmp_path / "three")


def test_pretraining_in_2d_on_a_datalist(files: list[dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("medssl_inpainting")
    flat = partial(SMALL, spatial_dims=2)
    run = medssl.pretrain(flat, files, [TASK], out=tmp_path / "run", size=[16, 16], batch=2, steps=1, verbose=False)
    assert run.state.step == 1
    assert json.loads((run.folder / "checkpoints" / "step-00000001" / "state.json").read_text())["size"] == [16, 16]


def test_images_in_2d_are_stored_and_pretrained_on(tmp_path: Path) -> None:
    pytest.importorskip("medssl_inpainting")
    items = [{"image": torch.randn(1, 24, 20, generator=torch.Generator().manual_seed(n))} for n in range(4)]
    assert store_items(items, tmp_path / "store").volumes == 4
    store = Store(tmp_path / "store")
    assert store.spatial_dims == 2
    stored = {item["image"].numpy().tobytes() for item in store}
    assert stored == {item["image"].numpy().tobytes() for item in items}
    run = medssl.pretrain(
        partial(SMALL, spatial_dims=2), items, [TASK], out=tmp_path / "run", size=[16, 16], batch=2, steps=1, verbose=False
    )
    assert run.state.step == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": ["no-such-task"]}, "no-such-task"),
        ({"size": [16, 16]}, "data.size has 2 sides"),
        ({"steps": 0}, "train.steps"),
    ],
)
def test_items_are_stored_once_all_else_is_known_to_be_right(
    wrong: dict[str, Any], message: str, files: list[dict[str, Any]], tmp_path: Path
) -> None:
    pytest.importorskip("medssl_inpainting")
    with pytest.raises(MedsslError, match=message):
        medssl.pretrain(SMALL, files, out=tmp_path / "run", **({"tasks": [TASK], "size": [16, 16, 16], "batch": 2, "steps": 1} | wrong))
    assert not (tmp_path / "run").exists()
