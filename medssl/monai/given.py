"""What a caller hands to a loss or a network, checked before a plugin or torch sees it: a caller's mistake is no fault of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, get_args

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor, nn

from medssl.config import did_you_mean, shown
from medssl.contracts import NetworkInfo
from medssl.errors import ConfigError, DataError

NAMES: Mapping[str, str] = {"answers": "answers", "embeddings": "embeddings", "feature_maps": "feature maps"}
"""What a consistency loss compares, for messages."""


def plain(tensor: Tensor) -> Tensor:
    """The tensor without MONAI's metadata."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def tensor_given(value: Any, what: str, to_do: str) -> Tensor:
    """`value` as a tensor of a batch of one sample or more; `DataError` for anything else, with what to do."""
    if not isinstance(value, Tensor):
        raise DataError(f"{what} is {_kind(value)}, not a tensor. {to_do}")
    if value.dim() == 0 or len(value) == 0:
        raise DataError(f"{what} has shape {tuple(value.shape)}, and holds no sample. {to_do}")
    return plain(value)


def real_given(value: Any, what: str, to_do: str) -> Tensor:
    """`value` as a tensor of real numbers that a gradient can pass."""
    tensor = tensor_given(value, what, to_do)
    if not tensor.is_floating_point():
        raise DataError(f"{what} holds {_dtype(tensor)}, through which no gradient passes. Give floating point numbers: .float().")
    return tensor


def image_given(image: Any, what: str) -> Tensor | NDArray[Any]:
    """An image (C, *size) of real numbers as it is; `DataError` for anything else."""
    if not isinstance(image, Tensor | np.ndarray):
        raise DataError(f"{what} is {_kind(image)}, no image. Load it first: LoadImaged, EnsureChannelFirstd.")
    meta = isinstance(image, Tensor) and image.is_meta
    if meta or (image.is_complex() if isinstance(image, Tensor) else image.dtype.kind not in "biuf"):
        held = "no values, on the device 'meta'" if meta else f"{image.dtype}, which are no intensities"
        raise DataError(f"{what} holds {held}. Give real numbers: LoadImaged gives float32.")
    if len(image.shape) not in (3, 4) or 0 in image.shape:
        raise DataError(f"{what} has shape {tuple(image.shape)}; an image (C, *size) with 2 or 3 spatial sides is needed.")
    return image


def one_of(value: Any, words: Any, what: str) -> None:
    """`ConfigError` where `value` is none of the words of a `Literal`."""
    if value not in get_args(words):
        raise ConfigError(f"{what} is {shown(value)}{did_you_mean(str(value), get_args(words))}")


