"""`make bench-volumes`: what crops, batches, writing, resampling and opening cost, beside a copy in memory and beside peers.

On a made CT of 512 x 512 x 300 voxels, int16, page cache warm, two CPUs. All but the row of the second thread are CPU time.
torchio and batchgeneratorsv2 are peers where they are installed (`pip install torchio batchgenerators batchgeneratorsv2`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import count, cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import blosc2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from benchmarks.augmentations import augmentation_rows, missing
from benchmarks.measure import Spent, alternately, bind, call_cost, whole_cost
from benchmarks.pipelines import pipeline_rows
from benchmarks.report import Row, publish
from medssl.volumes import CropLoader, CropPlan, DataOptions, Incoming, Store, write_store
from medssl.volumes.crops.places import read_crop
from medssl.volumes.grid import resample
from medssl.volumes.store.frames import encode
from medssl.volumes.store.manifest import MANIFEST, Manifest
from medssl.volumes.store.reading import volume_path
from medssl.volumes.store.table import SCHEMA

CPUS = 2
SIDES = (512, 512, 300)
SIZE = (96, 96, 96)
BATCH = 4
MANY = 100_000
LINKS = 60_000
"""Names that a file has at most: ext4 allows some 65,000."""
AFFINE = np.diag([0.7, 0.7, 1.0, 1.0])
_MEMORY = """
import json, re, sys
from itertools import islice
from pathlib import Path
from medssl.volumes import CropLoader, DataOptions, Store
def now():
    return int(re.search(r"VmRSS:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
with CropLoader(Store(sys.argv[1]), DataOptions(store=sys.argv[1], size=(32, 32, 32), batch=4), 0) as loader:
    found = []
    for count in (1000, int(sys.argv[2])):
        for _ in islice(loader, count):
            pass
        found.append(now())
print(json.dumps(found))
"""
_OPENING = """
import json, re, sys
from pathlib import Path
from time import process_time
from medssl.volumes import Store
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
before, start = peak(), process_time()
Store(sys.argv[1]).volume(7)
print(json.dumps([process_time() - start, (peak() - before) / 1024]))
"""

Array = NDArray[Any]
Corners = list[tuple[int, ...]]


def made_ct() -> Array:
    """A body of soft tissue with structures in air, with the noise of a scanner."""
    random = np.random.default_rng(0)
    x, y, z = (np.linspace(-1, 1, side, dtype=np.float32) for side in SIDES)
    inside = (x[:, None] / 0.8) ** 2 + (y[None] / 0.6) ** 2 < 1
    volume = np.empty(SIDES, np.int16)
    for number, height in enumerate(z):
        tissue = 40 + 60 * np.sin(9 * x[:, None] + 3 * height) * np.sin(8 * y[None] - 2 * height)
        noise = random.normal(0, 12, SIDES[:2])
        volume[:, :, number] = np.where(inside, tissue + noise, -1000 + 0.1 * noise)
    return volume


def crop_rows(volume: Array, store: Store, repeat: int) -> list[Row]:
    """One crop: from the store, as a copy in memory, and from a file as nnssl's rule would write it."""
    corners = _corners(50)
    peer = blosc2.asarray(
        volume[None].astype(np.float32),
        chunks=(1, 64, 64, 64),
        blocks=(1, 16, 16, 16),
        cparams=blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=8, nthreads=1),
        dparams=blosc2.DParams(nthreads=1),
    )
    out = np.empty((1, *SIZE), np.int16)
    found = alternately(
        {
            "ours": _each(corners, lambda corner: store.read(0, corner, SIZE, out)),
            "copy": _each(corners, lambda corner: _copied(volume, corner, out[0])),
            "nnssl": _each(corners, lambda corner: peer[(slice(None), *_box(corner))]),
        },
        repeat,
    )
    ours, copy, nnssl = (1000 * found[name].cpu / len(corners) for name in ("ours", "copy", "nnssl"))
    return [
        Row("crop from the store alone", ours, copy, "strided copy in memory", "CPU ms", 3.0),
        Row("crop from the store alone", ours, nnssl, "blosc2 as by nnssl's rule: float32, ZSTD-8, blocks 16^3", "CPU ms", 1 / 5),
    ]


def loader_rows(volume: Array, store: Store, repeat: int) -> list[Row]:
    """One prepared sample in the loop: our threads, the least it can cost, and DataLoader's worker processes doing the same."""
    batches, corners = 40, _corners(40 * BATCH)
    options = DataOptions(store=str(store.folder), size=SIZE, batch=BATCH, threads=2)
    raw, images = np.empty(SIZE, np.int16), np.zeros((4 * BATCH, *SIZE), np.float32)
    slots = cycle(images)

    def floor(corner: tuple[int, ...]) -> None:
        """Into one of as many batches as are under way in a loop: each is another part of memory.

        Into one image, which then never leaves the processor's cache, the same copy costs a quarter to a third less.
        """
        _copied(volume, corner, raw)
        np.copyto(next(slots), raw)

    place = CropPlan(store, options).place
    image = np.empty((1, *SIZE), np.float32)
    scratch: dict[Any, Array] = {}
    samples = count()

    def alone(_: tuple[int, ...]) -> None:
        read_crop(store, place(0, next(samples)), image, scratch=scratch)

    found = alternately(
        {
            "ours": lambda: whole_cost(lambda: _ours(store, options, batches)),
            "floor": _each(corners, floor),
            "torch": lambda: whole_cost(lambda: _torchs(store, options, batches)),
            "alone": _each(corners, alone),
        },
        repeat,
    )
    ours, least, peer, reading = (1000 * found[name].cpu / (batches * BATCH) for name in ("ours", "floor", "torch", "alone"))
    return [
        Row("prepared crop in the loop, batches of 4", ours, least, "strided copy and int16 -> float32, into 16 images", "CPU ms", 3.5),
        Row("prepared crop in the loop, batches of 4", ours, peer, "DataLoader, 2 workers, the same crops", "CPU ms", 1 / 2.2),
        Row("bringing a prepared crop to the loop", ours - reading, 1.0, "a millisecond", "CPU ms", 1.0),
    ]


def thread_rows(store: Store, repeat: int) -> list[Row]:
    """Wall time a crop with one reader thread and with two."""

    def timed(threads: int) -> Spent:
        options = DataOptions(store=str(store.folder), size=SIZE, batch=BATCH, threads=threads)
        with CropLoader(store, options, 0) as loader:
            _ = list(islice(loader, 3))
            start = perf_counter()
            for _ in islice(loader, 40):
                pass
            return Spent(0.0, (perf_counter() - start) / (40 * BATCH))

    # The best of many short runs: another job on the machine only ever makes one slower.
    one, two = (1000 * min(timed(threads).wall for _ in range(4 * repeat)) for threads in (1, 2))
    return [Row("crop with a second reader thread, on a quiet machine", two, one, "one reader thread", "wall ms", 1 / 1.8)]


def ingest_rows(volume: Array, repeat: int) -> list[Row]:
    """Resampling to 1.5 mm, and compressing."""
    from monai.data import MetaTensor
    from monai.transforms import Spacing

    # As an index reads a series: slices one behind the other.
    series = np.asfortranarray(volume)
    spacing = Spacing(pixdim=(1.5, 1.5, 1.5), mode="bilinear")
    image = MetaTensor(torch.from_numpy(volume.astype(np.float32))[None], affine=torch.from_numpy(AFFINE))
    found = alternately(
        {
            "ours": lambda: call_cost(lambda: resample(series, AFFINE, (1.5, 1.5, 1.5))),
            "monai": lambda: call_cost(lambda: spacing(image)),
            "write": lambda: call_cost(lambda: encode(volume[None, :, :, :128])),
            "zstd": lambda: call_cost(lambda: _zstd8(volume[None, :, :, :128])),
        },
        repeat,
    )
    return [
        Row("resampling to 1.5 mm, anti-aliased", found["ours"].cpu, found["monai"].cpu, "MONAI Spacing, which aliases", "CPU s", 1 / 10),
        Row("compressing 512 x 512 x 128", found["write"].cpu, found["zstd"].cpu, "blosc2 with ZSTD-8", "CPU s", 1 / 5),
    ]


def opening_rows(folder: Path, repeat: int) -> list[Row]:
    """A store of 100,000 volumes: seconds until the first volume is known, and memory."""
    (folder / "table").mkdir(parents=True)
    (folder / MANIFEST).write_text(Manifest().model_dump_json())
    pq.write_table(_many(), folder / "table" / "part-0.parquet")
    words = [sys.executable, "-c", _OPENING, str(folder)]
    runs = [json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout) for _ in range(repeat)]
    seconds, memory = (median(run[number] for run in runs) for number in (0, 1))
    return [
        Row(f"opening {MANY:,} volumes", seconds, 1.0, "a second", "CPU s", 1.0),
        Row(f"opening {MANY:,} volumes", memory, 300.0, "300 MB", "MB more", 1.0),
    ]


