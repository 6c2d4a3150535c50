"""`make bench-tasks`: what each task's question costs, beside a copy of the batch and beside peers, and a loss beside MONAI's.

On 4 x 1 x 96^3, one thread, CPU time of `make`. Peers work sample by sample; torchio is one where it is installed (`pip install torchio`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from medssl_consistency.simclr import nt_xent
from torch import Tensor

from benchmarks.measure import alternately, call_cost
from benchmarks.pipelines import bezier, local_shuffle, painted
from benchmarks.report import Row, publish
from medssl.config import check
from medssl.contracts import Crops, Draw, NetworkInfo, PretextTask
from medssl.plugins import Plugins
from medssl.testing import make_crops, make_info

SIDE, BATCH = 96, 4
SIZE = (SIDE,) * 3
COPIES = {
    **dict.fromkeys(["inpainting", "context-encoder", "rotation"], 4.0),
    **dict.fromkeys(["jigsaw", "relative-position", "volume-contrast", "slice-order", "order-verification"], 4.0),
}
"""How many copies of the batch masks, rotations and tiles may cost."""
OTHERS = 40.0
"""What any other task may: smooth noise, curves and views are more than moving voxels."""
CHANNELS = {"colorization": 3, "cross-modality": 2, "frame-order": 4}
CONTRASTED = (1024, 128)
Call = Callable[[], Any]


def make_of(name: str, crops: Crops, plugins: Plugins, **options: Any) -> Call:
    """A call that asks the task's question about the crops, with other random numbers each time."""
    task = task_of(name, crops, plugins, **options)
    step = iter(range(10**9))
    return lambda: task.make(crops, Draw(0, next(step), crops.index, name))


def task_of(name: str, crops: Crops, plugins: Plugins, **options: Any) -> PretextTask:
    """The task on a network that halves three times."""
    cls = plugins.task(name)
    return cls(check(cls.Options, options), info_of(name, crops))


def info_of(name: str, crops: Crops) -> NetworkInfo:
    """A network of which tokens can be left out for the one task that does so."""
    return make_info(crops.spatial_dims, crops.images.shape[1], 8, crop=crops.size, tokens=name == "masked-autoencoder")


def each(images: Tensor, call: Callable[[Tensor], Any]) -> Call:
    """A peer, which takes one sample after the other."""
    return lambda: [call(image) for image in images]


def task_rows(plugins: Plugins, repeat: int) -> list[Row]:
    """`make` of every installed task beside a copy of its crops."""
    rows = []
    for name in sorted(plugins.tasks()):
        crops = make_crops(BATCH, SIZE, CHANNELS.get(name, 1))
        spent = _milliseconds({"ours": make_of(name, crops, plugins), "copy": crops.images.clone}, repeat)
        rows.append(Row(f"{name}: make", spent["ours"], spent["copy"], "a copy of the batch", "CPU ms", COPIES.get(name, OTHERS)))
    return rows


def peer_rows(plugins: Plugins, repeat: int) -> list[Row]:
    """Questions that peers have too, each beside the best of them in the same run."""
    crops = make_crops(BATCH, SIZE)
    rows = []
    for what, name, options, peers, bar in _peers(crops.images):
        spent = _milliseconds({"ours": make_of(name, crops, plugins, **options), **peers}, repeat)
        best = min(peers, key=lambda peer: spent[peer])
        rows.append(Row(what, spent["ours"], spent[best], f"{best}, the best of {', '.join(peers)}", "CPU ms", bar))
    return rows


