"""Batches of crops, read and prepared by threads ahead of the training."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.contracts import Crops
from medssl.volumes.crops.places import CropPlan, LoadOptions, Place, by_slices, channels_of_crops, extent, read_crop
from medssl.volumes.crops.prefetch import Pending, Prefetch
from medssl.volumes.store import Store

Batch = tuple[int, int, Crops]


class BufferPool:
    """Batch buffers of one shape, given out as tensors and taken back when nothing refers to the tensor's memory any more.

    So a batch stays valid as long as somebody holds it, and memory grows only by what is held.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._shape, self._dtype = shape, dtype
        self._free: list[NDArray[Any]] = []
        self.made = 0
        """Buffers that exist."""

    def take(self) -> NDArray[Any]:
        """A buffer whose content is undefined."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = self._make()
        lent = buffer[...]
        weakref.finalize(lent, self._free.append, buffer).atexit = False
        return lent

    def _make(self) -> NDArray[Any]:
        self.made += 1
        made: NDArray[Any] = torch.empty(self._shape, dtype=self._dtype, pin_memory=torch.cuda.is_available()).numpy()
        return made


@dataclass(frozen=True)
class _Filling:
    """A batch that the reader threads are filling, slot by slot."""

    index: range
    images: NDArray[np.float32]
    """(B, C, *size)"""
    labels: NDArray[np.int64] | None
    """(B, *box), with as many sides as the volumes have."""
    body: NDArray[np.bool_] | None
    """(B, *box)"""
    inside: NDArray[np.float32]
    places: dict[int, Place]


def on_device(groups: Iterable[Sequence[Crops]], device: torch.device) -> Iterator[list[Crops]]:
    """The same groups of crops on `device`.

    A copy from pinned memory to a GPU is still under way when the call that began it returns, and the loader's buffer would be
    filled anew as soon as nothing refers to it: the crops on the CPU are held until the device has passed their copies.
    """
    held: deque[tuple[torch.cuda.Event, Sequence[Crops]]] = deque()
    try:
        for group in groups:
            moved = [crops.to(device, non_blocking=True) for crops in group]
            if device.type == "cuda":
                copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                copied.record(torch.cuda.current_stream(device))
                held.append((copied, group))
                while held and held[0][0].query():  # type: ignore[no-untyped-call]
                    held.popleft()
            yield moved
    finally:
        for copied, _ in held:
            copied.synchronize()


class CropLoader:
    """Iterates forever over (step, micro, `Crops`); what a batch holds depends on the seed and its samples' global numbers alone.

    A step has `accumulate` micro batches on each of `world` processes; the index of a sample counts through them all, and its global
    number through all steps. So every volume comes once an epoch however the samples are divided.
    """

    def __init__(
        self,
        store: Store | str,
        options: LoadOptions,
        seed: int,
        accumulate: int = 1,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
        *,
        body: bool = False,
    ) -> None:
        """With `body` the crops say where the body is; labels they have where the store has.

        Raises `ConfigError` where no volume holds the crop, and whatever `Store` raises.
        """
        self.store = store if isinstance(store, Store) else Store(store)
        if self.store is not store:
            self.store.check_finished("a `Store` instead of its path")
        self.plan = CropPlan(self.store, options)
        self.options, self.seed = options, seed
        self.channels = channels_of_crops(self.store, options)
        self._accumulate, self._first, self._rank, self._world = accumulate, first_step, rank, world
        self._images = BufferPool((options.batch, len(self.channels), *options.size), torch.float32)
        self._labels = BufferPool((options.batch, *self.plan.size), torch.int64) if self.store.labelled else None
        self._body = BufferPool((options.batch, *self.plan.size), torch.bool) if body else None
        self._local = threading.local()
        self._prefetch: Prefetch[Batch] = Prefetch(self._begin, options.threads, options.ahead)

    @property
    def waited(self) -> float:
        """Seconds that the loop stood still for data so far."""
        return self._prefetch.waited

    @property
    def buffers(self) -> int:
        """Batch buffers that were made: constant while the loop lets go of its batches."""
        return self._images.made

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self._prefetch.next()

    def close(self) -> None:
        """Stop the reader threads."""
        self._prefetch.close()

    def __enter__(self) -> CropLoader:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _begin(self, number: int, executor: Executor) -> Pending[Batch]:
        steps, micro = divmod(number, self._accumulate)
        step, count = self._first + steps, self.options.batch
        first = (micro * self._world + self._rank) * count
        before = step * count * self._world * self._accumulate
        filling = _Filling(
            range(first, first + count),
            self._images.take(),
            self._labels.take() if self._labels else None,
            self._body.take() if self._body else None,
            np.zeros(count, np.float32),
            {},
        )
        # Submitted first, so a thread is at it or past it before any waits for it.
        places = executor.submit(self.plan.places, self.seed, [before + index for index in filling.index])
        parts = [executor.submit(self._fill, filling, slot, places) for slot in range(count)]
        return parts, lambda: (step, micro, self._crops(filling))

    def _fill(self, filling: _Filling, slot: int, places: Future[list[Place]]) -> None:
        place = places.result()[slot]
        labels, body = (None if array is None else array[slot] for array in (filling.labels, filling.body))
        images = by_slices(filling.images[slot], self.plan)
        filling.inside[slot] = read_crop(self.store, place, images, labels=labels, body=body, scratch=self._scratch())
        filling.places[slot] = place

    def _flat(self, boxes: Tensor) -> Tensor:
        """(B, *box) as crops have it, (B, *size): of slices the middle one. As a tensor: numpy's view would not hold the buffer."""
        return boxes[..., self.plan.size[-1] // 2] if len(self.plan.size) > len(self.options.size) else boxes

    def _scratch(self) -> dict[Any, NDArray[Any]]:
        scratch: dict[Any, NDArray[Any]] | None = getattr(self._local, "scratch", None)
        if scratch is None:
            scratch = self._local.scratch = {}
        return scratch

    def _crops(self, filling: _Filling) -> Crops:
        size, preparation, slab = self.options.size, self.store.preparation, self.options.slab
        places = [filling.places[slot] for slot in range(len(filling.index))]
        volumes = [self.store.volume(place.number) for place in places]
        labels, body = (None if one is None else self._flat(torch.from_numpy(one))[:, None] for one in (filling.labels, filling.body))
        return Crops(
            images=torch.from_numpy(filling.images),
            channels=self.channels,
            index=torch.arange(filling.index.start, filling.index.stop),
            sample=torch.tensor([volume.sample for volume in volumes]),
            patient=torch.tensor([volume.patient for volume in volumes]),
            # Not the volume's number: where a batch draws one volume twice, its groups stay what they are in any division.
            group=torch.arange(filling.index.start, filling.index.stop) // self.options.crops_per_volume,
            affine=torch.from_numpy(np.stack([place.affine(volume, len(size)) for place, volume in zip(places, volumes, strict=True)])),
            extent=torch.tensor([extent(volume) for volume in volumes]),
            rescale=torch.tensor([[line.back for line in volume.lines(preparation)] * slab for volume in volumes]),
            inside=torch.from_numpy(filling.inside),
            axis="slice" if slab > 1 else self.store.manifest.axis,
            body=body,
            labels=labels,
        )