def count_given(value: Any, what: str, least: int = 1, most: int | None = None) -> int:
    """`value` as a whole number from `least` to `most`; `ConfigError` for anything else."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    number = int(value) if whole else least - 1
    if number < least or (most is not None and number > most):
        wanted = f"{least} or more" if most is None else f"from {least} to {most}"
        raise ConfigError(f"{what} is {shown(value)}; a whole number, {wanted}, is needed.")
    return number


def same_place(tensors: Mapping[str, Tensor | None]) -> None:
    """`DataError` where tensors that are compared lie on different devices."""
    places = {what: tensor.device for what, tensor in tensors.items() if tensor is not None}
    if len(set(places.values())) > 1:
        listed = ", ".join(f"{what} on {device}" for what, device in places.items())
        raise DataError(f"what is compared lies on different devices: {listed}. Bring all to one of them: .to(device).")


def views_given(views: Sequence[Any], compares: str, network: NetworkInfo, what: str = "view") -> tuple[Tensor, ...]:
    """Two or more views that a loss built for `network` can compare, without metadata."""
    name = NAMES[compares]
    found = tuple(
        real_given(view, f"{what} {number}", f"Give {name} of a batch: {_wanted(compares, network)}.") for number, view in _numbered(views)
    )
    shapes = [tuple(view.shape) for view in found]
    if len(found) < 2 or len(set(shapes)) > 1:
        raise DataError(f"two or more {what}s of one shape are compared, not {shapes}.")
    same_place({f"{what} {number}": view for number, view in _numbered(found)})
    _check_shape(found[0], compares, network)
    return found


def _numbered(values: Sequence[Any]) -> list[tuple[int, Any]]:
    return list(enumerate(values, 1))


def _check_shape(view: Tensor, compares: str, network: NetworkInfo) -> None:
    shape, dims = tuple(view.shape), network.spatial_dims
    ranks = {"answers": (2, 3, 4, 5), "embeddings": (2,), "feature_maps": (dims + 2,)}[compares]
    width = {"answers": None, "embeddings": network.embedding_width, "feature_maps": network.feature_width}[compares]
    wanted = _wanted(compares, network)
    if view.dim() not in ranks:
        other = view.dim() - 2
        say = f" Build the loss with spatial_dims={other}." if compares == "feature_maps" and other in (2, 3) else ""
        raise DataError(f"a view has shape {shape}; {NAMES[compares]} {wanted} are compared.{say}")
    if width is not None and shape[1] != width:
        raise DataError(
            f"a view of shape {shape} has {shape[1]} channels, and the loss was built for {width}: {NAMES[compares]} {wanted}. "
            f"Build it with width={shape[1]}."
        )
    if 0 in shape:
        raise DataError(f"a view has shape {shape}, and holds nothing. {NAMES[compares].capitalize()} {wanted} are compared.")


def _wanted(compares: str, network: NetworkInfo) -> str:
    grid = ", ".join("XYZ"[: network.spatial_dims])
    return {
        "answers": "(B, K), (B, parts, K) or (B, K, *size)",
        "embeddings": f"(B, {network.embedding_width})",
        "feature_maps": f"(B, {network.feature_width}, {grid})",
    }[compares]


def check_weights(shown: Tensor, module: nn.Module, whose: str) -> None:
    """`DataError` where `whose` weights have another type than what it is shown, and autocast does not see to it, or another device."""
    weight = next(module.parameters(), shown)
    if weight.device != shown.device:
        raise DataError(
            f"a tensor on {shown.device} is given to {whose}, whose weights are on {weight.device}. Bring both to one: .to(device)."
        )
    if weight.dtype != shown.dtype and not torch.is_autocast_enabled(shown.device.type):
        raise DataError(
            f"a tensor of {_dtype(shown)} is given to {whose}, whose weights are {_dtype(weight)}. Give it that type, or call "
            "it under torch.autocast."
        )


def item_given(data: Any) -> dict[Any, Any]:
    """A copy of an item of a pipeline, which is a dictionary."""
    if not isinstance(data, Mapping):
        raise DataError(
            f"the item is {_kind(data)}, not a dictionary. Dictionary transforms take {{'image': ...}}, array transforms the image."
        )
    return dict(data)


def shown_given(value: Any, view: Tensor) -> Tensor | None:
    """(B, 1, *grid) bool: which voxels count, on the grid of a dense `view`; None: all."""
    if value is None:
        return None
    mask = tensor_given(value, "`shown`", "Give (B, 1, *grid), true where a voxel counts.")
    wanted = (len(view), 1, *view.shape[2:])
    if view.dim() < 4 or tuple(mask.shape) != wanted:
        dense = (
            f"views of shape {tuple(view.shape)} need {wanted}" if view.dim() > 3 else f"views of shape {tuple(view.shape)} have no voxels"
        )
        raise DataError(f"`shown` has shape {tuple(mask.shape)}, and {dense}. Bring it to the views' own grid, or leave it out.")
    same_place({"the views": view, "`shown`": mask})
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise DataError(
            "`shown` holds other values than 0 and 1. It says which voxels count, not how much: give a mask, such as shown > 0.5."
        )
    return mask.bool()


def patient_given(value: Any, rows: int) -> Tensor | None:
    """(B,) whole numbers: whose each sample is."""
    if value is None:
        return None
    numbers = tensor_given(value, "`patient`", "Give a tensor of one whole number a sample.")
    if numbers.is_floating_point() or tuple(numbers.shape) != (rows,):
        raise DataError(
            f"`patient` holds {_dtype(numbers)} of shape {tuple(numbers.shape)}; one whole number a sample, ({rows},), is needed."
        )
    return numbers


def teacher_given(value: Any, views: Sequence[Tensor], needed: bool, loss: str) -> tuple[Tensor, ...]:
    """What the teacher made of the same views, cut from the graph; () for losses without one."""
    nothing = value is None or (isinstance(value, Sequence) and not value)
    if needed == nothing:
        how = "" if needed else "no "
        raise DataError(f"'{loss}' takes {how}teacher=(...): what it made of the views.")
    if nothing:
        return ()
    to_do = "Give what the teacher made of each view: teacher=(one, other)."
    if not isinstance(value, Sequence):
        raise DataError(f"teacher is {_kind(value)}. {to_do}")
    taught = tuple(real_given(view, f"teacher's view {number}", to_do) for number, view in _numbered(value))
    shapes, wanted = [tuple(view.shape) for view in taught], [tuple(view.shape) for view in views]
    if shapes != wanted:
        raise DataError(f"the teacher's views have shapes {shapes}, and the student's {wanted}. {to_do}")
    same_place({"the views": views[0], **{f"teacher's view {number}": view for number, view in _numbered(taught)}})
    return tuple(view.detach() for view in taught)


def _kind(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[:1].lower() in "aeio" else f"a {name}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
