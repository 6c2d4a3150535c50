"""The loader: the same batches for any threads, restart or ranks; nothing hangs; memory is reused and safe."""

from __future__ import annotations

import gc
import shutil
import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from medssl.contracts import Crops
from medssl.errors import MedsslError, StoreError
from medssl.volumes import CropLoader, DataOptions, Store, crop_at, on_device
from medssl.volumes.crops.prefetch import Prefetch
from medssl.volumes.store.frames import Damaged


def options(folder: Path, **changes: object) -> DataOptions:
    return DataOptions.model_validate({"store": str(folder), "size": (12, 10, 8), "batch": 4, "crops_per_volume": 2} | changes)


def batches(folder: Path, count: int, first: int = 0, **changes: object) -> list[tuple[int, int, Crops]]:
    with CropLoader(Store(folder), options(folder, **changes), 11, first_step=first) as loader:
        return list(islice(loader, count))


def same(one: Crops, other: Crops) -> bool:
    tensors = [name for name, value in vars(one).items() if isinstance(value, torch.Tensor)]
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)


def test_threads_and_restarts_change_nothing(store_folder: Path) -> None:
    one, many, later = batches(store_folder, 8, threads=1), batches(store_folder, 8, threads=5), batches(store_folder, 3, first=5)
    assert [step for step, _, _ in one] == list(range(8))
    assert all(same(a[2], b[2]) for a, b in zip(one, many, strict=True))
    assert all(same(a[2], b[2]) for a, b in zip(one[5:], later, strict=True))
    assert not torch.equal(one[0][2].images, one[1][2].images)


def test_ranks_and_accumulation_count_one_global_index(store_folder: Path) -> None:
    def index(rank: int, micro: int) -> torch.Tensor:
        with CropLoader(store_folder.as_posix(), options(store_folder), 11, accumulate=2, rank=rank, world=2) as loader:
            found = list(islice(loader, 4))
        assert [(step, part) for step, part, _ in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        crops = found[micro][2]
        for slot, number in enumerate(crops.index.tolist()):
            expected = crop_at(Store(store_folder), options(store_folder), 11, number)
            assert np.array_equal(crops.images[slot].numpy(), expected.image)
        return crops.index

    seen = torch.cat([index(0, 0), index(1, 0), index(0, 1), index(1, 1)])
    assert seen.tolist() == list(range(16))


def test_a_batch_says_where_it_comes_from(store_folder: Path) -> None:
    store = Store(store_folder)
    _, _, crops = batches(store_folder, 1)[0]
    assert crops.images.shape == (4, 1, 12, 10, 8)
    assert crops.images.dtype == torch.float32
    assert crops.channels == ("MR",)
    names = {volume.sample: volume for volume in store.volumes}
    for slot in range(4):
        volume = names[int(crops.sample[slot])]
        assert int(crops.patient[slot]) == volume.patient
        assert crops.extent[slot].tolist() == [side * mm for side, mm in zip(volume.shape, volume.spacing, strict=True)]
        assert crops.spacing[slot].tolist() == list(volume.spacing)
    assert crops.group[0] == crops.group[1] != crops.group[2]
    assert {crops.index.dtype, crops.sample.dtype, crops.group.dtype} == {torch.int64}
    assert crops.body is crops.labels is None
    flat = batches(store_folder, 1, size=(12, 10))[0][2]
    assert flat.images.shape == (4, 1, 12, 10)
    assert flat.spacing.shape == (4, 2)
    assert flat.affine.shape == (4, 3, 3)


def test_a_held_batch_is_never_overwritten(store_folder: Path) -> None:
    with CropLoader(Store(store_folder), options(store_folder), 3) as loader:
        held = [crops.images[1:2] for _, _, crops in islice(loader, 12)]
        copies = [images.clone() for images in held]
        for _ in islice(loader, 12):
            pass
        assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))


def test_buffers_are_reused(store_folder: Path) -> None:
    with CropLoader(Store(store_folder), options(store_folder, ahead=2), 3) as loader:
        for _ in islice(loader, 60):
            pass
        gc.collect()
        assert loader.buffers <= 5
        assert loader.waited > 0


