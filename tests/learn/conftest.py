"""Terms invented for tests of the objective; they come in as a plugin in this process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar, Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from medssl import hookimpl
from medssl.config import BaseOptions
from medssl.contracts import ConsistencyLoss, Crops, DenseHead, Draw, Head, ModuleHead, Needs, PooledHead, PretextBatch, PretextTask, Views
from medssl.plugins import Plugins


class Copy(PretextTask):
    """Repeat the crop; shows the images themselves, so several such tasks share one forward."""

    name: ClassVar[str] = "copy"
    answer: ClassVar[Literal["values", "logits"]] = "values"
    same_for_views: ClassVar[bool] = True

    class Options(BaseOptions):
        """How."""

        factor: float = Field(default=1.0, gt=0)
        """Of the loss."""

    options: Options

    def head(self) -> Head:
        return DenseHead(self.network.channels)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(crops.images, crops.images)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return (prediction - batch.target).square().flatten(1).mean(1) * self.options.factor

    def trivial(self, batch: PretextBatch) -> Tensor | None:
        return torch.zeros_like(batch.target)

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        return {"prediction": prediction}


class Square(Copy):
    """The square of the crop, from the same input."""

    name: ClassVar[str] = "square"

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(crops.images, crops.images.square())


class Marked(Copy):
    """Shows one channel more than the images have; the further one is 0 where nothing is asked."""

    name: ClassVar[str] = "marked"

    def input_channels(self, channels: int) -> int:
        return channels + 1

    def clean(self, crops: Crops) -> Tensor:
        return torch.cat([crops.images, torch.zeros_like(crops.images[:, :1])], 1)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(torch.cat([crops.images, torch.ones_like(crops.images[:, :1])], 1), crops.images)


class Silent(Marked):
    """Changes the channels and does not say what an uncorrupted input looks like."""

    name: ClassVar[str] = "silent"
    clean = PretextTask.clean


class Flip(Copy):
    """Repeat a flipped crop; the answer is restored by flipping back."""

    name: ClassVar[str] = "flip"

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(crops.images.flip(-1), crops.images.flip(-1), restore=lambda answer: answer.flip(-1))


class Brightness(PretextTask):
    """How bright is the crop? A target-only task."""

    name: ClassVar[str] = "brightness"
    answer: ClassVar[Literal["values", "logits"]] = "values"

    def head(self) -> Head:
        return PooledHead(1)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(None, crops.images.flatten(1).mean(1, keepdim=True))

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return (prediction - batch.target).square().flatten(1).mean(1)


class Where(Brightness):
    """The coordinate of each voxel along the last axis: a dense target-only task."""

    name: ClassVar[str] = "where"

    def head(self) -> Head:
        return DenseHead(1)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        steps = torch.linspace(0, 1, crops.size[-1], device=crops.images.device)
        return PretextBatch(None, steps.expand(len(crops), 1, *crops.size))


class Order(PretextTask):
    """Which half came first? Two parts a crop, the answer by part."""

    name: ClassVar[str] = "order"
    answer: ClassVar[Literal["values", "logits"]] = "logits"

    def head(self) -> Head:
        return PooledHead(3, parts=2, join="each")

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        parts = torch.stack([crops.images, crops.images.flip(-1)], 1).flatten(0, 1)
        return PretextBatch(parts, draw.integers(0, 3, 2))

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return nn.functional.cross_entropy(prediction.transpose(1, 2), batch.target, reduction="none").mean(1)


class OwnModule(Brightness):
    """Brings its own module on the encoder's end."""

    name: ClassVar[str] = "own-module"
    same_for_views: ClassVar[bool] = True

    def __init__(self, options: BaseOptions, network: object) -> None:
        super().__init__(options, network)  # type: ignore[arg-type]
        self.decoder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.network.embedding_width, 1))

    def head(self) -> Head:
        return ModuleHead(self.decoder, "encoder_end")


class Misbehaving(Copy):
    """Fails where its option says."""

    name: ClassVar[str] = "misbehaving"

    class Options(BaseOptions):
        """What goes wrong."""

        where: Literal["make", "loss", "shape", "rows", "type"] = "make"
        """Where."""

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        where = self.options.where  # type: ignore[attr-defined]
        if where == "make":
            raise ZeroDivisionError("in make")
        if where == "type":
            return crops  # type: ignore[return-value]
        return PretextBatch(crops.images[:-1] if where == "rows" else crops.images, crops.images)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        where = self.options.where  # type: ignore[attr-defined]
        if where == "loss":
            raise ZeroDivisionError("in loss")
        return (prediction - batch.target).square().mean()


class Spy(ConsistencyLoss):
    """Looks at everything, keeps what it saw, counts commits."""

    name: ClassVar[str] = "spy"
    needs: ClassVar[frozenset[Needs]] = frozenset({"answers", "embeddings", "feature_maps"})

    def __init__(self, options: BaseOptions, network: object) -> None:
        super().__init__(options, network)  # type: ignore[arg-type]
        self.register_buffer("commits", torch.zeros(()))
        self.seen: list[Views] = []

    commits: Tensor

    def forward(self, views: Views) -> Tensor:
        self.seen.append(views)
        return sum((e.square().mean(1) for e in views.embeddings), torch.zeros(len(views.crops)))

    def commit(self, views: Views) -> None:
        assert not any(e.requires_grad for e in views.embeddings)
        self.commits += 1
        self.committed = views


class Vectors(Spy):
    """Looks at embeddings only."""

    name: ClassVar[str] = "vectors"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings"})


class Follow(Spy):
    """Compares with the teacher."""

    name: ClassVar[str] = "follow"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings", "answers", "teacher"})

    class Options(BaseOptions):
        """How the teacher follows."""

        momentum: float = 0.9
        """Share kept of the teacher at each step."""

    def teacher_momentum(self, progress: float) -> float:
        return self.options.momentum  # type: ignore[attr-defined, no-any-return]

    def forward(self, views: Views) -> Tensor:
        assert views.teacher is not None
        self.seen.append(views)
        pairs = zip(views.embeddings, reversed(views.teacher.embeddings), strict=True)
        return sum(((a - b).square().mean(1) for a, b in pairs), torch.zeros(len(views.crops)))


TASKS = (Copy, Square, Marked, Silent, Flip, Brightness, Where, Order, OwnModule, Misbehaving)
LOSSES = (Spy, Vectors, Follow)


@pytest.fixture(scope="session")
def terms() -> Plugins:
    """The installed plugins and the terms of this file."""

    class Plugin:
        @hookimpl
        def medssl_pretext_tasks(self) -> list[type[PretextTask]]:
            return list(TASKS)

        @hookimpl
        def medssl_consistency_losses(self) -> list[type[ConsistencyLoss]]:
            return list(LOSSES)

    return Plugins.load({"test-terms": Plugin()})


@pytest.fixture
def classes() -> SimpleNamespace:
    """The classes of this file by name."""
    return SimpleNamespace(**{cls.__name__: cls for cls in (*TASKS, *LOSSES)})
