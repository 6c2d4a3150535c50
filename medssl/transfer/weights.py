"""Reading weights: medssl's own checkpoints, and files of other programs without executing anything from them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from medssl.errors import CheckpointError, MissingInput
from medssl.faults import fault
from medssl.networks import NetworkSpec, described_spec
from medssl.train.checkpoint import find_checkpoint
from medssl.train.checkpoint_state import STATE

WRAPPERS = ("module.", "_orig_mod.", "network.", "model.", "net.", "student.", "backbone.", "encoder.")
"""What data parallelism, compilation and training frameworks put before a network's own names."""
_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "network_weights", "network", "model", "net")


@dataclass(frozen=True)
class Weights:
    """Named tensors and what is known of the network they belong to."""

    path: Path
    tensors: dict[str, Tensor]
    spec: NetworkSpec | None
    """None for files of other programs, which do not say what network they hold."""
    head: tuple[str, ...]
    """Names of the head's tensors; () where it is not known."""


def read_weights(path: str | Path) -> Weights:
    """The weights at a run folder, a checkpoint folder, or a file (`.safetensors`, or a torch file that holds tensors alone).

    Raises `MissingInput` where nothing is there, `CheckpointError` for damaged files and for files that hold more than tensors.
    """
    place = Path(path)
    if place.is_file() and place.name != STATE and not (place.suffix == ".safetensors" and (place.parent / STATE).exists()):
        return Weights(place, _read_file(place), None, ())
    checkpoint = find_checkpoint(place.parent if place.suffix == ".safetensors" else place)
    if "network" not in checkpoint.tensors:
        raise CheckpointError(
            f"{checkpoint.path} holds no network, only {', '.join(checkpoint.tensors) or 'nothing'}. Give another checkpoint."
        )
    described = checkpoint.state.get("network")
    spec = None if described is None else described_spec(described, f"the network in {checkpoint.path / STATE}")
    return Weights(checkpoint.path, checkpoint.tensors["network"], spec, tuple(checkpoint.state.get("head") or ()))


def _read_file(file: Path) -> dict[str, Tensor]:
    try:
        content = safetensors.torch.load_file(file) if file.suffix == ".safetensors" else _torch_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is no readable safetensors file: {error}. Copy it again from where it came.") from error
    except OSError as error:
        raise MissingInput(fault(error, f"{file} cannot be read")) from error
    tensors = _state_dict(content)
    if not tensors:
        raise CheckpointError(f"{file} holds no named tensors. Save the network's state_dict() with torch.save or safetensors.")
    return tensors


def _torch_file(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} is refused: it is no torch file, or holds more than tensors, and medssl never executes what a weights file brings. "
            "Where you trust it, load it yourself and save its state_dict() alone."
        ) from error
    except OSError:
        raise
    except Exception as error:
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{file} is no readable torch file, perhaps cut short: {what}. Copy it again from where it came.") from error


def _state_dict(content: Any) -> dict[str, Tensor]:
    """The named tensors inside `content`, looked for under the keys that training programs use."""
    if not isinstance(content, Mapping):
        return {}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    inner = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)), None)
    return _state_dict(inner) if inner is not None else tensors


def seen_through(name: str, targets: Mapping[str, Any]) -> str:
    """`name` without wrappers' prefixes, where that makes it one of `targets`; else without those of torch's own wrappers."""
    plain = name.replace("_orig_mod.", "").removeprefix("module.")
    candidate = plain
    while candidate not in targets:
        wrapper = next((prefix for prefix in WRAPPERS if candidate.startswith(prefix)), None)
        if wrapper is None:
            return plain
        candidate = candidate.removeprefix(wrapper)
    return candidate
