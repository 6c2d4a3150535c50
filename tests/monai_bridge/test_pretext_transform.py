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
from medssl.contracts import Crops, DenseHead, Draw, Head, ModuleHead, NetworkInfo, PooledHead, PretextBatch, PretextTask
from medssl.errors import ConfigError, DataError, PluginError
from medssl.testing import make_crops

monai_bridge = pytest.importorskip("medssl.monai")
PretextLoss, PretextTaskd = monai_bridge.PretextLoss, monai_bridge.PretextTaskd


NETWORK_2D: dict[str, Any] = {
    "name": "SegResNet",
    "spatial_dims": 2,
    "options": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
}


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
    with pytest.raises(ConfigError, match="fitted to the network's encoder. Say which it is"):
        PretextTaskd("image", Halves)({"image": image(1, 8, 6)})
    parts = PretextTaskd("image", Halves, network=NETWORK_2D)({"image": image(1, 8, 6)})
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


def batches(task: str, images: Tensor, workers: int = 0, **options: Any) -> Any:
    """The items of a task as a loader hands them over, four at once."""
    torch.manual_seed(7)
    transform = Compose([PretextTaskd("image", task, **options)]).set_random_state(7)
    dataset = Dataset([{"image": MetaTensor(image)} for image in images], transform)
    return next(iter(DataLoader(dataset, batch_size=4, num_workers=workers)))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_loss_needs_further_travels_in_the_item(workers: int) -> None:
    images = make_crops(4, (24, 24)).images
    options = {"block": 4, "visible_weight": 1.0}
    batch = batches("inpainting", images, workers, **options)
    assert batch["target_hidden"].shape == (4, 1, 24, 24)
    assert 0.3 < batch["target_hidden"].float().mean() < 0.9
    assert (batch["weight"] == 1).all()
    loss = PretextLoss("inpainting", spatial_dims=2, **options)
    prediction = torch.randn(4, 1, 24, 24)
    expected = torch.nn.functional.mse_loss(prediction, images)
    torch.testing.assert_close(loss(prediction, batch), expected)
    torch.testing.assert_close(loss(prediction, batch["target"], batch["weight"]), expected)


class Needy(Erase):
    """Its loss looks at what it hid, by name."""

    name = "needy"

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        batch = super().make(crops, draw)
        return PretextBatch(batch.inputs, batch.target, extra={"hidden": batch.weight})

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return ((prediction - batch.target) ** 2 * batch.extra["hidden"]).flatten(1).mean(1)


