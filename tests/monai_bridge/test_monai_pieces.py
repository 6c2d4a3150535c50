"""MONAI's datasets and transforms that keep state of their own, and DDP, with medssl's pieces among them as a user puts them there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from monai.data import DataLoader, Dataset, MetaTensor, SmartCacheDataset, decollate_batch
from monai.networks.nets import SegResNet
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    Flipd,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandAffined,
    RandSpatialCropd,
    RandSpatialCropSamplesd,
    Spacingd,
)
from torch.nn.parallel import DistributedDataParallel

import medssl
from medssl.monai import PrepareImaged, PretextLoss, PretextNetwork, PretextTaskd, prepare_pretext_batch
from medssl.run import Run

pytest.importorskip("medssl_inpainting")
ASK = PretextTaskd("image", task="inpainting", block=4)
CROP = RandSpatialCropd("image", [8, 8, 8], random_size=False)


@pytest.fixture
def files(ct: Path) -> list[dict[str, str]]:
    return [{"image": str(path)} for path in sorted((ct / "images").glob("*.nii.gz"))]


def loading(*further: Any, **keys: Any) -> Compose:
    return Compose([LoadImaged("image"), EnsureChannelFirstd("image"), *further], **keys)


def masks(items: Any) -> set[tuple[float, ...]]:
    return {tuple(item["weight"].flatten().tolist()) for item in items}


def test_a_smart_cache_replaces_items_and_asks_anew(files: list[dict[str, str]]) -> None:
    transforms = loading(NormalizeIntensityd("image"), CROP, ASK)
    data = SmartCacheDataset(files, transforms, replace_rate=0.5, cache_num=2, num_init_workers=1, num_replace_workers=1, progress=False)
    asked = []
    data.start()
    for _ in range(3):
        asked += [batch["weight"] for batch in DataLoader(data, batch_size=2)]
        data.update_cache()
    data.shutdown()
    assert len({tuple(one.flatten().tolist()) for batch in asked for one in batch}) == 6


def test_several_crops_of_an_item_are_asked_each_by_itself(files: list[dict[str, str]]) -> None:
    crops = RandSpatialCropSamplesd("image", [8, 8, 8], num_samples=3, random_size=False)
    data = Dataset(files, loading(NormalizeIntensityd("image"), crops, ASK))
    assert len(masks(data[0])) == 3
    (batch, _) = list(DataLoader(data, batch_size=2))
    image, label = prepare_pretext_batch(batch)
    assert image.shape == (6, 1, 8, 8, 8)
    loss = PretextLoss("inpainting", block=4)
    network = SegResNet(spatial_dims=3, init_filters=8, in_channels=1, out_channels=loss.outputs, blocks_down=(1, 1), blocks_up=(1,))
    assert torch.isfinite(loss(network(image), label))


def test_a_crop_to_the_foreground_comes_after_the_preparation(files: list[dict[str, str]], pretrained: Run) -> None:
    whole = loading(PrepareImaged("image", pretrained))(files[0])["image"]
    body = CropForegroundd("image", source_key="image", select_fn=lambda image: image > -0.5, allow_smaller=False)
    item = loading(PrepareImaged("image", pretrained), body, CROP, ASK)(files[0])
    start = item["foreground_start_coord"]
    shown = item["weight"] == 0
    assert item["image"].shape == (1, 8, 8, 8) and shown.any()
    cropped = loading(PrepareImaged("image", pretrained), body)(files[0])["image"]
    corner = tuple(slice(int(first), int(first) + side) for first, side in zip(start, cropped.shape[1:], strict=True))
    assert torch.equal(cropped.as_tensor(), whole.as_tensor()[(slice(None), *corner)])


def test_what_is_pending_of_lazy_transforms_is_done_before_medssl_looks(files: list[dict[str, str]], pretrained: Run) -> None:
    moves = [Orientationd("image", axcodes="RAS"), Flipd("image", 0), Spacingd("image", 1.2), Orientationd("image", axcodes="RAS")]
    looks = [PrepareImaged("image", pretrained), PretextTaskd("image", task="inpainting", block=4, fixed=True)]
    eager, lazy = (loading(*moves, *looks, lazy=lazy)(files[0]) for lazy in (False, True))
    assert lazy["image"].shape == eager["image"].shape and not lazy["image"].pending_operations
    torch.testing.assert_close(lazy["target"], eager["target"], atol=0.15, rtol=0)
    drawn = RandAffined("image", prob=1.0, rotate_range=0.3, mode="bilinear")
    item = loading(NormalizeIntensityd("image"), drawn, CROP, ASK, lazy=True)(files[0])
    assert item["image"].shape == item["target"].shape == (1, 8, 8, 8)


def test_what_a_network_answers_is_put_back_on_the_grid_of_the_file(files: list[dict[str, str]], pretrained: Run) -> None:
    original = loading()(files[0])["image"]
    turned = [{"image": MetaTensor(original.as_tensor().flip(1), affine=original.affine @ _flip(original.shape[1]))}]
    before = Compose([Orientationd("image", axcodes="RAS"), Spacingd("image", 1.0), PrepareImaged("image", pretrained), ASK])
    after = Invertd("pred", transform=before, orig_keys="image", nearest_interp=False)
    (batch,) = DataLoader(Dataset(turned, before), batch_size=1)
    batch["pred"] = torch.where(batch["weight"] == 1, batch["target"], batch["image"])  # a network that is always right
    (item,) = [after(one) for one in decollate_batch(batch)]
    assert item["pred"].shape == turned[0]["image"].shape
    torch.testing.assert_close(item["pred"].affine, turned[0]["image"].affine)
    shown = PrepareImaged("image", pretrained)({"image": original})["image"]
    torch.testing.assert_close(item["pred"].as_tensor(), shown.as_tensor().flip(1), atol=1e-4, rtol=0)


def _flip(side: int) -> torch.Tensor:
    flip = torch.eye(4, dtype=torch.float64)
    flip[0, 0], flip[0, 3] = -1, side - 1
    return flip


def _network(outputs: int = 1) -> SegResNet:
    torch.manual_seed(0)
    return SegResNet(spatial_dims=3, init_filters=8, in_channels=1, out_channels=outputs, blocks_down=(1, 1), blocks_up=(1,))


def _pretext(wrap: Callable[[torch.nn.Module], torch.nn.Module]) -> tuple[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """A pretext task: every weight of the network answers."""
    network = _network()
    wrapped, loss = wrap(network), PretextLoss("inpainting", block=4)
    ask = PretextTaskd("image", task="inpainting", block=4, fixed=True)

    def step(images: torch.Tensor) -> torch.Tensor:
        items = [ask({"image": image}) for image in images]
        shown, label = prepare_pretext_batch({key: torch.stack([item[key] for item in items]) for key in items[0]})
        return loss(wrapped(shown), label)

    return network, step


def _classification(wrap: Callable[[torch.nn.Module], torch.nn.Module]) -> tuple[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """A classifier on the encoder: the decoder is frozen before the network is wrapped."""
    network = _network()
    for parameter in medssl.decoder_parameters(network):
        parameter.requires_grad_(False)
    model = torch.nn.Sequential(medssl.encoder(network), torch.nn.Linear(16, 2))
    wrapped = wrap(model)

    def step(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(wrapped(images), (images.mean((1, 2, 3, 4)) > 0).long())

    return model, step


def _parts(wrap: Callable[[torch.nn.Module], torch.nn.Module]) -> tuple[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """A pooled pretext task, which the decoder has no part in."""
    pytest.importorskip("medssl_placement")
    model = PretextNetwork(_network(), "relative-position", seed=0)
    for parameter in medssl.decoder_parameters(model.network):
        parameter.requires_grad_(False)
    wrapped, loss = wrap(model), PretextLoss("relative-position", network=_network())
    ask = PretextTaskd("image", task="relative-position", network=_network(), fixed=True)

    def step(images: torch.Tensor) -> torch.Tensor:
        items = [ask({"image": image.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)}) for image in images]
        shown, label = prepare_pretext_batch({key: torch.stack([item[key] for item in items]) for key in items[0]})
        return loss(wrapped(shown), label)

    return model, step


JOBS = {"pretext": _pretext, "classification": _classification, "pooled pretext": _parts}


def _train(job: str, wrap: Callable[[torch.nn.Module], torch.nn.Module], rows: slice) -> dict[str, torch.Tensor]:
    model, step = JOBS[job](wrap)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.01)
    for number in range(3):
        optimizer.zero_grad()
        step(torch.randn(4, 1, 8, 8, 8, generator=torch.Generator().manual_seed(number))[rows]).backward()
        assert all(parameter.grad is not None for parameter in trained)
        optimizer.step()
    return model.state_dict()


def _rank(rank: int, job: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    state = _train(job, partial(DistributedDataParallel, find_unused_parameters=False), slice(2 * rank, 2 * rank + 2))
    torch.save(state, Path(folder) / f"{rank}.pt")
    # The group ends with the process: where it is destroyed, the end of what DistributedDataParallel holds of it may wait for ever.


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
@pytest.mark.parametrize("job", JOBS)
def test_two_ranks_train_as_one_process_without_unused_parameters(job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The ranks import this module by its name, and find medssl where this process has it.
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).resolve().parents[2])])
    mp.spawn(_rank, args=(job, str(tmp_path)), nprocs=2)
    alone = _train(job, lambda model: model, slice(None))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)
    assert not np.allclose(float(next(iter(alone.values())).sum()), float(next(iter(_network().state_dict().values())).sum()))
