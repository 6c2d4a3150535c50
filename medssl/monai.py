"""medssl inside an existing MONAI pipeline: a pretext task as a dictionary transform, its loss, and pretrained weights.

    transforms = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), ..., PretextTaskd("image", task="inpainting", ratio=0.6)])
    loss = PretextLoss("inpainting", ratio=0.6)                                  # loss(network(batch["image"]), batch)

    transforms = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), PrepareImaged("image", "runs/pretrained"), ...])
    network, report = load_pretrained(partial(SegResNet, ...), "runs/pretrained", out_channels=3)

The transforms follow MONAI's conventions: they compose, are seeded by `set_random_state` (and so by MONAI's `DataLoader` in each
worker), keep `MetaTensor`s and honour `allow_missing_keys`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor, ensure_tuple
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray
from torch import Tensor, nn

from medssl.config import check
from medssl.contracts import Crops, DenseHead, Draw, NetworkInfo, PooledHead, PretextBatch, PretextTask
from medssl.errors import ConfigError, DataError
from medssl.learn.objective import part_of_mean
from medssl.learn.promises import calling, check_batch, check_built, check_class, check_loss, check_own_rows, check_prediction
from medssl.plugins import Plugins, blame
from medssl.train.checkpoint import find_checkpoint
from medssl.transfer import load_pretrained
from medssl.volumes import Preparation, as_spacing, statistics

__all__ = [
    "PrepareImageD",
    "PrepareImageDict",
    "PrepareImaged",
    "PretextLoss",
    "PretextTaskD",
    "PretextTaskDict",
    "PretextTaskd",
    "load_pretrained",
]


class PretextTaskd(Randomizable, MapTransform):  # type: ignore[misc]
    """Asks a pretext task's question about each image: shows `inputs` in its place and writes the answer beside it.

    For each of `keys` (an image (C, *size), prepared intensities) the image becomes what the network is shown, `target_keys`
    receives what its head should answer and `weight_keys` where that counts (ones where the task does not say). Whatever else the
    task's loss needs goes beside the target by name: `target_answerable`, and `target_NAME` for each `extra` of the task. A task
    that cuts an image into P parts gives inputs (P, C, *size). The image is taken as its own volume: a task that asks where a crop
    lies in its volume needs medssl's own loader, and one that needs a teacher, or compares crops, medssl's own training.

    Args:
        keys: the images.
        task: name of an installed pretext task, or its class.
        target_keys, weight_keys: where target and weight go, one for each of `keys`.
        network: what the task may know of the network; by default only that it reads the image's channels.
        allow_missing_keys: leave out keys that an item lacks.
        options: the task's own options, checked as in a configuration.
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        task: str | type[PretextTask],
        *,
        target_keys: KeysCollection = "target",
        weight_keys: KeysCollection = "weight",
        network: NetworkInfo | None = None,
        allow_missing_keys: bool = False,
        **options: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.target_keys, self.weight_keys = ensure_tuple(target_keys), ensure_tuple(weight_keys)
        if not len(self.keys) == len(self.target_keys) == len(self.weight_keys):
            raise ConfigError(
                f"{len(self.keys)} keys need as many target_keys and weight_keys, not {len(self.target_keys)} and {len(self.weight_keys)}."
            )
        self.task = _task_class(task)
        self.options = check(self.task.Options, options, f"options of '{self.task.name}'")
        self.network = network
        self._built: dict[tuple[int, int], PretextTask] = {}
        self._seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draw the seed of one item; all else that is random follows from it."""
        self._seed = int(self.R.randint(2**31 - 1))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with inputs, target and weight; `data` itself is left as it is."""
        item = dict(data)
        for key, target_key, weight_key in self.key_iterator(item, self.target_keys, self.weight_keys):
            self.randomize()
            image = item[key]
            batch = self._ask(image, str(key))
            target = batch.target[0]
            item[key], item[target_key] = self._shown(batch, image), target
            item[weight_key] = torch.ones_like(target, dtype=torch.float32) if batch.weight is None else batch.weight[0]
            item |= {f"{target_key}_{name}": rows[0] for name, rows in _further(batch).items()}
        return item

    def _ask(self, image: Any, key: str) -> PretextBatch:
        tensor = convert_to_tensor(image, dtype=torch.float32, track_meta=False)
        if tensor.dim() not in (3, 4):
            raise DataError(f"'{key}' has shape {tuple(tensor.shape)}; {type(self).__name__} needs (C, *size) with 2 or 3 spatial sides.")
        crops = _one_crop(tensor, image)
        task = self._task_for(tensor)
        with torch.no_grad(), calling(task, self.task.name, "make", crops):
            batch = task.make(crops, Draw(self._seed, 0, crops.index, f"{self.task.name}/{key}", tensor.device))
        check_batch(batch, task, self.task.name, crops, task.head())
        if batch.visible is not None:
            raise ConfigError(f"'{self.task.name}' leaves tokens out of the encoder. {ELSEWHERE}")
        return batch

    def _shown(self, batch: PretextBatch, image: Any) -> Tensor:
        if batch.inputs is None:
            return image if isinstance(image, Tensor) else convert_to_tensor(image, dtype=torch.float32)
        if len(batch.inputs) > 1:
            return batch.inputs
        shown = batch.inputs[0]
        return convert_to_dst_type(shown, image)[0] if isinstance(image, MetaTensor) else shown

    def _task_for(self, tensor: Tensor) -> PretextTask:
        shape = (tensor.dim() - 1, int(tensor.shape[0]))
        if shape not in self._built:
            self._built[shape] = _build(self.task, self.options, self.network or _unknown_network(*shape))
        return self._built[shape]


