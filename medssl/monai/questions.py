"""Pretext tasks as transforms: an array transform and its dictionary form."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
import xxhash
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor, ensure_tuple
from torch import Tensor

from medssl.config import check
from medssl.contracts import Draw, PretextBatch, PretextTask
from medssl.errors import ConfigError, DataError
from medssl.learn.promises import calling, check_batch
from medssl.monai.crops import crops_of
from medssl.monai.given import image_given, item_given
from medssl.monai.labels import refuse_unsaid
from medssl.monai.tasks import (
    ELSEWHERE,
    build_task,
    known_network,
    refuse_unknown_network,
    task_class,
    tried_without_network,
    unknown_network,
)

IMAGE, TARGET, WEIGHT = "image", "target", "weight"


class PretextTaskTransform(Randomizable, Transform):  # type: ignore[misc]
    """Asks a pretext task's question about an image (C, *size) of prepared intensities.

    `transform(image)` is a dictionary: `image`, what the network is shown; `target`, what its head should answer; `weight`, where that
    counts (ones where the task does not say); and whatever else the task's loss needs: `target_answerable`, and `target_NAME` for each
    `extra` of the task. A task that cuts an image into P parts gives images (P, C, *size). The image is taken as its own volume: a task
    that asks where a crop lies in its volume needs medssl's own loader, and one that needs a teacher, or compares crops, medssl's own
    training. Its body, for tasks that ask how much of it that is, is what lies above the image's own air.

    Args:
        task: name of an installed pretext task, or its class.
        network: the network that will answer, as anything that `medssl.pretrain` takes; needed by tasks that fit what they show to it.
        fixed: ask always the same about the same image, as validation should; else each time anew.
        options: the task's own options, checked as in a configuration.
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.TORCH]

    def __init__(self, task: str | type[PretextTask], *, network: Any = None, fixed: bool = False, **options: Any) -> None:
        self.task = task_class(task)
        self.options = check(self.task.Options, options, f"options of '{self.task.name}'")
        self.network, self.fixed = known_network(network), fixed
        self._built: dict[tuple[int, int], PretextTask] = {}
        if self.network is None:
            tried = tried_without_network(self.task, self.options)
        else:
            tried = build_task(self.task, self.options, self.network)
            self._built[self.network.spatial_dims, self.network.channels] = tried
        if tried is not None:
            refuse_unsaid(tried)
        self._seeded_in = os.getpid()

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> Self:
        """As of every MONAI transform; what is set in a loader's worker process counts there."""
        super().set_random_state(seed, state)
        self._seeded_in = os.getpid()
        return self

    def randomize(self, data: Any = None) -> int:
        """The seed of one question; all else that is random follows from it. Nothing is kept, so threads may share the transform."""
        if self.fixed:
            return int(xxhash.xxh3_64_intdigest(np.ascontiguousarray(data).tobytes()) >> 1)
        worker = torch.utils.data.get_worker_info()
        if worker is not None and self._seeded_in != os.getpid():
            # A loader that seeds no transforms (torch's, Lightning's): every worker holds the same copy of the generator.
            own = int(self.R.randint(2**31 - 1))
            self.set_random_state(int(np.random.SeedSequence((own, worker.seed)).generate_state(1)[0]))
        return int(self.R.randint(2**31 - 1))

    def __call__(self, image: Any) -> dict[str, Any]:
        """The question about `image`, which is left as it is."""
        return self.asked(image, IMAGE)

    def asked(self, image: Any, name: str) -> dict[str, Any]:
        """The question about the image of that name."""
        tensor = _prepared_image(image, name)
        batch = self._ask(tensor, image, name)
        answer = {key: _apart(rows, tensor)[0] for key, rows in _answer(batch).items()}
        if WEIGHT not in answer:
            answer[WEIGHT] = torch.ones_like(answer[TARGET], dtype=torch.float32)
        return {IMAGE: _shown(batch, image, tensor), **answer}

    def _ask(self, tensor: Tensor, image: Any, name: str) -> PretextBatch:
        spacing = torch.as_tensor(image.pixdim[: tensor.dim() - 1]) if isinstance(image, MetaTensor) else None
        crops, task = crops_of(tensor.detach()[None], spacing, body="body" in self.task.needs), self._task_for(tensor)
        seed = self.randomize(tensor.cpu().numpy() if self.fixed else None)
        with torch.enable_grad(), calling(task, self.task.name, "make", crops):
            batch = task.make(crops, Draw(seed, 0, crops.index, f"{self.task.name}/{name}", tensor.device))
        if batch.inputs is not None and batch.inputs.requires_grad:
            raise ConfigError(f"what '{self.task.name}' shows is made by networks of its own, which learn beside yours. {ELSEWHERE}")
        check_batch(batch, task, self.task.name, crops, task.head())
        if batch.visible is not None:
            raise ConfigError(f"'{self.task.name}' leaves tokens out of the encoder. {ELSEWHERE}")
        return batch

    def _task_for(self, tensor: Tensor) -> PretextTask:
        dims, channels = tensor.dim() - 1, int(tensor.shape[0])
        if self.network is not None and (self.network.spatial_dims, self.network.channels) != (dims, channels):
            raise DataError(
                f"an image of shape {tuple(tensor.shape)} does not fit the network, which takes {self.network.channels} channels and "
                f"{self.network.spatial_dims} spatial sides."
            )
        if (dims, channels) not in self._built:
            task = build_task(self.task, self.options, self.network or unknown_network(dims, channels))
            if self.network is None:
                refuse_unknown_network(task)
            self._built[dims, channels] = task
        return self._built[dims, channels]


