"""A pretext task inside MONAI's own pipeline: Compose, seeds, MetaTensors, worker processes, loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, MapTransform, RandFlipd, Randomizable
from torch import Tensor

from medssl.config import BaseOptions
from medssl.contracts import Crops, DenseHead, Draw, Head, PooledHead, PretextBatch, PretextTask
from medssl.errors import ConfigError, DataError, PluginError

monai_bridge = pytest.importorskip("medssl.monai")
PretextLoss, PretextTaskd = monai_bridge.PretextLoss, monai_bridge.PretextTaskd


class Erase(PretextTask):
    """Zeroes random voxels and asks for them."""

    name = "erase"
    answer = "values"

    class Options(BaseOptions):
        share: float = 0.5

    def head(self) -> Head:
        return DenseHead(self.network.channels)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        hidden = draw.uniform(1, *crops.size) < self.options.share  # type: ignore[attr-defined]
        return PretextBatch(torch.where(hidden, 0.0, crops.images), crops.images, hidden.float())

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        assert batch.weight is not None
        return ((prediction - batch.target) ** 2 * batch.weight).flatten(1).mean(1)


class Halves(PretextTask):
    """Two parts of the crop in random order; which came first?"""

    name = "halves"
    answer = "logits"

    def head(self) -> Head:
        return PooledHead(outputs=2, parts=2)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        swap = draw.integers(0, 2)
        first, second = crops.images.chunk(2, dim=2)
        parts = torch.stack([first, second], 1)
        parts = torch.where(swap.view(-1, *[1] * (parts.dim() - 1)) == 1, parts.flip(1), parts)
        return PretextBatch(parts.flatten(0, 1), swap)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return torch.nn.functional.cross_entropy(prediction, batch.target, reduction="none")


class Riding(PretextTask):
    """A target without inputs of its own."""

    name = "riding"
    answer = "values"

    def head(self) -> Head:
        return DenseHead(1)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(None, crops.images.mean(1, keepdim=True) + crops.spacing[:, :1].view(-1, 1, 1, 1))

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return (prediction - batch.target).abs().flatten(1).mean(1)


class Broken(Erase):
    name = "broken"

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        raise KeyError("lost")


def image(*shape: int) -> MetaTensor:
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    return MetaTensor(torch.randn(shape, generator=torch.Generator().manual_seed(1)), affine=affine)


def test_follows_monai_conventions() -> None:
    assert issubclass(PretextTaskd, MapTransform)
    assert issubclass(PretextTaskd, Randomizable)
    assert monai_bridge.PretextTaskD is PretextTaskd
    assert monai_bridge.PretextTaskDict is PretextTaskd


@pytest.mark.parametrize("shape", [(1, 8, 6), (2, 8, 6, 4)])
def test_shows_inputs_and_writes_target_and_weight(shape: tuple[int, ...]) -> None:
    data = {"image": image(*shape), "other": 3}
    before = data["image"].clone()
    result = PretextTaskd("image", Erase).set_random_state(0)(data)
    assert isinstance(result["image"], MetaTensor)
    torch.testing.assert_close(result["image"].affine, before.affine)
    torch.testing.assert_close(data["image"].as_tensor(), before.as_tensor())
    torch.testing.assert_close(result["target"], before.as_tensor())
    assert result["weight"].shape == (1, *shape[1:])
    assert set(result["weight"].unique().tolist()) == {0.0, 1.0}
    hidden = result["weight"].expand(shape).bool()
    assert (result["image"].as_tensor()[hidden] == 0).all()
    assert result["other"] == 3


def test_random_state_decides_alone() -> None:
    compose = Compose([RandFlipd("image", prob=0.5), PretextTaskd("image", Erase)])

    def pair(seed: int) -> list[Tensor]:
        compose.set_random_state(seed)
        return [compose({"image": image(1, 8, 8)})["weight"] for _ in range(2)]

    first, again, other = pair(4), pair(4), pair(5)
    torch.manual_seed(99)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_arrays_and_other_dtypes_are_taken() -> None:
    result = PretextTaskd("image", Erase)({"image": np.ones((1, 4, 4), np.int16)})
    assert result["image"].dtype == torch.float32
    assert not isinstance(result["image"], MetaTensor)


def test_several_and_missing_keys() -> None:
    transform = PretextTaskd(("t1", "t2"), Erase, target_keys=("a", "b"), weight_keys=("wa", "wb"), allow_missing_keys=True)
    assert set(transform({"t2": image(1, 4, 4)})) == {"t2", "b", "wb"}
    both = transform({"t1": image(1, 8, 8), "t2": image(1, 8, 8)})
    assert not torch.equal(both["wa"], both["wb"])
    with pytest.raises(KeyError):
        PretextTaskd("image", Erase)({"label": image(1, 4, 4)})
    with pytest.raises(ConfigError, match="2 keys need as many"):
        PretextTaskd(("t1", "t2"), Erase)


def test_parts_are_stacked_and_riding_tasks_leave_the_image() -> None:
    parts = PretextTaskd("image", Halves)({"image": image(1, 8, 6)})
    assert parts["image"].shape == (2, 1, 4, 6)
    assert parts["target"].shape == ()
    riding = PretextTaskd("image", Riding)({"image": image(1, 8, 6)})
    torch.testing.assert_close(riding["image"].as_tensor(), image(1, 8, 6).as_tensor())
    torch.testing.assert_close(riding["target"], image(1, 8, 6).as_tensor() + 2.0)
    assert (riding["weight"] == 1).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_works_in_worker_processes(workers: int) -> None:
    dataset = Dataset([{"image": image(1, 8, 8)} for _ in range(6)], Compose([PretextTaskd("image", Erase)]))

    def weights() -> Tensor:
        torch.manual_seed(7)
        dataset.transform.set_random_state(7)
        return torch.cat([batch["weight"] for batch in DataLoader(dataset, batch_size=2, num_workers=workers)])

    first = weights()
    assert first.shape == (6, 1, 8, 8)
    assert len({tuple(row.flatten().tolist()) for row in first}) == 6
    assert torch.equal(first, weights())


def test_loss_is_the_tasks_own() -> None:
    loss = PretextLoss(Erase, channels=1)
    item = PretextTaskd("image", Erase)({"image": image(1, 8, 8, 8)})
    target, weight = item["target"][None], item["weight"][None]
    assert loss.outputs == 1
    assert loss(target, target, weight) == 0
    torch.testing.assert_close(loss(target + 1, target, weight), weight.mean())
    assert PretextLoss(Halves).outputs == 2


def test_wrong_use_is_one_message() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'share'"):
        PretextTaskd("image", Erase, shares=0.2)
    with pytest.raises(DataError, match="'image' has shape"):
        PretextTaskd("image", Erase)({"image": image(4, 4)})
    with pytest.raises(PluginError, match="KeyError"):
        PretextTaskd("image", Broken)({"image": image(1, 4, 4)})
    with pytest.raises(PluginError):
        PretextTaskd("image", "no-such-task")


def test_options_reach_the_task() -> None:
    options: dict[str, Any] = {"share": 1.0}
    assert (PretextTaskd("image", Erase, **options)({"image": image(1, 4, 4)})["weight"] == 1).all()
