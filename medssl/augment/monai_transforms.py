"""Any MONAI transform as an augmentation or as a task's corruption: seeded from the draw, applied sample by sample.

Where a voxel came from is read from the MetaTensor's affine, so a transform that moves voxels by no affine (elastic, grid
distortion, shuffles) is marked: losses that compare voxels refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from medssl.contracts import Draw
from medssl.errors import ConfigError, DataError

NOT_AFFINE = ("Elastic", "GridDistortion", "CoarseShuffle", "GridPatch", "GridSplit", "SmoothDeform", "Warp")
"""Parts of the names of MONAI transforms that move voxels in a way no affine describes."""


def build_transforms(definitions: Sequence[Mapping[str, Any]]) -> list[Any]:
    """MONAI transform objects from `{_target_: import.path, argument: value}`; raises `ConfigError`."""
    return [_build(definition, f"transforms.{place}") for place, definition in enumerate(definitions)]


def is_affine(definitions: Sequence[Mapping[str, Any]]) -> bool:
    """False where a transform moves voxels in a way its affine does not tell."""
    return not any(part in str(definition.get("_target_", "")) for definition in definitions for part in NOT_AFFINE)


def transformed(images: Tensor, transforms: Any, draw: Draw) -> Tensor:
    """`images` (B, C, *size) as MONAI `transforms` leave them: one or several, array or dictionary ones, composed or not.

    Everything random comes from `draw`, a stream a sample; shape and type stay, and `images` themselves are left as they are.
    """
    several = list(transforms) if isinstance(transforms, list | tuple) else [transforms]
    return apply_transforms(several, images, draw)[0]


def apply_transforms(transforms: Sequence[Any], images: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """(B, C, *size) transformed sample by sample, and the affines (B, D, D + 1), voxel of the result -> voxel of `images`."""
    seeds = draw.on_cpu().integers(0, 2**31 - 1, max(len(transforms), 1)).tolist()
    pairs = [_one(transforms, image, seeds[place]) for place, image in enumerate(images)]
    views, affines = zip(*pairs, strict=True)
    return torch.stack(views), torch.stack(affines).to(images.device)


def _one(transforms: Sequence[Any], image: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    from monai.data import MetaTensor

    dims = image.dim() - 1
    current: Any = MetaTensor(image.clone(), affine=torch.eye(4, dtype=torch.float64))
    for transform, seed in zip(transforms, seeds, strict=True):
        _seed(transform, seed)
        key = _key(transform)
        current = transform(current) if key is None else transform({key: current})[key]
    if tuple(current.shape) != tuple(image.shape):
        raise DataError(
            f"MONAI transforms turn a crop of {tuple(image.shape)} (channels first) into {tuple(current.shape)}. "
            "They must keep channels and size: end with a transform that restores it, such as monai.transforms.Resize."
        )
    affine = torch.as_tensor(getattr(current, "affine", torch.eye(4)), dtype=torch.float32)
    tensor = current.as_tensor() if isinstance(current, MetaTensor) else torch.as_tensor(current)
    return tensor.to(image), torch.cat([affine[:dims, :dims], affine[:dims, -1:]], dim=1).cpu()


def _key(transform: Any) -> Any:
    """The first key that a dictionary transform, or the first of those composed, reads; None of an array transform."""
    from monai.transforms import MapTransform

    inner = getattr(transform, "transforms", None)
    if isinstance(inner, list | tuple) and inner:
        return _key(inner[0])
    return transform.keys[0] if isinstance(transform, MapTransform) else None


def _seed(transform: Any, seed: int) -> None:
    set_state: Callable[..., Any] | None = getattr(transform, "set_random_state", None)
    if set_state is not None:
        set_state(seed=seed)


def _build(definition: Mapping[str, Any], where: str) -> Any:
    target = definition.get("_target_")
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"{where}: '_target_' must be the import path of a MONAI transform, such as monai.transforms.RandGaussianNoise.")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}: there is no '{target}': {error}. Check the spelling and the installed MONAI.") from error
    from monai.transforms import Transform

    if not (isinstance(found, type) and issubclass(found, Transform)):
        raise ConfigError(f"{where}: '{target}' is not a MONAI transform class. Only transforms can be named here.")
    arguments = {key: value for key, value in definition.items() if key != "_target_"}
    if name.endswith(("d", "D", "Dict")) and "keys" not in arguments and _takes_keys(found):
        arguments["keys"] = ["image"]
    try:
        return found(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {target} cannot be built from {sorted(arguments)}: {error}") from error


def _takes_keys(found: type) -> bool:
    from monai.transforms import MapTransform

    return issubclass(found, MapTransform)
