"""Images of somebody else's loop as `Crops`: each its own volume, and what its caller does not say is refused when it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medssl.contracts import Crops
from medssl.errors import ConfigError
from medssl.monai.tasks import ELSEWHERE
from medssl.volumes import statistics


class Unsaid(ConfigError):
    """A term reads of crops what no item of a MONAI pipeline says."""


def crops_of(images: Tensor, spacing: Tensor | None = None, *, body: bool = False) -> Crops:
    """(B, C, *size) images on a grid of `spacing` (D,) mm, 1 mm where it is None, each all of its volume and another patient's.

    The body is what lies above the air of each image, found in it as a store finds it in a volume; `body` asks for the mask.
    """
    count, dims, device = len(images), images.dim() - 2, images.device
    each = torch.arange(count, device=device)
    sides = torch.ones(dims, device=device) if spacing is None else spacing.to(device, torch.float32)
    affine, extent = torch.zeros(count, 3, dims + 1, device=device), torch.zeros(count, 3, device=device)
    affine[:, :dims, :dims] = torch.diag(sides)
    extent[:, :dims] = sides * torch.tensor(images.shape[2:], device=device)
    read: dict[str, Any] = {
        "sample": _Read(partial(_refuse, "sample, which volume of a store it is")),
        "rescale": _Read(partial(_refuse, "rescale, the true values of the images")),
        "inside": _Read(partial(_inside, images)),
    }
    return Crops(
        images=images,
        channels=tuple(f"channel {number}" for number in range(images.shape[1])),
        index=torch.arange(count),
        patient=each,
        group=each,
        affine=affine,
        extent=extent,
        body=body_of(images) if body else None,
        **read,
    )


def unseen_crops(size: Sequence[int], number: Tensor, patient: Tensor | None = None) -> Crops:
    """Crops (B, 1, *size) whose images nobody has: the (B,) `number` of each tells it from all others, `patient` says whose it is."""
    images = torch.zeros((len(number), 1, *size), device=number.device)
    inside: Any = _Read(partial(_refuse, "inside, the share of a crop that is body"))
    whose = number if patient is None else patient.to(number.device)
    return replace(crops_of(images), sample=number, patient=whose, inside=inside)


def body_of(images: Tensor) -> Tensor:
    """(B, 1, *size) bool: where any channel of an image (B, C, *size) lies above the air in it; nowhere where it has one value alone."""
    masks = [np.logical_or.reduce([_above_air(channel) for channel in image]) for image in images.detach().cpu().numpy()]
    return torch.from_numpy(np.stack(masks)[:, None]).to(images.device)


def _above_air(channel: Any) -> Any:
    return statistics(channel).foreground(channel) if channel.min() < channel.max() else np.zeros(channel.shape, bool)


def _inside(images: Tensor) -> Tensor:
    return body_of(images).flatten(1).float().mean(1)


def _refuse(what: str) -> Tensor:
    """A made-up number would be a lie."""
    raise Unsaid(f"a term reads crops.{what}, which the items of a MONAI pipeline do not say. {ELSEWHERE}")


class _Read:
    """Stands in `Crops` for a tensor that costs something, or does not exist: it is made when a term first reads it, and no sooner."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make = make
        self._made: Tensor | None = None

    def _tensor(self) -> Tensor:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # what Python itself asks for, to copy it
        return getattr(self._tensor(), name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def read(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(map(read, value))
            return value._tensor() if isinstance(value, cls) else value

        return function(*map(read, args), **{key: read(value) for key, value in (kwargs or {}).items()})


def _operator(name: str) -> Callable[..., Any]:
    def apply(self: _Read, *others: Any) -> Any:
        return getattr(self._tensor(), name)(*others)

    return apply


for _name in ("getitem", "len", "iter", "float", "bool", "neg", "invert", "abs", "eq", "ne", "lt", "le", "gt", "ge", "pow", "rpow"):
    setattr(_Read, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "and", "or", "xor"):
    setattr(_Read, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(_Read, f"__r{_name}__", _operator(f"__r{_name}__"))
