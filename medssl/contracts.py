"""The learning nouns and their promises, on one page.

A plugin author needs this page, `medssl.config.BaseOptions` and one hook of `medssl.hookspecs`. There is no I/O here.

Shapes: B samples in the batch, C channels, D spatial dimensions (2 or 3), V views, E width of an embedding, F channels of
a feature map. `*size` are the D sides of a crop in voxels, in the order of the store's axes (x, y, z of RAS+).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from medssl.config import BaseOptions

if TYPE_CHECKING:
    from typing import Self

Needs = Literal["answers", "embeddings", "feature_maps", "teacher"]


@dataclass(frozen=True)
class Crops:
    """What the data column hands over: B boxes cut out of prepared volumes."""

    images: Tensor
    """(B, C, *size) float32, prepared intensities."""
    channels: tuple[str, ...]
    """C names, such as "T1" or "CT[-160,240]"."""
    index: Tensor
    """(B,) int64: the sample's place in the global batch of its step. With seed, step and term it fixes all randomness."""
    sample: Tensor
    """(B,) int64: which volume, stable over runs and machines."""
    patient: Tensor
    """(B,) int64 pseudonym."""
    group: Tensor
    """(B,) int64: crops of one volume in this batch share it."""
    corner: Tensor
    """(B, D) int64 voxels: the crop's first corner in its volume."""
    spacing: Tensor
    """(B, D) float32 mm."""
    volume_size: Tensor
    """(B, D) int64 voxels."""
    inside: Tensor
    """(B,) float32: share of the crop that is body."""
    axis: Literal["slice", "time"] | None = None
    """What the channels count, when they are slices of a slab or frames."""

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

    def with_images(self, images: Tensor) -> Crops:
        """The same crops showing other images of the same size (a view)."""
        return replace(self, images=images)

    def to(self, device: torch.device | str) -> Crops:
        """The same crops with every tensor on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


class Draw:
    """Random numbers for B samples, one stream a sample: a function of (seed, step, index, term) and of nothing else.

    Because every sample owns its stream, no sample depends on its neighbours in the batch, and two ranks draw what one would.
    Numbers are made on the CPU and moved to `device`, so a run draws the same on every device.
    """

    def __init__(self, seed: int, step: int, index: Tensor | Sequence[int], term: str, device: torch.device | str = "cpu") -> None:
        indices = index.tolist() if isinstance(index, Tensor) else list(index)
        self.device = torch.device(device)
        self._keys = [f"{seed}/{step}/{i}/{term}" for i in indices]
        self._streams = [torch.Generator().manual_seed(_hash63(key)) for key in self._keys]

    def __len__(self) -> int:
        return len(self._streams)

    def fork(self, term: str) -> Draw:
        """Fresh streams for a part of the work, unaffected by what was drawn here before or is drawn later."""
        child = Draw.__new__(Draw)
        child.device = self.device
        child._keys = [f"{key}/{term}" for key in self._keys]
        child._streams = [torch.Generator().manual_seed(_hash63(key)) for key in child._keys]
        return child

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
class NetworkInfo:
    """What a task or a loss may know of the network it is trained with."""

    spatial_dims: int
    channels: int
    """Channels of the images (before any task adds its own)."""
    embedding_width: int
    """E: channels at the encoder's end, pooled to one vector a crop."""
    feature_width: int
    """F: channels of the dense feature map, which is what the network's own head reads. 0 for networks without a dense output."""
    strides: tuple[int, ...]
    """(D,) voxels of the crop for each voxel at the encoder's end."""
    tokens: bool = False
    """True where the encoder works on tokens and can leave some out."""


@dataclass(frozen=True)
class DenseHead:
    """An answer for every voxel: (B, channels, *size), by a copy of the network's own head on the shared feature map."""

    channels: int


@dataclass(frozen=True)
class PooledHead:
    """An answer for every crop, by one linear layer on pooled embeddings of `parts` inputs a crop.

    `join="concat"`: (B, outputs) from the parts' embeddings side by side; `join="each"`: (B, parts, outputs).
    """

    outputs: int
    parts: int = 1
    join: Literal["concat", "each"] = "concat"