class SlowGpu:
    """Copies whose end is told by `done`, as events of a GPU would."""

    type = "cuda"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copies: list[dict[str, bool]] = []
        gpu = self

        class Event:
            def record(self, stream: object) -> None:
                self.copy = {"done": False, "waited": False}
                gpu.copies.append(self.copy)

            def query(self) -> bool:
                return self.copy["done"]

            def synchronize(self) -> None:
                self.copy["waited"] = True

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
        monkeypatch.setattr(Crops, "to", lambda crops, device, non_blocking: replace(crops, images=crops.images.clone()))


def test_a_buffer_is_not_filled_anew_while_a_gpu_copies_it(store_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SlowGpu(monkeypatch)
    with CropLoader(Store(store_folder), options(store_folder, threads=1, ahead=1), 3) as loader:
        moved = on_device(([crops] for _, _, crops in loader), gpu)  # type: ignore[arg-type]
        for _ in range(20):
            next(moved)
        gc.collect()
        stuck = loader.buffers
        assert stuck >= 20
        for copy in gpu.copies:
            copy["done"] = True
        for _ in range(12):
            next(moved)
            gpu.copies[-1]["done"] = True
        gc.collect()
        assert loader.buffers <= stuck + 2
        gpu.copies[-1]["done"] = False
        moved.close()
        assert gpu.copies[-1]["waited"]


def test_on_a_cpu_nothing_is_held(store_folder: Path) -> None:
    with CropLoader(Store(store_folder), options(store_folder, ahead=1), 3) as loader:
        for _ in islice(on_device(([crops] for _, _, crops in loader), torch.device("cpu")), 30):
            pass
        gc.collect()
        assert loader.buffers <= 5


def test_deleted_volumes_end_in_one_clear_error(tmp_path: Path, store_folder: Path) -> None:
    shutil.copytree(store_folder, tmp_path / "s")
    loader = CropLoader(Store(tmp_path / "s"), options(tmp_path / "s"), 0)
    shutil.rmtree(tmp_path / "s" / "volumes")
    with pytest.raises(MedsslError, match="is gone"):
        for _ in islice(loader, 50):
            pass
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_a_damaged_volume_is_named_and_never_used(tmp_path: Path, store_folder: Path) -> None:
    shutil.copytree(store_folder, tmp_path / "s")
    path = tmp_path / "s" / "volumes" / "v2.b2nd"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (damaged,) = (volume.sample for volume in Store(tmp_path / "s").volumes if volume.volume == "v2")
    with CropLoader(Store(tmp_path / "s"), options(tmp_path / "s"), 0) as loader, pytest.raises(Damaged, match=r"v2\.b2nd"):
        for _, _, crops in islice(loader, 50):
            assert damaged not in crops.sample.tolist()


def test_whatever_a_reader_raises_surfaces_and_threads_end(store_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    store = Store(store_folder)
    loader = CropLoader(store, options(store_folder, threads=3), 0)
    next(loader)
    monkeypatch.setattr(store, "read", lambda *_: (_ for _ in ()).throw(ZeroDivisionError("deep inside")))
    with pytest.raises(ZeroDivisionError, match="deep inside"):
        for _ in islice(loader, 20):
            pass
    assert threading.active_count() == before


def test_waited_time_is_counted() -> None:
    prefetch: Prefetch[int] = Prefetch(lambda number, pool: ([pool.submit(time.sleep, 0.02)], lambda: number), 1, 1)
    assert [prefetch.next() for _ in range(3)] == [0, 1, 2]
    assert prefetch.waited > 0.03
    prefetch.close()
    prefetch.close()


def test_a_store_of_mixed_channels_is_refused(store_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(store_folder)
    monkeypatch.setattr(store, "column", lambda name: [["T1"], ["T1", "T2"]])
    with pytest.raises(StoreError, match="different numbers of channels"):
        CropLoader(store, options(store_folder), 0)