def memory_rows(store: Store, folder: Path, batches: int = 9_000, volumes: int = MANY) -> list[Row]:
    """What a process holds after 10,000 batches, beside what it held after 1,000: of one volume, and of as many as come."""
    many = many_volumes(folder, volumes)
    rows = []
    for what, one in (("one volume", store.folder), (f"{volumes:,} volumes", many)):
        words = [sys.executable, "-c", _MEMORY, str(one), str(batches)]
        before, after = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        rows.append(Row(f"memory after {batches + 1000:,} batches of 4 x 32^3 from {what}", after, before, "after 1,000", "MB", 1.05))
    return rows


def many_volumes(folder: Path, count: int) -> Path:
    """A store of `count` volumes of 48^3, which are a few files by many names."""
    volume = np.random.default_rng(0).normal(0, 100, (48, 48, 48)).astype(np.int16)
    write_store([Incoming("v", "p", "s", "CT", lambda: (volume, AFFINE))], folder, workers=1)
    (table,) = (folder / "table").iterdir()
    row = pq.read_table(table).to_pylist()[0]
    numbers = [f"{number:020x}" for number in range(count)]
    rows = [row | {"volume": f"v{number}", "patient": f"p{number}", "content": f"{number:0>32}"} for number in numbers]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), table)
    file = volume_path(folder, "v")
    for place, number in enumerate(numbers):
        own = volume_path(folder, f"v{number}")
        own.parent.mkdir(exist_ok=True)
        if place % LINKS:
            own.hardlink_to(file)
        else:
            file = Path(shutil.copyfile(file, own))
    return folder