@dataclass(frozen=True)
class ModuleHead:
    """The task's own module on what it names: the encoder's end (B, E, *grid) or the dense feature map (B, F, *grid)."""

    module: nn.Module
    reads: Literal["encoder_end", "feature_map"]


Head = DenseHead | PooledHead | ModuleHead


@dataclass(frozen=True)
class PretextBatch:
    """The question and its answer, made from crops."""

    inputs: Tensor | None
    """(B * parts, C, *size); None for a target-only task that rides on what another task shows."""
    target: Tensor
    """What the head should answer."""
    weight: Tensor | None = None
    """Where it counts, on the grid of the target (broadcast over channels)."""
    visible: Tensor | None = None
    """(B, tokens) bool: encoders with tokens see these alone; other encoders refuse."""
    restore: Callable[[Tensor], Tensor] | None = None
    """Takes a dense prediction back to the grid of the crops, for tasks that move voxels (rotation, tiles)."""


class PretextTask(nn.Module, ABC):
    """A self-made question: shows changed crops, knows the answer.

    `make` draws everything random from `draw` first and then applies it; it never changes the crops in place. Parameters and
    buffers of the task itself (an adversary, a decoder) are made in `__init__` and travel in the checkpoint.
    """

    name: ClassVar[str]
    answer: ClassVar[Literal["values", "logits"]]
    same_for_views: ClassVar[bool] = False
    """Should two views of a crop get the same answer? Inpainting yes, rotation no: then only embeddings may agree."""

    class Options(BaseOptions):
        """This task's knobs, each with its range and help."""

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__()
        self.options = options
        self.network = network

    def input_channels(self, channels: int) -> int:
        """How many channels the network must take for images of `channels` channels; all terms of a run must agree."""
        return channels

    @abstractmethod
    def head(self) -> Head:
        """The kind and width of the answer."""

    @abstractmethod
    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        """The question for these crops; everything random comes from `draw`."""

    @abstractmethod
    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) one finite value a sample; a sample with nothing to answer gives 0."""

    def trivial(self, batch: PretextBatch) -> Tensor | None:
        """The answer that needs no learning, shaped like a prediction, to compare with; None where there is none."""
        return None

    def picture(self, prediction: Tensor, batch: PretextBatch) -> dict[str, Tensor]:
        """What a person should look at: name -> (B, C, *size), values in the units of the images."""
        return {}


@dataclass(frozen=True)
class Views:
    """V views of the same B crops; view 0 may be the clean image."""

    crops: Crops
    answers: dict[str, tuple[Tensor, ...]]
    """By task (only tasks with `same_for_views`), one tensor a view, dense ones restored to the grid of the crops."""
    kinds: dict[str, Literal["values", "logits"]]
    """By task: what its answers are."""
    embeddings: tuple[Tensor, ...]
    """V x (B, E)."""
    feature_maps: tuple[Tensor, ...]
    """V x (B, F, *grid), on the grid of the view."""
    affines: Tensor
    """(V, B, D, D + 1): voxel of the view -> voxel of the crop."""
    shown: Tensor | None = None
    """(B, 1, *size) bool: voxels of the crop that every view shows; None where all do."""
    teacher: Views | None = None
    progress: float = 0.0
    """0 .. 1 of the run, for annealing."""

    def detach(self) -> Self:
        """The same views cut from the graph, as `ConsistencyLoss.commit` receives them."""

        def cut(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(tensor.detach() for tensor in tensors)

        answers = {name: cut(views) for name, views in self.answers.items()}
        return replace(self, answers=answers, embeddings=cut(self.embeddings), feature_maps=cut(self.feature_maps))


class ConsistencyLoss(nn.Module, ABC):
    """A penalty for answering or embedding views of the same crop differently.

    `forward` is pure. Queues, banks and centres change only in `commit`, which runs after a step that was taken.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Needs]]
    """What is computed for it; nothing else is."""

    class Options(BaseOptions):
        """This loss's knobs, each with its range and help."""

    def __init__(self, options: BaseOptions, network: NetworkInfo) -> None:
        super().__init__()
        self.options = options
        self.network = network

    @abstractmethod
    def forward(self, views: Views) -> Tensor:
        """(B,) one finite value a sample."""

    def commit(self, views: Views) -> None:
        """After a step that was taken: update queue, bank or centre from `views` (detached)."""
