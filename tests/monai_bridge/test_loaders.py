"""Questions in loaders as people have them: each item its own, in processes and threads, and nothing of the user's is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, Dataset, MetaTensor, ThreadDataLoader
from monai.data import DataLoader as MonaiLoader
from monai.transforms import Compose, Lambdad
from torch.utils.data import DataLoader as TorchLoader

from medssl.errors import ConfigError, DataError
from medssl.monai import PretextLoss, PretextTaskd, PretextTaskTransform, prepare_pretext_batch

pytest.importorskip("medssl_inpainting")
OPTIONS: dict[str, Any] = {"task": "inpainting", "block": 4}


def item(number: int, side: int = 16) -> dict[str, Any]:
    return {"image": MetaTensor(torch.randn(1, side, side, generator=torch.Generator().manual_seed(number)))}


def distinct(loader: Any) -> int:
    return len({tuple(weight.flatten().tolist()) for batch in loader for weight in batch["weight"]})


@pytest.mark.parametrize("loader", [TorchLoader, MonaiLoader])
@pytest.mark.parametrize("workers", [0, 4])
def test_every_item_has_its_own_mask_whoever_seeds_the_workers(loader: Callable[..., Any], workers: int) -> None:
    data = Dataset([item(number) for number in range(16)], Compose([PretextTaskd("image", **OPTIONS)]))
    assert distinct(loader(data, batch_size=4, num_workers=workers)) == 16


def test_torchs_loader_gives_the_same_again_for_the_same_seeds() -> None:
    def masks() -> torch.Tensor:
        torch.manual_seed(5)
        transform = Compose([PretextTaskd("image", **OPTIONS)]).set_random_state(3)
        loader = TorchLoader(Dataset([item(number) for number in range(4)], transform), batch_size=2, num_workers=2)
        return torch.cat([batch["weight"] for batch in loader])

    assert torch.equal(masks(), masks())


def test_threads_share_one_transform() -> None:
    """The mask of an item is where its image was changed, whatever other threads ask meanwhile."""
    data = Dataset([item(number) for number in range(60)], PretextTaskd("image", fill="zero", **OPTIONS))
    loader = ThreadDataLoader(data, batch_size=1, num_workers=4, use_thread_workers=True)
    for batch in loader:
        assert torch.equal(batch["image"].as_tensor() == 0, batch["weight"] == 1)


def test_a_fixed_question_is_a_function_of_the_image() -> None:
    fixed = PretextTaskd("image", fixed=True, **OPTIONS)
    first, again, other = (fixed(item(number))["weight"] for number in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    alone = PretextTaskTransform("inpainting", block=4, fixed=True)(item(1)["image"])
    assert torch.equal(alone["weight"], first)
    assert set(alone) == {"image", "target", "weight", "target_hidden"}


def test_the_users_own_keys_are_not_overwritten() -> None:
    with pytest.raises(ConfigError, match=r"the item has \['weight'\] already"):
        PretextTaskd("image", **OPTIONS)({**item(0), "weight": 71.5})
    kept = PretextTaskd("image", weight_keys="counts", **OPTIONS)({**item(0), "weight": 71.5})
    assert kept["weight"] == 71.5
    assert set(kept) == {"image", "weight", "counts", "target", "target_hidden"}


def test_a_cached_item_is_not_reached_through_its_target() -> None:
    def wipe(image: torch.Tensor) -> torch.Tensor:
        return image.zero_()

    data = [item(0)]
    asked = PretextTaskd("image", **OPTIONS)(data[0])
    wipe(asked["target"])
    assert float(data[0]["image"].abs().sum()) > 0
    cached = CacheDataset([item(0)], Compose([PretextTaskd("image", **OPTIONS), Lambdad("target", wipe)]), progress=False)
    for _ in range(2):
        assert float(cached[0]["image"].abs().sum()) > 0


def test_nan_is_refused_before_it_spreads() -> None:
    image = item(0)["image"]
    image[0, 3, 3] = float("nan")
    with pytest.raises(DataError, match="'image' holds NaN"):
        PretextTaskd("image", **OPTIONS)({"image": image})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float16])
def test_every_dtype_becomes_float32(dtype: torch.dtype) -> None:
    image = MetaTensor(torch.arange(256).reshape(1, 16, 16).to(dtype))
    asked = PretextTaskd("image", **OPTIONS)({"image": image})
    assert asked["image"].dtype == asked["target"].dtype == torch.float32
    shown = asked["weight"] == 0
    assert torch.equal(asked["image"].as_tensor()[shown], image.as_tensor().float()[shown])


def test_the_loss_says_what_it_lacks() -> None:
    batch = {key: value[None] for key, value in PretextTaskd("image", target_keys="label", **OPTIONS)(item(0)).items()}
    loss = PretextLoss("inpainting", target_key="label", block=4)
    image, label = prepare_pretext_batch(batch, "cpu")
    assert "image" not in label
    whole = loss(image, label)
    assert torch.equal(whole, loss(image, (label["label"], label["weight"])))
    assert torch.equal(whole, loss(image, label["label"], label["weight"]))
    with pytest.raises(DataError, match="without 'weight'.*prepare_pretext_batch"):
        loss(image, label["label"])
    with pytest.raises(DataError, match="image_key"):
        prepare_pretext_batch({"t1": image})


def test_the_loss_knows_two_dimensions_from_three() -> None:
    pytest.importorskip("medssl_placement")
    loss = PretextLoss("relative-position")
    with pytest.raises(ConfigError, match="8 in 2D and 26 in 3D. Give PretextLoss spatial_dims=2 or 3"):
        _ = loss.outputs
    assert PretextLoss("relative-position", spatial_dims=2).outputs == 8
    assert PretextLoss("inpainting").outputs == 1
    target = torch.tensor([3, 5])
    assert np.isfinite(float(loss(torch.randn(2, 8), target, torch.ones(2))))
    with pytest.raises(DataError, match="8 in 2D, 26 in 3D"):
        loss(torch.randn(2, 9), target, torch.ones(2))


def test_an_answer_shares_no_memory_with_its_image() -> None:
    pytest.importorskip("medssl_inpainting")
    ask, image = PretextTaskd("image", "inpainting", block=4), torch.randn(1, 16, 16, 16)
    kept = image.clone()
    item = ask({"image": image})
    image.add_(7.0)
    item["image"].add_(5.0)
    assert torch.equal(item["target"], kept)