def test_each_of_several_images_has_its_own() -> None:
    keys: dict[str, Any] = {"target_keys": ("a", "b"), "weight_keys": ("wa", "wb")}
    item = PretextTaskd(("t1", "t2"), Needy, **keys)({"t1": image(1, 8, 8), "t2": image(1, 8, 8)})
    assert {"a_hidden", "b_hidden"} <= set(item) and not torch.equal(item["a_hidden"], item["b_hidden"])
    batch = {key: value[None] for key, value in item.items()}
    for key, target in (("wa", "a"), ("wb", "b")):
        loss = PretextLoss(Needy, spatial_dims=2, target_key=target, weight_key=key)
        torch.testing.assert_close(loss(batch[target] + 1, batch), batch[f"{target}_hidden"].mean())
    with pytest.raises(DataError, match="no 'target'"):
        PretextLoss(Needy, spatial_dims=2)(batch["a"], batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_air_does_not_dilute_the_loss(workers: int) -> None:
    images = make_crops(4, (32, 32)).images
    images[2:] = 0.0
    batch = batches("relative-position", images, workers, network=NETWORK_2D)
    assert batch["image"].shape[:2] == (4, 2)
    assert batch["target_answerable"].tolist() == [True, True, False, False]
    prediction = torch.randn(4, 8)
    loss = PretextLoss("relative-position", spatial_dims=2)
    expected = torch.nn.functional.cross_entropy(prediction[:2], batch["target"][:2])
    torch.testing.assert_close(loss(prediction, batch), expected)
    batch["target_answerable"][:] = False
    assert loss(prediction, batch) == 0


class Taught(Erase):
    name = "taught"
    needs = frozenset({"teacher"})


class OnBody(Erase):
    """Counts where the body is, and asks only about images with enough of it."""

    name = "on-body"
    needs = frozenset({"body"})

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        assert crops.body is not None
        return PretextBatch(crops.images, crops.images, weight=crops.body.float(), answerable=crops.inside >= 0.1)


class Alone(Erase):
    name = "alone"

    def head(self) -> Head:
        return ModuleHead(torch.nn.Identity(), "encoder_end")


class Grouped(Erase):
    name = "grouped"
    compares = "group"


class TokensOut(Erase):
    name = "tokens-out"

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(crops.images, crops.images, visible=torch.zeros(1, 1, dtype=torch.int64))


class Learned(Erase):
    name = "learned"

    def __init__(self, options: Erase.Options, network: NetworkInfo) -> None:
        super().__init__(options, network)
        self.shade = torch.nn.Parameter(torch.zeros(1))

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(crops.images + self.shade, crops.images)


def test_tasks_that_a_pipeline_cannot_ask_are_refused_with_what_to_do() -> None:
    cases = ((Taught, "needs a teacher"), (Alone, "answered by a module of its own"), (Grouped, "compares crops"))
    for task, says in cases:
        for build in (lambda task=task: PretextTaskd("image", task), lambda task=task: PretextLoss(task)):
            with pytest.raises(ConfigError, match=f"'{task.name}'.*{says}.*medssl.pretrain"):
                build()
    with pytest.raises(ConfigError, match=r"leaves tokens out.*medssl.pretrain"):
        PretextTaskd("image", TokensOut)({"image": image(1, 8, 8)})
    with torch.no_grad(), pytest.raises(ConfigError, match=r"networks of its own.*medssl.pretrain"):
        PretextTaskd("image", Learned)({"image": image(1, 8, 8)})


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


class Hounsfield(Erase):
    """Asks for true values, which an item of a pipeline does not say."""

    name = "hounsfield"

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        true = crops.images * crops.rescale[..., :1, None] + crops.rescale[..., 1:, None]
        return PretextBatch(crops.images, true)


class Bones(Hounsfield):
    """The same by a comparison, which is false of everything unknown."""

    name = "bones"

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(crops.images, (crops.images > torch.square(crops.rescale)).float())


class Placed(Hounsfield):
    """Asks which volume of a store it is."""

    name = "placed"

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(crops.images, crops.images * crops.sample.float())


@pytest.mark.parametrize(("task", "what"), [(Hounsfield, "rescale"), (Bones, "rescale"), (Placed, "sample")])
def test_what_an_item_does_not_say_is_not_made_up(task: type[PretextTask], what: str) -> None:
    with pytest.raises(ConfigError, match=rf"reads crops\.{what},.*which the items of a MONAI pipeline do not say.*medssl\.pretrain"):
        PretextTaskd("image", task)({"image": torch.rand(1, 16, 16)})


def test_the_body_is_found_in_the_image_itself() -> None:
    image = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.01
    image[:, 8:20, 8:20] += 1
    item = PretextTaskd("image", OnBody)({"image": image})
    assert torch.equal(item["weight"][0] > 0, image[0] > 0.5) and bool(item["target_answerable"])
    image[:, 8:20, 12:] = 0
    assert not PretextTaskd("image", OnBody)({"image": image})["target_answerable"]
    constant = PretextTaskd("image", OnBody)({"image": torch.ones(1, 8, 8)})
    assert not constant["target_answerable"] and not constant["weight"].any()


def test_rotation_is_asked_in_a_pipeline_and_not_about_air() -> None:
    pytest.importorskip("medssl_rotation")
    network = {"name": "UNet", "spatial_dims": 3, "options": {"channels": [4, 8], "strides": [2]}}
    turn = PretextTaskd("image", "rotation", network=network)
    body = make_crops(1, (16, 16, 16)).images[0]
    item = turn({"image": MetaTensor(body)})
    assert item["target_answerable"] and item["image"].shape == (1, 16, 16, 16)
    flat = MetaTensor(body, affine=torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0])))
    assert not turn({"image": flat})["target_answerable"]
    air = body * 1e-3
    air[:, :4, :4, :4] = 1
    assert not turn({"image": air})["target_answerable"]


@pytest.mark.parametrize("shape", [(2, 1, 16, 1), (2, 1, 8, 16), (1, 1, 16, 16), (2, 16, 16), (2, 3, 16, 16)])
def test_an_answer_of_another_shape_is_no_loss(shape: tuple[int, ...]) -> None:
    loss, batch = PretextLoss(Erase, spatial_dims=2), {"target": torch.rand(2, 1, 16, 16), "weight": torch.ones(2, 1, 16, 16)}
    assert torch.isfinite(loss(torch.rand(2, 1, 16, 16), batch))
    with pytest.raises(DataError, match=r"answers 'erase' with shape .* it is \(2, 1, "):
        loss(torch.rand(shape), batch)


def test_samples_that_meet_in_a_loss_are_noticed() -> None:
    class Crossed(Halves):
        name = "crossed"

        def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
            return (prediction[:, :1] - batch.target).square().mean(1)

    with pytest.raises(PluginError, match="broadcast against each other"):
        PretextLoss(Crossed)(torch.rand(2, 2), {"target": torch.tensor([0.0, 5.0]), "weight": torch.ones(2)})


def test_a_task_that_shows_the_image_itself_does_not_hand_over_its_memory() -> None:
    image = np.random.default_rng(0).random((1, 16, 16, 16), np.float32)
    for given in (image, MetaTensor(torch.from_numpy(image))):
        shown = PretextTaskd(
            "image", "position", network={"name": "UNet", "spatial_dims": 3, "options": {"channels": [4, 8], "strides": [2]}}
        )({"image": given})["image"]
        shown.mul_(0)
        assert float(image.max()) > 0.9
