"""Which crops a network takes, worked out before training, and what tasks may know of the network.

The answer is measured by running the network's skeleton, so it holds for any network, and says what training would meet: sides
that cannot be halved, an output of another size, or an encoder's end of one voxel, which normalisation layers refuse.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from medssl.contracts import Level, NetworkInfo
from medssl.errors import NetworkError
from medssl.networks.probe import Skeleton, first_line, fixed_size, run, shown, skeleton_of
from medssl.networks.spec import NetworkSpec, SpecKey
from medssl.networks.trunk import Trunk
from medssl.plugins import Plugins

ONE_VOXEL = ("Expected more than 1 spatial element", "Expected more than 1 value per channel")
UNEQUAL = ("must match the size", "Sizes of tensors must match", "Attempting to broadcast")
_STEPS = sorted({odd * 2**twos for odd in (1, 3, 5, 9, 15) for twos in range(8)}, key=lambda step: (step & (step - 1) != 0, step))
"""Steps between allowed sides, in the order tried: strides are powers of two in almost every network."""


def network_info(spec: NetworkSpec, plugins: Plugins | None = None, crop: Sequence[int] | None = None) -> NetworkInfo:
    """Widths and strides measured on a dry run without values, on `crop` where it is known and the network takes it whole."""
    return _measured(_Known.of(spec, plugins), tuple(crop) if crop is not None else None)


@dataclass(frozen=True)
class _Known:
    """What every measure depends on: the specification, and of the plugins the functions that say where an encoder ends."""

    key: SpecKey
    tellers: tuple[Any, ...]
    plugins: Plugins = field(compare=False)

    @classmethod
    def of(cls, spec: NetworkSpec, plugins: Plugins | None) -> _Known:
        loaded = plugins if plugins is not None else Plugins.load()
        tellers = tuple(implementation.function for implementation in loaded.hook.medssl_encoder_end.get_hookimpls())
        return cls(SpecKey(spec), tellers, loaded)


@lru_cache(maxsize=64)
def _measured(known: _Known, crop: tuple[int, ...] | None) -> NetworkInfo:
    spec, plugins = known.key.spec, known.plugins
    skeleton = skeleton_of(spec)
    size = crop if crop is not None and crop_problem(spec, crop, 2) is None else skeleton.base
    trunk = Trunk(skeleton.network, spec, plugins)
    try:
        images = torch.zeros((2, spec.in_channels, *size), device=skeleton.device)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = trunk(images, set(trunk.features) - {"output", "class_token"})
    finally:
        trunk.close()
    end, tokens = found.get("encoder_end"), found.get("tokens")
    if end is not None and end.dim() != spec.spatial_dims + 2:
        raise NetworkError(
            f"the encoder's end of {spec} has shape {tuple(end.shape)}, which is no grid of {spec.spatial_dims} sides. "
            "Name another submodule: network.encoder_end: NAME"
        )
    levels = [found[name] for name in trunk.features if name.startswith("level ")]
    dense = found.get("feature_map")
    return NetworkInfo(
        spatial_dims=spec.spatial_dims,
        channels=spec.in_channels,
        embedding_width=int(end.shape[1]) if end is not None else 0,
        feature_width=int(dense.shape[1]) if dense is not None else 0,
        strides=_strides(end, size) if end is not None else (),
        feature_strides=_strides(dense, size) if dense is not None else (),
        levels=tuple(Level(int(level.shape[1]), _strides(level, size)) for level in levels),
        token_grid=tuple(int(side) for side in end.shape[2:]) if end is not None and tokens is not None else (),
        class_token=trunk.has_class_token,
        crop=crop,
    )


def _strides(grid: Tensor, size: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(1, side // cells) for side, cells in zip(size, grid.shape[2:], strict=True))


def check_crop(
    spec: NetworkSpec, size: Sequence[int], batch: int = 1, needs: Collection[str] = frozenset({"output"}), plugins: Plugins | None = None
) -> None:
    """Raises `NetworkError` naming the sides allowed where the network cannot take `batch` crops of `size` in training.

    `needs={"encoder_end"}` asks for the encoder alone (pooled tasks, tiles), which takes more sizes than the whole network.
    """
    wanted = tuple(int(side) for side in size)
    problem = crop_problem(spec, wanted, batch, needs, plugins)
    if problem is not None:
        with _trial(spec, batch, needs, plugins) as trial:
            raise NetworkError(f"{spec} cannot take crops of {shown(wanted)} voxels: {problem}. {_advice(trial, wanted)}")


def crop_problem(
    spec: NetworkSpec, size: Sequence[int], batch: int = 1, needs: Collection[str] = frozenset({"output"}), plugins: Plugins | None = None
) -> str | None:
    """Why the network cannot take `batch` crops of `size` in training, in a few words; None where it can."""
    return _problem(_Known.of(spec, plugins), tuple(int(side) for side in size), batch, frozenset(needs))


@lru_cache(maxsize=256)
def _problem(known: _Known, size: tuple[int, ...], batch: int, needs: frozenset[str]) -> str | None:
    with _trial(known.key.spec, batch, needs, known.plugins) as trial:
        return trial.problem(size)


@contextmanager
def _trial(spec: NetworkSpec, batch: int, needs: Collection[str], plugins: Plugins | None) -> Iterator[_Trial]:
    skeleton = skeleton_of(spec)
    trunk = Trunk(skeleton.network, spec, plugins) if frozenset(needs) != {"output"} else None
    try:
        yield _Trial(skeleton, trunk, batch, frozenset(needs))
    finally:
        if trunk is not None:
            trunk.close()


@dataclass(frozen=True)
class _Trial:
    """A network to try sizes on, as the run will use it: so many crops at once, and only the parts that are needed."""

    skeleton: Skeleton
    trunk: Trunk | None
    batch: int
    needs: frozenset[str]

    def problem(self, size: tuple[int, ...]) -> str | None:
        """Why the network does not take `size`; None where it does."""
        spec = self.skeleton.spec
        if len(size) != spec.spatial_dims or min(size) < 1:
            return f"it works in {spec.spatial_dims}D and needs {spec.spatial_dims} sides"
        if fixed_size(spec) not in (None, size):
            return "its option img_size fixes the sides"
        try:
            output = self._output(size)
        except Exception as error:  # noqa: BLE001 - whatever a network raises says that it does not take this size
            return _explained(error)
        if output is not None and output.dim() == len(size) + 2 and tuple(output.shape[2:]) != size:
            return f"its output would have {shown(output.shape[2:])} voxels"
        return None

    def takes(self, size: tuple[int, ...]) -> bool:
        """Does training work with crops of `size`?"""
        return self.problem(size) is None

    def _output(self, size: tuple[int, ...]) -> Tensor | None:
        spec, device = self.skeleton.spec, self.skeleton.device
        if self.trunk is None:
            return run(self.skeleton.network, spec, size, self.batch, device)
        images = torch.zeros((self.batch, spec.in_channels, *size), device=device)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return self.trunk(images, self.needs).get("output")


def _explained(error: Exception) -> str:
    message = first_line(error)
    if any(text in message for text in ONE_VOXEL):
        return "one voxel would be left where the network normalises (InstanceNorm and BatchNorm need more)"
    if any(text in message for text in UNEQUAL):
        return "its sides cannot be halved and doubled back to the same size"
    return message.rstrip(".")


def _advice(trial: _Trial, size: tuple[int, ...]) -> str:
    """The sides allowed, tried out one by one: never a rule of thumb."""
    base = trial.skeleton.base
    if len(size) != len(base):
        return "Change the crop or network.spatial_dims."
    if not trial.takes(base):
        return f"No crop of {shown(base)} works either: see the network's options."
    steps = _steps(trial, base)
    if steps is None:
        return f"It takes crops of {shown(base)} only."
    smallest = _smallest(trial, steps, base)
    near = _near(trial, size, steps, smallest)
    every = "any number of voxels" if set(steps) == {1} else f"multiples of {steps[0] if len(set(steps)) == 1 else shown(steps)}"
    nearest = f", nearest to yours {' or '.join(shown(option) for option in near)}" if near else ""
    return f"Its sides may be {every}; the smallest crop with equal sides is {shown(smallest)}{nearest}."


def _steps(trial: _Trial, base: tuple[int, ...]) -> tuple[int, ...] | None:
    """By axis the smallest step that leads from one allowed side to the next; None where only `base` is allowed."""

    def works(step: int, axes: Sequence[int]) -> bool:
        grown = [tuple(side + times * step if axis in axes else side for axis, side in enumerate(base)) for times in (1, 3)]
        return all(trial.takes(option) for option in grown)

    def finest(step: int, axis: int) -> int:
        for factor in (2, 3, 5):
            while step % factor == 0 and works(step // factor, (axis,)):
                step //= factor
        return step

    every = range(len(base))
    shared = next((step for step in _STEPS if works(step, every)), None)
    return None if shared is None else tuple(finest(shared, axis) for axis in every)


def _smallest(trial: _Trial, steps: tuple[int, ...], base: tuple[int, ...]) -> tuple[int, ...]:
    shared = math.lcm(*steps)
    low, high = 0, max(base) // shared
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if trial.takes((middle * shared,) * len(base)) else (middle, high)
    return (high * shared,) * len(base)


def _near(trial: _Trial, size: tuple[int, ...], steps: tuple[int, ...], smallest: tuple[int, ...]) -> list[tuple[int, ...]]:
    pairs = list(zip(size, steps, strict=True))
    down = tuple(max(step, side // step * step) for side, step in pairs)
    up = tuple(-(-side // step) * step for side, step in pairs)
    grown = tuple(max(side, least) for side, least in zip(up, smallest, strict=True))
    options = [option for option in dict.fromkeys((down, up)) if trial.takes(option)]
    return options or [option for option in (grown,) if trial.takes(option)]