def loss_rows(repeat: int) -> list[Row]:
    """`simclr` on a large batch of embeddings."""
    ours, peer = contrast(*CONTRASTED)
    spent = _milliseconds({"ours": ours, "peer": peer}, max(1, repeat // 2))
    return [Row("simclr, 1024 x 128", spent["ours"], spent["peer"], "MONAI ContrastiveLoss", "CPU ms", 1 / 100)]


def contrast(batch: int, width: int) -> tuple[Call, Call]:
    """NT-Xent of two views by us and by MONAI."""
    from monai.losses import ContrastiveLoss

    draw = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, batch, width, generator=draw)
    theirs, patient = ContrastiveLoss(temperature=0.5), torch.arange(batch)
    return lambda: nt_xent(torch.stack([one, other], dim=1), patient, 0.5), lambda: theirs(one, other)


def _peers(images: Tensor) -> list[tuple[str, str, dict[str, Any], Mapping[str, Call], float]]:
    """What is asked, by which task with which options, the peers' calls, and the bar."""
    from monai.transforms import RandCoarseDropout, RandCoarseShuffle, RandHistogramShift, RandRotate90

    random = np.random.default_rng(0)
    unit = ((images - images.min()) / (images.max() - images.min())).contiguous()
    holes = {"prob": 1.0, "holes": 5, "spatial_size": SIDE // 6, "max_spatial_size": SIDE // 3}
    large = {"prob": 1.0, "holes": 5, "spatial_size": SIDE * 3 // 7, "max_spatial_size": SIDE * 4 // 7}
    blocks = (SIDE // 8) ** 3 // 2
    only = {"curve": 0.0, "shuffle": 0.0, "paint": 0.0}

    def genesis(step: Callable[..., Any], **more: Any) -> Call:
        return each(unit, lambda image: step(image[0].numpy(), random, **more))

    def masked(image: Tensor) -> Tensor:
        mask = np.kron(random.random([-(-side // 8) for side in SIZE]) < 0.6, np.ones((8, 8, 8), bool))
        return torch.where(torch.from_numpy(mask), 0.0, image)

    hole = RandCoarseDropout(prob=1.0, holes=1, spatial_size=SIDE // 2)
    inside, outside = RandCoarseDropout(dropout_holes=True, **holes), RandCoarseDropout(dropout_holes=False, **large)
    shuffle, shift = RandCoarseShuffle(prob=1.0, holes=blocks, spatial_size=8), RandHistogramShift(prob=1.0)
    swaps = _swaps()
    rows: list[tuple[str, str, dict[str, Any], Mapping[str, Call], float]] = [
        ("block mask", "inpainting", {}, {"nnssl's mask": each(images, masked)}, 1.0),
        ("one hole", "context-encoder", {}, {"MONAI": each(images, hole)}, 1.0),
        ("rotation by right angles", "rotation", {}, {"MONAI": each(images, RandRotate90(prob=1.0, max_k=3))}, 1.0),
        (
            "in-painting",
            "restoration",
            {**only, "paint": 1.0, "inner": 1.0},
            {"MONAI": each(images, inside), "Genesis": genesis(painted, inner=True)},
            1.0,
        ),
        (
            "out-painting",
            "restoration",
            {**only, "paint": 1.0, "inner": 0.0},
            {"MONAI": each(images, outside), "Genesis": genesis(painted, inner=False)},
            1 / 7,
        ),
        ("intensity curve", "restoration", {**only, "curve": 1.0}, {"MONAI": each(unit, shift), "Genesis": genesis(bezier)}, 1 / 7),
        (
            "local shuffle",
            "restoration",
            {**only, "shuffle": 1.0},
            {"MONAI": each(images, shuffle), "Genesis": genesis(local_shuffle)},
            1 / 7,
        ),
    ]
    return rows if swaps is None else [*rows, ("jigsaw", "jigsaw", {}, {"torchio": each(images, swaps)}, 1 / 7)]


def _swaps() -> Callable[[Tensor], Any] | None:
    if find_spec("torchio") is None:
        return None
    import torchio

    # Eight cells change places by four swaps at least.
    swaps: Callable[[Tensor], Any] = torchio.RandomSwap(patch_size=SIDE // 2 - 8, num_iterations=4)
    return swaps


def _milliseconds(calls: Mapping[str, Call], repeat: int) -> dict[str, float]:
    for call in calls.values():
        call()
    found = alternately({name: (lambda call=call: call_cost(call)) for name, call in calls.items()}, repeat)
    return {name: 1000 * one.cpu for name, one in found.items()}


def main() -> None:
    """Measure, print the table, write `build/bench/tasks.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=9, help="runs of which the median is taken")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    plugins = Plugins.load()
    with torch.no_grad():
        rows = [*task_rows(plugins, wanted.repeat), *peer_rows(plugins, wanted.repeat), *loss_rows(wanted.repeat)]
    print(f"written to {publish('tasks', rows)}")


if __name__ == "__main__":
    main()