PretextTaskD = PretextTaskDict = PretextTaskd


class PrepareImaged(MapTransform):  # type: ignore[misc]
    """Prepares intensities as a pretraining did, so that a network sees images as it learned on them.

    Each of `keys` is a whole volume (C, *size), before it is cropped or padded: its statistics are those of its foreground. Where
    the pretraining resampled its volumes, bring them to `spacing` first (`Spacingd`); a MetaTensor on another grid, or with other
    axes than RAS, is refused.

    Args:
        keys: the images.
        checkpoint: a run folder or checkpoint of medssl.
        modality: DICOM modality of the images, such as CT, or one for each channel; with the names of the pretraining's channels it
            picks the rules.
        allow_missing_keys: leave out keys that an item lacks.
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.NUMPY]

    def __init__(
        self, keys: KeysCollection, checkpoint: str | Path, modality: str | Sequence[str] = "MR", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        found = find_checkpoint(checkpoint)
        if found.state.get("preparation") is None:
            raise ConfigError(f"{found.path} does not say how its images were prepared. Give a run of medssl.")
        self.preparation = check(Preparation, found.state["preparation"], f"preparation in {found.path}")
        self.spacing = as_spacing(found.state.get("spacing"))
        self.modality = modality
        self.names: list[str] = found.state.get("channel_names") or []

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with prepared images; `data` itself is left as it is."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._prepared(item[key], str(key))
        return item

    def _prepared(self, image: Any, key: str) -> Any:
        if isinstance(image, MetaTensor):
            self._check_orientation(image, key)
            if self.spacing is not None:
                self._check_spacing(image, self.spacing, key)
        array = convert_to_tensor(image, track_meta=False).cpu().numpy()
        if not np.isfinite(array).all() or any(channel.min() == channel.max() for channel in array):
            raise DataError(f"'{key}' holds NaN, infinity, or one value alone, and cannot be prepared.")
        prepared = np.stack([self.preparation.apply(channel, statistics(channel), *rule) for channel, rule in self._rules(array, key)])
        return convert_to_dst_type(prepared, image, dtype=np.float32)[0]

    def _rules(self, array: NDArray[Any], key: str) -> Iterable[tuple[NDArray[Any], tuple[str, str]]]:
        """Each channel with the modality and name that pick its rule."""
        modalities = [self.modality] * len(array) if isinstance(self.modality, str) else list(self.modality)
        names = self.names if len(self.names) == len(array) else [""] * len(array)
        if len(modalities) != len(array):
            raise DataError(f"'{key}' has {len(array)} channels and {len(modalities)} modalities are given. Give one, or one a channel.")
        return zip(array, zip(modalities, names, strict=True), strict=True)

    def _check_orientation(self, image: MetaTensor, key: str) -> None:
        if image.dim() != 4:
            return
        codes = "".join(aff2axcodes(image.affine.cpu().numpy()))
        if codes != "RAS":
            raise DataError(
                f"'{key}' has its axes along {codes}, and the network learned on images along RAS. "
                f"Put Orientationd({key!r}, axcodes='RAS') before {type(self).__name__}."
            )

    def _check_spacing(self, image: MetaTensor, pretrained: tuple[float, float, float], key: str) -> None:
        spacing = tuple(float(side) for side in image.pixdim[: image.dim() - 1])
        wanted = pretrained[: len(spacing)]
        if not np.allclose(spacing, wanted, rtol=1e-2):
            raise DataError(
                f"'{key}' has a spacing of {spacing} mm, the network was pretrained at {wanted}. "
                f"Put Spacingd({key!r}, pixdim={wanted}) before {type(self).__name__}."
            )


PrepareImageD = PrepareImageDict = PrepareImaged


class PretextLoss(nn.Module):
    """A pretext task's loss for an existing training loop: `loss(prediction, batch)` is one number, the mean over a batch of items.

    `batch` is what a loader makes of `PretextTaskd`'s items, and the mean is over the samples that can be answered. For tasks whose
    loss needs nothing but target and weight, `loss(prediction, target, weight)` is the same. `outputs` is the number of channels
    (dense tasks) or values (pooled tasks) that the network must give.

    Args:
        task: name of an installed pretext task, or its class.
        spatial_dims, channels: of the images.
        target_key, weight_key: where `PretextTaskd` put target and weight.
        network: what the task may know of the network.
        options: the task's own options.
    """

    def __init__(
        self,
        task: str | type[PretextTask],
        *,
        spatial_dims: int = 3,
        channels: int = 1,
        target_key: str = "target",
        weight_key: str = "weight",
        network: NetworkInfo | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.target_key, self.weight_key = target_key, weight_key
        cls = _task_class(task)
        checked = check(cls.Options, options, f"options of '{cls.name}'")
        self.task = _build(cls, checked, network or _unknown_network(spatial_dims, channels))
        self._tried = False

    @property
    def outputs(self) -> int:
        """Channels of a dense answer, values of a pooled one."""
        head = self.task.head()
        if isinstance(head, DenseHead):
            return head.channels
        if isinstance(head, PooledHead):
            return head.outputs
        raise ConfigError(f"'{self.task.name}' brings its own head module; train it with medssl.pretrain.")

    def forward(self, prediction: Tensor, target: Tensor | Mapping[Any, Any], weight: Tensor | None = None) -> Tensor:
        """() mean of the task's losses over the samples that can be answered; `target` is the batch, or the target alone."""
        item = target if isinstance(target, Mapping) else {self.target_key: target}
        if self.target_key not in item:
            raise DataError(f"the batch has no '{self.target_key}'. Give PretextLoss the target_key of PretextTaskd.")
        weight = item.get(self.weight_key) if weight is None else weight
        batch = PretextBatch(None, _plain(item[self.target_key]), None if weight is None else _plain(weight), **self._further(item))
        losses = self._losses(_plain(prediction), batch)
        if batch.answerable is None:
            return losses.mean()
        return part_of_mean(losses, batch.answerable, batch.answerable.sum())

    def _losses(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        """(B,) the task's loss of an answer that fits the target; whether samples stay apart is tried with the first batch."""
        task, key = self.task, self.task.name
        check_prediction(prediction, task, key, batch.target)
        with calling(task, key, "loss"):
            losses = task.loss(prediction, batch)
        check_loss(losses, task, key, "loss()", batch.target)
        if not self._tried:
            check_own_rows(task.loss, task, key, prediction.detach(), batch)
            self._tried = True
        return losses

    def _further(self, item: Mapping[Any, Any]) -> dict[str, Any]:
        """What `PretextTaskd` put beside the target."""
        beside = f"{self.target_key}_"
        extra = {
            str(key).removeprefix(beside): _plain(value)
            for key, value in item.items()
            if str(key).startswith(beside) and key != self.weight_key and isinstance(value, Tensor)
        }
        return {"answerable": extra.pop("answerable", None), "extra": extra}


ELSEWHERE = "Train it with medssl.pretrain."
"""What to do with tasks that need more than one item of a MONAI pipeline, or more than a network's forward pass."""


def _task_class(task: str | type[PretextTask]) -> type[PretextTask]:
    cls = Plugins.load().task(task) if isinstance(task, str) else task
    if {"teacher", "teacher_answer"} & cls.needs:
        raise ConfigError(f"'{cls.name}' needs a teacher, which a MONAI pipeline does not keep. {ELSEWHERE}")
    if "body" in cls.needs:
        raise ConfigError(f"'{cls.name}' needs to know where the body is, which the items of a MONAI pipeline do not say. {ELSEWHERE}")
    if cls.compares != "nothing":
        raise ConfigError(f"'{cls.name}' compares crops with each other, and a MONAI pipeline asks about one at a time. {ELSEWHERE}")
    return cls


def _further(batch: PretextBatch) -> dict[str, Tensor]:
    """What a loss may need beside target and weight, by name."""
    answerable = {} if batch.answerable is None else {"answerable": batch.answerable}
    return {**answerable, **batch.extra}


def _build(cls: type[PretextTask], options: Any, network: NetworkInfo) -> PretextTask:
    check_class(cls, PretextTask)
    with blame(cls, "__init__"):
        built = cls(options, network)
    check_built(built, cls.name)
    return built


def _unknown_network(spatial_dims: int, channels: int) -> NetworkInfo:
    return NetworkInfo(spatial_dims, channels, embedding_width=1, feature_width=1, strides=(1,) * spatial_dims)


class _Unsaid:
    """Stands in `Crops` for what an item of a MONAI pipeline does not say; using it is an error, where a made-up number would be a lie."""

    def __init__(self, what: str) -> None:
        self._what = what

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise ConfigError(f"the task reads crops.{self._what}, which the items of a MONAI pipeline do not say. {ELSEWHERE}")

    __getattr__ = __getitem__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __neg__ = __len__ = __iter__ = __float__ = __bool__ = _refuse

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        next(one for one in (*args, *(kwargs or {}).values()) if isinstance(one, cls))._refuse()


def _one_crop(tensor: Tensor, image: Any) -> Crops:
    dims = tensor.dim() - 1
    spacing = torch.as_tensor(image.pixdim[:dims], dtype=torch.float32) if isinstance(image, MetaTensor) else torch.ones(dims)
    zero = torch.zeros(1, dtype=torch.int64)
    affine, extent = torch.zeros(1, 3, dims + 1), torch.zeros(1, 3)
    affine[0, :dims, :dims] = torch.diag(spacing)
    extent[0, :dims] = spacing * torch.tensor(tensor.shape[1:])
    unsaid: dict[str, Any] = {
        "rescale": _Unsaid("rescale, the true values of the images"),
        "inside": _Unsaid("inside, the share of a crop that is body"),
    }
    return Crops(
        images=tensor[None],
        channels=tuple(f"channel {number}" for number in range(tensor.shape[0])),
        index=zero,
        sample=zero,
        patient=zero,
        group=zero,
        affine=affine,
        extent=extent,
        **unsaid,
    )


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