class PretextTaskd(Randomizable, MapTransform):  # type: ignore[misc]
    """`PretextTaskTransform` for each of `keys`: shows what the network is shown in the image's place and writes the answer beside it.

    `target_keys` receives what its head should answer and `weight_keys` where that counts; whatever else the task's loss needs goes
    beside the target by name, as `target_answerable`. An item that has one of these keys already is refused.

    Args:
        keys: the images.
        task, network, fixed, options: as of `PretextTaskTransform`.
        target_keys, weight_keys: where target and weight go, one for each of `keys`.
        allow_missing_keys: leave out keys that an item lacks.
    """

    backend: ClassVar[list[TransformBackends]] = PretextTaskTransform.backend

    def __init__(
        self,
        keys: KeysCollection,
        task: str | type[PretextTask],
        *,
        target_keys: KeysCollection = TARGET,
        weight_keys: KeysCollection = WEIGHT,
        network: Any = None,
        fixed: bool = False,
        allow_missing_keys: bool = False,
        **options: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.target_keys, self.weight_keys = ensure_tuple(target_keys), ensure_tuple(weight_keys)
        if not len(self.keys) == len(self.target_keys) == len(self.weight_keys):
            raise ConfigError(
                f"{len(self.keys)} keys need as many target_keys and weight_keys, not {len(self.target_keys)} and {len(self.weight_keys)}."
            )
        written = [*self.target_keys, *self.weight_keys]
        if len(set(written)) < len(written):
            raise ConfigError(
                f"target_keys and weight_keys name one place twice: {', '.join(map(str, written))}. Give each answer its own."
            )
        self.transform = PretextTaskTransform(task, network=network, fixed=fixed, **options)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> Self:
        """As of every MONAI transform."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with inputs, target and weight; `data` itself is left as it is."""
        item = item_given(data)
        for key, target_key, weight_key in self.key_iterator(item, self.target_keys, self.weight_keys):
            asked = self.transform.asked(item[key], str(key))
            item[key], weight = asked.pop(IMAGE), asked.pop(WEIGHT)
            answer = {f"{target_key}{name.removeprefix(TARGET)}": value for name, value in asked.items()} | {weight_key: weight}
            _refuse_overwriting(item, answer)
            item |= answer
        return item


PretextTaskD = PretextTaskDict = PretextTaskd


def _prepared_image(image: Any, name: str) -> Tensor:
    """(C, *size) float32 without metadata or graph; `DataError` for what no question can be asked about."""
    tensor: Tensor = convert_to_tensor(image_given(image, f"'{name}'"), dtype=torch.float32, track_meta=False).detach()
    if not bool(torch.isfinite(tensor).all()):
        raise DataError(f"'{name}' holds NaN or infinity, which a pretext task would spread. Mend the image before it is asked about.")
    return tensor


def _refuse_overwriting(item: Mapping[Hashable, Any], answer: Mapping[str, Any]) -> None:
    taken = [key for key in answer if key in item]
    if taken:
        raise ConfigError(
            f"the item has {taken} already, and PretextTaskd would write its answer there. Give it other target_keys and weight_keys, and "
            "PretextLoss the same as target_key and weight_key."
        )


def _answer(batch: PretextBatch) -> dict[str, Tensor]:
    """All that a loss may need, by the keys of an item."""
    given = {TARGET: batch.target, WEIGHT: batch.weight, f"{TARGET}_answerable": batch.answerable}
    further = {f"{TARGET}_{name}": rows for name, rows in batch.extra.items()}
    return {key: rows for key, rows in {**given, **further}.items() if rows is not None}


def _shown(batch: PretextBatch, image: Any, tensor: Tensor) -> Tensor:
    if batch.inputs is not None and len(batch.inputs) > 1:
        return _apart(batch.inputs, tensor)
    shown = _apart(tensor if batch.inputs is None else batch.inputs[0], tensor)
    return convert_to_dst_type(shown, image, dtype=torch.float32)[0] if isinstance(image, MetaTensor) else shown


def _apart(rows: Tensor, image: Tensor) -> Tensor:
    """`rows` in memory of its own: a transform that later works in place must not reach from the image into its answer."""
    return rows.clone() if rows.untyped_storage().data_ptr() == image.untyped_storage().data_ptr() else rows
