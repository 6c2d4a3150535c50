"""Images of somebody else's loop as `Crops`: each its own volume, and what its caller does not say is refused when it is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medssl.contracts import Crops
from medssl.errors import ConfigError
from medssl.monai.tasks import ELSEWHERE


def crops_of(images: Tensor, spacing: Tensor | None = None, patient: Tensor | None = None) -> Crops:
    """(B, C, *size) images on a grid of `spacing` (D,) mm, 1 mm where it is None, and (B,) whose each is: by default all another's."""
    count, dims, device = len(images), images.dim() - 2, images.device
    each = torch.arange(count, device=device)
    sides = torch.ones(dims, device=device) if spacing is None else spacing.to(device, torch.float32)
    affine, extent = torch.zeros(count, 3, dims + 1, device=device), torch.zeros(count, 3, device=device)
    affine[:, :dims, :dims] = torch.diag(sides)
    extent[:, :dims] = sides * torch.tensor(images.shape[2:], device=device)
    unsaid: dict[str, Any] = {
        "rescale": _Unsaid("rescale, the true values of the images"),
        "inside": _Unsaid("inside, the share of a crop that is body"),
    }
    return Crops(
        images=images,
        channels=tuple(f"channel {number}" for number in range(images.shape[1])),
        index=torch.arange(count),
        sample=each,
        patient=each if patient is None else patient,
        group=each,
        affine=affine,
        extent=extent,
        **unsaid,
    )


class _Unsaid:
    """Stands in `Crops` for what a MONAI pipeline does not say; using it is an error, where a made-up number would be a lie."""

    def __init__(self, what: str) -> None:
        self._what = what

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise ConfigError(f"a term reads crops.{self._what}, which the items of a MONAI pipeline do not say. {ELSEWHERE}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # what Python itself asks for, to copy it
        self._refuse()

    __getitem__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __neg__ = __len__ = __iter__ = __float__ = __bool__ = _refuse

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        next(one for one in (*args, *(kwargs or {}).values()) if isinstance(one, cls))._refuse()
