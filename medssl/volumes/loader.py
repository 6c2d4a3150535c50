"""Batches of crops, read and prepared by threads ahead of the training."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medssl.contracts import Crops
from medssl.volumes.crops import CropPlan, DataOptions, Place, extent, read_crop
from medssl.volumes.prefetch import Pending, Prefetch
from medssl.volumes.store import Store

Batch = tuple[int, int, Crops]


class BufferPool:
    """Batch buffers of one shape, given out as tensors and taken back when nothing refers to the tensor's memory any more.

    So a batch stays valid as long as somebody holds it, and memory grows only by what is held.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._free: list[NDArray[np.float32]] = []
        self.made = 0
        """Buffers that exist."""

    def take(self) -> NDArray[np.float32]:
        """A buffer whose content is undefined."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = self._make()
        lent = buffer[...]
        weakref.finalize(lent, self._free.append, buffer).atexit = False
        return lent

    def _make(self) -> NDArray[np.float32]:
        self.made += 1
        if torch.cuda.is_available():
            pinned: NDArray[np.float32] = torch.empty(self._shape, dtype=torch.float32, pin_memory=True).numpy()
            return pinned
        return np.empty(self._shape, np.float32)


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
        options: DataOptions,
        seed: int,
        accumulate: int = 1,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
        *,
        body: bool = False,
    ) -> None:
        """With `body` the crops say where the body is.

        Raises `ConfigError` where no volume holds the crop, and whatever `Store` raises.
        """
        self.store = store if isinstance(store, Store) else Store(store)
        self.plan = CropPlan(self.store, options)
        self.options, self.seed = options, seed
        self.channels = self.store.channels
        self._body = body
        self._accumulate, self._first, self._rank, self._world = accumulate, first_step, rank, world
        self._pool = BufferPool((options.batch, len(self.channels), *self.plan.size))
        self._local = threading.local()
        self._prefetch: Prefetch[Batch] = Prefetch(self._begin, options.threads, options.ahead)

    @property
    def waited(self) -> float:
        """Seconds that the loop stood still for data so far."""
        return self._prefetch.waited

    @property
    def buffers(self) -> int:
        """Batch buffers that were made: constant while the loop lets go of its batches."""
        return self._pool.made

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
        step = self._first + steps
        first = (micro * self._world + self._rank) * self.options.batch
        index = range(first, first + self.options.batch)
        before = step * self.options.batch * self._world * self._accumulate
        buffer = self._pool.take()
        places: list[Place | None] = [None] * len(index)
        inside = np.zeros(len(index), np.float32)
        body = np.empty((len(index), *self.plan.size), np.bool_) if self._body else None

        def fill(slot: int) -> None:
            place = self.plan.place(self.seed, before + index[slot])
            inside[slot] = read_crop(self.store, place, buffer[slot], self._scratch(), None if body is None else body[slot])
            places[slot] = place

        parts = [executor.submit(fill, slot) for slot in range(len(index))]
        return parts, lambda: (step, micro, self._crops(buffer, places, inside, body, index))

    def _scratch(self) -> dict[Any, NDArray[Any]]:
        scratch: dict[Any, NDArray[Any]] | None = getattr(self._local, "scratch", None)
        if scratch is None:
            scratch = self._local.scratch = {}
        return scratch

    def _crops(
        self,
        buffer: NDArray[np.float32],
        places: list[Place | None],
        inside: NDArray[np.float32],
        body: NDArray[np.bool_] | None,
        index: range,
    ) -> Crops:
        size, prepare = self.options.size, self.store.preparation.line
        found = [place for place in places if place is not None]
        volumes = [self.store.volume(place.number) for place in found]
        return Crops(
            images=torch.from_numpy(buffer).reshape(*buffer.shape[:2], *size),
            channels=self.channels,
            index=torch.arange(index.start, index.stop),
            sample=torch.tensor([volume.sample for volume in volumes]),
            patient=torch.tensor([volume.patient for volume in volumes]),
            group=torch.tensor([place.number for place in found]),
            affine=torch.from_numpy(np.stack([p.affine(v, len(size)) for p, v in zip(found, volumes, strict=True)])),
            extent=torch.tensor([extent(volume) for volume in volumes]),
            rescale=torch.tensor([[prepare(v.statistics, v.modality).back] * buffer.shape[1] for v in volumes], dtype=torch.float32),
            inside=torch.from_numpy(inside),
            body=None if body is None else torch.from_numpy(body).reshape(len(found), 1, *size),
        )
