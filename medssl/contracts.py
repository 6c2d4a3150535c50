"""The learning nouns and their promises, on one page.

A plugin author needs this page, `medssl.config.BaseOptions` and one hook of `medssl.hookspecs`. There is no I/O here.

Shapes: B samples in the batch, C channels, D spatial dimensions (2 or 3), P parts of a sample, V views, E width of an embedding,
F channels of a feature map, N tokens. `*size` are the D sides of a crop in voxels, in the order of the store's axes (x, y, z of RAS+).

A *term* of a run is one pretext task or consistency loss under its name, or under the name that `as:` gives it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from medssl.config import BaseOptions
from medssl.errors import ConfigError

if TYPE_CHECKING:
    from typing import Self

Needs = Literal["answers", "embeddings", "task_embeddings", "feature_maps", "teacher", "body"]
"""What a consistency loss may ask for."""
TaskNeeds = Literal["teacher", "teacher_answer", "body"]
"""What a pretext task may ask for."""
Compares = Literal["nothing", "group", "batch"]
"""Whose crops a sample's loss may depend on beside its own: none, those of its volume in this batch, or the whole batch."""


@dataclass(frozen=True)
class Crops:
    """What the data column hands over: B boxes cut out of prepared volumes."""

    images: Tensor
    """(B, C, *size) float32, prepared intensities."""
    channels: tuple[str, ...]
    """C names, such as "T1" or "CT[-160,240]"."""
    index: Tensor
    """(B,) int64, always on the CPU: the sample's place in the global batch of its step. With seed, step and term it fixes all
    randomness."""
    sample: Tensor
    """(B,) int64: which volume, stable over runs and machines."""
    patient: Tensor
    """(B,) int64 pseudonym."""
    group: Tensor
    """(B,) int64: crops of one volume in this batch share it; those of `data.crops_per_volume` are in one batch always."""
    affine: Tensor
    """(B, 3, D + 1) float32: voxel of the crop -> mm in its volume, along the volume's own axes (those nearest to RAS+), 0 at the
    centre of the volume's first voxel. A slice of a volume knows its z; of a truly 2D image the third row is 0."""
    extent: Tensor
    """(B, 3) float32 mm: the volume's sides, voxels times spacing; the third of a 2D image is 0."""
    rescale: Tensor
    """(B, C, 2) float32: true value (HU in CT) = image * rescale[..., 0] + rescale[..., 1]; what was clipped stays clipped."""
    inside: Tensor
    """(B,) float32: share of the crop that is body."""
    axis: Literal["slice", "time"] | None = None
    """What the channels count, when they are slices of a slab or frames."""
    body: Tensor | None = None
    """(B, 1, *size) bool: where the body is, as the raw values tell; padding is not body. Only where it was asked for."""
    labels: Tensor | None = None
    """(B, 1, *size) int64 classes of labelled crops; -1 where nothing is known."""

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @property
    def size(self) -> tuple[int, ...]:
        """The D sides of a crop in voxels."""
        return tuple(self.images.shape[2:])

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.images.dim() - 2

    @property
    def spacing(self) -> Tensor:
        """(B, D) float32 mm from one voxel to the next along each axis of the crop."""
        return self.affine[..., :-1].square().sum(dim=1).sqrt()

    def with_images(self, images: Tensor) -> Crops:
        """The same crops showing other images of the same size."""
        return replace(self, images=images)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Crops:
        """The same crops with every tensor but `index` on `device`: reading that one must never wait for the device.

        With `non_blocking` copies from pinned memory may still be under way: hold these crops until they have ended, as
        `medssl.volumes.on_device` does.
        """
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in _tensors(self).items() if name != "index"}
        return replace(self, **moved)

    @staticmethod
    def join(parts: Sequence[Crops]) -> Crops:
        """One batch of all `parts`, which show the same channels at one size; crops without labels beside labelled ones get -1.

        Groups of different parts stay apart. Raises `ConfigError` for parts that do not fit together.
        """
        first = parts[0]
        for part in parts[1:]:
            for what in ("channels", "size", "axis"):
                if getattr(part, what) != getattr(first, what):
                    raise ConfigError(
                        f"crops with {what} {getattr(first, what)} and {getattr(part, what)} cannot be one batch. "
                        "Give both sources the same channels, in the same order, and the same size."
                    )
        if any(part.labels is not None for part in parts):
            parts = [replace(part, labels=_unknown(part) if part.labels is None else part.labels) for part in parts]
        if len({part.body is None for part in parts}) > 1:
            raise ConfigError("only some of the crops say where the body is. Ask for it from both loaders (body=True), or from none.")
        groups = [first.group]
        for part in parts[1:]:
            groups.append(part.group - part.group.min() + groups[-1].max() + 1)
        tensors = [_tensors(part) for part in parts]
        joined: dict[str, Any] = {name: torch.cat([part[name] for part in tensors]) for name in tensors[0]}
        return replace(first, **{**joined, "group": torch.cat(groups)})