def _many() -> pa.Table:
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row |= {"series": "s", "modality": "CT", "channels": ["CT"], "modalities": ["CT"], "arrays": [0], "shape": [512, 512, 300]}
    row |= {"spacing": [0.7, 0.7, 1.0], "affine": AFFINE.reshape(-1).tolist(), "statistics": [0.0, 1.0, -1.0, 1.0, -0.5, -1.0]}
    row |= {"box": [0, 0, 0, 512, 512, 300], "points": np.zeros((128, 3), "<u2").tobytes(), "bytes": 1, "dtype": "i2"}
    numbers = np.random.default_rng(0).integers(0, 2**63, (MANY, 2))
    rows = [
        row | {"volume": f"v{number:020x}", "patient": f"p{number // 2:020x}", "content": f"{a:016x}{b:016x}"}
        for number, (a, b) in enumerate(numbers.tolist())
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def _corners(count: int) -> Corners:
    random = np.random.default_rng(1)
    return [tuple(int(random.integers(0, side - want + 1)) for side, want in zip(SIDES, SIZE, strict=True)) for _ in range(count)]


def _box(corner: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(c, c + side) for c, side in zip(corner, SIZE, strict=True))


def _copied(volume: Array, corner: tuple[int, ...], out: Array) -> None:
    np.copyto(out, volume[_box(corner)])


def _each(corners: Corners, call: Callable[[tuple[int, ...]], object]) -> Callable[[], Spent]:
    return lambda: call_cost(lambda: [call(corner) for corner in corners])


def _ours(store: Store, options: DataOptions, batches: int) -> None:
    with CropLoader(store, options, 0) as loader:
        for _ in islice(loader, batches):
            pass


class _Crops(Dataset[torch.Tensor]):
    """The same crops, one an item."""

    def __init__(self, store: Store, options: DataOptions, count: int) -> None:
        self.plan, self.count = CropPlan(store, options), count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, sample: int) -> torch.Tensor:
        image = np.empty((1, *SIZE), np.float32)
        read_crop(self.plan.store, self.plan.place(0, sample), image)
        return torch.from_numpy(image)


def _torchs(store: Store, options: DataOptions, batches: int) -> None:
    for _ in DataLoader(_Crops(store, options, batches * BATCH), batch_size=BATCH, num_workers=2):
        pass


def _zstd8(array: Array) -> Any:
    return blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=(1, 64, 64, 64),
        blocks=(1, 16, 32, 32),
        cparams=blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=8, nthreads=1),
    ).to_cframe()


def _groups(folder: Path, repeat: int) -> dict[str, Callable[[], list[Row]]]:
    volume = made_ct()
    write_store([Incoming("ct", "p", "s", "CT", lambda: (volume, AFFINE))], folder / "one", workers=1)
    store = Store(folder / "one")
    size = store.path(0).stat().st_size
    return {
        "disk": lambda: [Row("a volume on disk", size / 2**20, volume.nbytes / 2**20, "raw int16", "MB", 0.5)],
        "crops": lambda: crop_rows(volume, store, repeat),
        "loop": lambda: loader_rows(volume, store, repeat),
        "threads": lambda: thread_rows(store, repeat),
        "ingest": lambda: ingest_rows(volume, max(1, repeat // 2)),
        "opening": lambda: opening_rows(folder / "many", repeat),
        "memory": lambda: memory_rows(store, folder / "linked"),
        "pipelines": lambda: pipeline_rows(volume, store, repeat),
        "augmentations": lambda: augmentation_rows(repeat),
    }


GROUPS = ("disk", "crops", "loop", "threads", "ingest", "opening", "memory", "pipelines", "augmentations")


def main() -> None:
    """Measure, print the table, write `build/bench/volumes.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="runs of which the median is taken")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="groups of rows; all where none is named")
    wanted = parser.parse_args()
    if bind(CPUS) < CPUS:
        sys.exit(f"bench-volumes needs {CPUS} CPUs: a second reader thread has to run somewhere.")
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="medssl-bench-") as folder:
        groups = _groups(Path(folder), wanted.repeat)
        rows = [row for name in wanted.only for row in groups[name]()]
    if missing():
        print(f"not installed, and so no peers: {', '.join(missing())}")
    print(f"written to {publish('volumes', rows)}")


if __name__ == "__main__":
    main()