def _tensors(crops: Crops) -> dict[str, Any]:
    return {name: value for name, value in vars(crops).items() if isinstance(value, Tensor)}


def _unknown(crops: Crops) -> Tensor:
    return torch.full((len(crops), 1, *crops.size), -1, dtype=torch.int64, device=crops.images.device)


class Draw:
    """Random numbers for B samples, one stream a sample: a function of (seed, step, index, term) and of nothing else.

    Because every sample owns its stream, no sample depends on its neighbours in the batch, and two ranks draw what one would.
    Numbers are made on the CPU and moved to `device`, so a run draws the same on every device.
    """

    progress: float
    """0 .. 1: where in the run this is drawn, for annealing."""

    def __init__(
        self,
        seed: int,
        step: int,
        index: Tensor | Sequence[int],
        term: str,
        device: torch.device | str = "cpu",
        progress: float = 0.0,
    ) -> None:
        indices = index.tolist() if isinstance(index, Tensor) else list(index)
        self.device, self.progress = torch.device(device), progress
        self._keys = [f"{seed}/{step}/{i}/{term}" for i in indices]
        self._streams = [torch.Generator().manual_seed(_hash63(key)) for key in self._keys]

    def __len__(self) -> int:
        return len(self._streams)

    def fork(self, term: str) -> Draw:
        """Fresh streams for a part of the work, unaffected by what was drawn here before or is drawn later."""
        keys = [f"{key}/{term}" for key in self._keys]
        return self._like(self.device, keys, [torch.Generator().manual_seed(_hash63(key)) for key in keys])

    def on_cpu(self) -> Draw:
        """The same streams, whose numbers stay on the CPU: for those that are read, such as seeds; reading waits for a device."""
        return self._like("cpu", self._keys, self._streams)

    def _like(self, device: torch.device | str, keys: list[str], streams: list[torch.Generator]) -> Draw:
        other = Draw.__new__(Draw)
        other.device, other.progress = torch.device(device), self.progress
        other._keys, other._streams = keys, streams
        return other

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B, *shape) float32 in [low, high)."""
        return self._stack(lambda g: torch.rand(shape, generator=g, device="cpu") * (high - low) + low)

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) float32, mean 0, standard deviation 1."""
        return self._stack(lambda g: torch.randn(shape, generator=g, device="cpu"))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """(B, *shape) int64 in [low, high)."""
        return self._stack(lambda g: torch.randint(low, high, shape, generator=g, device="cpu"))

    def permutation(self, n: int) -> Tensor:
        """(B, n) int64: for each sample a random order of 0 .. n-1."""
        return self._stack(lambda g: torch.randperm(n, generator=g, device="cpu"))

    def _stack(self, one: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([one(stream) for stream in self._streams]).to(self.device, non_blocking=True)


def _hash63(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class EncoderLayout:
    """Where a network's encoder is, by the dotted names of its submodules; what `medssl_encoder_end` may give instead of one name."""

    end: str
    """The submodule whose output is the encoder's end: (B, E, *grid), or tokens (B, N, E) with or without a class token first."""
    levels: tuple[str, ...] = ()
    """Submodules whose outputs are the encoder's intermediate maps, from fine to coarse; a head reads them as "level 0", "level 1", ..."""
    tokens: str | None = None
    """The submodule that gives the embedded patches (B, N, E), positions added, before any class token: here tokens are left out."""


@dataclass(frozen=True)
class Level:
    """One intermediate map of the encoder."""

    width: int
    """Its channels."""
    strides: tuple[int, ...]
    """(D,) voxels of the crop for each of its voxels."""


@dataclass(frozen=True)
class NetworkInfo:
    """What a task or a loss may know of the network it is trained with."""

    spatial_dims: int
    channels: int
    """Channels of the images (before any task adds its own)."""
    embedding_width: int
    """E: channels at the encoder's end, pooled to one vector a crop; 0 where it is not known where the encoder ends."""
    feature_width: int
    """F: channels of the dense feature map, which is what the network's own head reads. 0 for networks without a dense output."""
    strides: tuple[int, ...]
    """(D,) voxels of the crop for each voxel at the encoder's end; () where it is not known where the encoder ends."""
    feature_strides: tuple[int, ...] = ()
    """(D,) voxels of the crop for each voxel of the feature map; () without one."""
    levels: tuple[Level, ...] = ()
    """The encoder's intermediate maps, from fine to coarse, where they are known."""
    token_grid: tuple[int, ...] = ()
    """(D,) tokens along each side of the crop, for encoders that can leave tokens out; () for all others."""
    class_token: bool = False
    """Whether such an encoder has a class token."""
    crop: tuple[int, ...] | None = None
    """(D,) sides of the crops of this run in voxels; None where they are not known beforehand."""

    @property
    def tokens(self) -> int:
        """N: tokens of a crop; 0 for encoders that cannot leave any out."""
        count = 1 if self.token_grid else 0
        for side in self.token_grid:
            count *= side
        return count


@dataclass(frozen=True)
class DenseHead:
    """An answer for every voxel: (B, channels, *size), by a copy of the network's own head on the shared feature map."""

    channels: int
    features: ClassVar[tuple[str, ...]] = ("feature_map",)


@dataclass(frozen=True)
class PooledHead:
    """An answer for every crop, by one linear layer on pooled embeddings of `parts` inputs a crop.

    `join="concat"`: (B, outputs) from the parts' embeddings side by side; `join="each"`: (B, parts, outputs).
    """

    outputs: int
    parts: int = 1
    join: Literal["concat", "each"] = "concat"
    features: ClassVar[tuple[str, ...]] = ("encoder_end",)


@dataclass(frozen=True)
class ModuleHead:
    """The task's own module on one or several of the network's features, in the order in which `reads` names them.

    Features: "encoder_end" (B, E, *grid), "feature_map" (B, F, *grid), "level 0" and on (B, width, *grid), "tokens" (B, N, E) at the
    encoder's end without the class token, "class_token" (B, E). Where `PretextBatch.visible` leaves tokens out, only the last two
    exist, and the tokens are (B, V, E), in the order of `visible`. With P parts a sample every B here is B * P.
    """

    module: nn.Module
    """`module(*features)`, or `module(*features, batch)` where it sees the batch."""
    reads: str | tuple[str, ...]
    parts: int = 1
    sees_batch: bool = False
    """Whether the module is also given the `PretextBatch` (a decoder that needs to know which tokens were visible)."""
    dense: bool = False
    """Whether it answers for every voxel, (B, K, *size): such answers of two views are compared on the grid of the crops."""

    @property
    def features(self) -> tuple[str, ...]:
        """What it reads, as a tuple."""
        return (self.reads,) if isinstance(self.reads, str) else self.reads


@dataclass(frozen=True)
class NetworkHead:
    """The network's own output (B, K, *size), by its own head: what a downstream task is trained on."""

    features: ClassVar[tuple[str, ...]] = ("output",)


Head = DenseHead | PooledHead | ModuleHead | NetworkHead


@dataclass(frozen=True)
class Taught:
    """What the teacher makes of a task's uncorrupted input (`PretextTask.clean`); nothing here has a gradient."""

    features: Mapping[str, Tensor] = field(default_factory=dict)
    """By the names of `PretextTask.teacher_reads`."""
    answer: Tensor | None = None
    """Its head's answer, where the task needs "teacher_answer"."""
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    """The teacher's copies of the modules named in `teacher_follows`."""


@dataclass(frozen=True)
class PretextBatch:
    """The question and its answer, made from crops.

    Which fields are given, and their shapes beyond the rows, are the same in every batch of a run.
    """

    inputs: Tensor | None
    """(B * parts, C, *size); None for a target-only task that rides on what another task shows."""
    target: Tensor
    """What the head should answer; where only the teacher knows that, whatever says what is asked for."""
    weight: Tensor | None = None
    """Where it counts, on the grid of the target (broadcast over channels)."""
    answerable: Tensor | None = None
    """(B,) bool: which samples can be answered at all; the loss is the mean over these. None: every one."""
    visible: Tensor | None = None
    """(B * parts, V) int64, numbers of tokens: encoders with tokens see these V alone, in that order; other encoders refuse."""
    restore: Callable[[Tensor], Tensor] | None = None
    """Takes a dense prediction back to the grid of the crops, for tasks that move voxels (rotation, tiles)."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Whatever else loss and pictures need, by name; B rows each. It travels with target and weight in MONAI pipelines too."""
    progress: float = 0.0
    """0 .. 1 of the run, for annealing; set by medssl."""
    teacher: Taught | None = None
    """Set by medssl for tasks that need it, before the loss is taken."""


class PretextTask(nn.Module, ABC):
    """A self-made question: shows changed crops, knows the answer.

    `make` draws everything random from `draw` first and then applies it; it never changes the crops in place. Parameters and
    buffers of the task itself (an adversary, a decoder) are made in `__init__` and travel in the checkpoint. `loss` is pure;
    what a task keeps from step to step changes in `commit` alone.
    """

    name: ClassVar[str]
    answer: ClassVar[Literal["values", "logits"]]
    same_for_views: ClassVar[bool] = False
    """Should two views of a crop get the same answer? Inpainting yes, rotation no: then only embeddings may agree."""
    needs: ClassVar[frozenset[TaskNeeds]] = frozenset()
    """What is computed for it beside its head's answer."""
    compares: ClassVar[Compares] = "nothing"
    """"group" for a task whose question or loss sets crops of one volume against each other (`data.crops_per_volume`)."""
    teacher_follows: ClassVar[tuple[str, ...]] = ()
    """Names of submodules of the task of which the teacher keeps a moving average."""
    citation: ClassVar[str] = ""
    """The paper, as one would cite it."""
    suite: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """What the contract suite cannot know: `channels`, `random`, `tokens`, `options`, ... as in `medssl.testing.PretextTaskContract`."""

    class Options(BaseOptions):
        """This task's knobs, each with its range and help."""

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__()
        self.options = options
        self.network = network

    def input_channels(self, channels: int) -> int:
        """How many channels the network must take for images of `channels` channels; all terms of a run must agree."""
        return channels

    def clean(self, crops: Crops) -> Tensor:
        """(B, input channels, *size): the network's input where nothing is corrupted, for embeddings of the crop and for the teacher."""
        return crops.images

    @abstractmethod
    def head(self) -> Head:
        """The kind and width of the answer."""

    @abstractmethod
    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """The question for these crops; everything random comes from `draw`."""

    @abstractmethod
    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) one finite value a sample; those of samples that cannot be answered are left out."""

    def trivial(self, batch: PretextBatch) -> Tensor | None:
        """The answer that needs no learning, shaped like a prediction, to compare with; None where there is none."""
        return None

    def measure(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """The task's own measures, such as accuracy: name -> (B,); that of `trivial` is what chance gives."""
        return {}

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """What a person should look at: name -> (B, C, *size), values in the units of the images."""
        return {}

    def teacher_reads(self) -> tuple[str, ...]:
        """The features (see `ModuleHead`) that the teacher gives to a task that needs it; by default what the head reads."""
        return self.head().features

    def teacher_momentum(self, progress: float) -> float:
        """The teacher's momentum at 0 .. 1 of the run; all terms of a run that need the teacher must agree."""
        return TEACHER_MOMENTUM

    def commit(self, prediction: Tensor, batch: PretextBatch) -> None:
        """After a step that was taken: update what the task keeps, from all micro batches and ranks joined (detached, no `restore`)."""


TEACHER_MOMENTUM = 0.996
"""Of BYOL (Grill et al., NeurIPS 2020)."""


@dataclass(frozen=True)
class Views:
    """V views of the same B crops; view 0 may be the clean image. A loss finds here what its `needs` name and nothing else."""

    crops: Crops
    answers: dict[str, tuple[Tensor, ...]]
    """By task (only tasks with `same_for_views`), one tensor a view, dense ones restored to the grid of the crops."""
    kinds: dict[str, Literal["values", "logits"]]
    """By task: what its answers are."""
    embeddings: tuple[Tensor, ...]
    """V x (B, E), of the views themselves."""
    feature_maps: tuple[Tensor, ...]
    """V x (B, F, *grid), of the views themselves, on the grid of the view."""
    affines: Tensor
    """(V, B, D, D + 1): voxel of the view -> voxel of the crop."""
    task_embeddings: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """By task, one tensor for each view that it was asked about: (B, E), or (B, P, E) of its P parts: of what the task shows."""
    shown: Tensor | None = None
    """(B, 1, *size) bool: voxels of the crop that every view shows; None for losses that compare nothing dense."""
    teacher: Views | None = None
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    """Of the teacher's views: its copies of the modules that the loss names in `teacher_follows`."""
    progress: float = 0.0
    """0 .. 1 of the run, for annealing."""

    def detach(self) -> Self:
        """The same views cut from the graph, as `ConsistencyLoss.commit` receives them."""
        return self.mapped(Tensor.detach)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same views with `change` applied to everything that a network computed, the teacher's apart."""

        def each(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(change(tensor) for tensor in tensors)

        return replace(
            self,
            answers={name: each(views) for name, views in self.answers.items()},
            task_embeddings={name: each(views) for name, views in self.task_embeddings.items()},
            embeddings=each(self.embeddings),
            feature_maps=each(self.feature_maps),
        )

    def only(self, needs: frozenset[str]) -> Self:
        """What a loss with these `needs` is given."""
        dense = "answers" in needs or "feature_maps" in needs
        return replace(
            self,
            answers=self.answers if "answers" in needs else {},
            kinds=self.kinds if "answers" in needs else {},
            task_embeddings=self.task_embeddings if "task_embeddings" in needs else {},
            embeddings=self.embeddings if "embeddings" in needs else (),
            feature_maps=self.feature_maps if "feature_maps" in needs else (),
            shown=self.shown if dense else None,
            teacher=self.teacher.only(needs) if self.teacher is not None and "teacher" in needs else None,
        )


class ConsistencyLoss(nn.Module, ABC):
    """A penalty for answering or embedding views of the same crop differently.

    `forward` is pure. Queues, banks and centres change only in `commit`, which runs once after a step that was taken.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Needs]]
    """What is computed for it; nothing else is."""
    compares: ClassVar[Compares] = "nothing"
    """"batch" for a loss with negatives or statistics over the batch, where a sample's loss rightly depends on its neighbours."""
    teacher_follows: ClassVar[tuple[str, ...]] = ()
    """Names of submodules of the loss (a projector) of which the teacher keeps a moving average: `views.teacher.modules`."""
    citation: ClassVar[str] = ""
    """The paper, as one would cite it."""
    suite: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """What the contract suite cannot know: `only`, `options`, ... as in `medssl.testing.ConsistencyLossContract`."""

    class Options(BaseOptions):
        """This loss's knobs, each with its range and help."""

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__()
        self.options = options
        self.network = network

    @abstractmethod
    def forward(self, views: Views) -> Tensor:
        """(B,) one finite value a sample."""

    def teacher_momentum(self, progress: float) -> float:
        """The teacher's momentum at 0 .. 1 of the run; all terms of a run that need the teacher must agree."""
        return TEACHER_MOMENTUM

    def commit(self, views: Views) -> None:
        """After a step that was taken: update queue, bank or centre, from all micro batches and ranks joined (detached)."""
