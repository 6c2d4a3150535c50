"""Reading weights: medssl's own checkpoints, and files of other programs without executing anything from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from medssl.errors import CheckpointError, MissingInput
from medssl.faults import fault
from medssl.networks import NetworkSpec, described_spec
from medssl.run import Run
from medssl.train.checkpoint import Checkpoint, find_checkpoint
from medssl.train.checkpoint_state import STATE, TENSORS
from medssl.transfer.inert import named_tensors, read_torch_file

Source = str | Path | Run | Checkpoint | Mapping[str, Any]
"""Where weights come from: a run or its folder, a checkpoint or its folder, a file, or named tensors."""
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


def read_weights(source: Source) -> Weights:
    """The weights of a run, a checkpoint folder, a file (`.safetensors`, or torch, of which tensors alone are read), or a state dict.

    Raises `MissingInput` where nothing is there, `CheckpointError` for damaged files and for files without named tensors.
    """
    if isinstance(source, Mapping):
        named = named_tensors(source, _CONTAINERS)
        if not named:
            raise CheckpointError("the state dict holds no named tensors. Give what network.state_dict() gives.")
        return Weights(Path("the state dict"), named, None, ())
    if isinstance(source, Checkpoint):
        return _weights_of(source)
    place = source.folder if isinstance(source, Run) else Path(source)
    checkpoint = own_checkpoint(place)
    return Weights(place, _read_file(place), None, ()) if checkpoint is None else _weights_of(checkpoint)


def _weights_of(checkpoint: Checkpoint) -> Weights:
    if "network" not in checkpoint.tensors:
        raise CheckpointError(
            f"{checkpoint.path} holds no network, only {', '.join(checkpoint.tensors) or 'nothing'}. Give another checkpoint."
        )
    described = checkpoint.state.get("network")
    spec = None if described is None else described_spec(described, f"the network in {checkpoint.path / STATE}")
    return Weights(checkpoint.path, checkpoint.tensors["network"], spec, tuple(checkpoint.state.get("head") or ()))


def own_checkpoint(place: Path) -> Checkpoint | None:
    """The checkpoint of medssl's that a path names, as folder or by one of its files; None for a file of another program."""
    inside = place.suffix == TENSORS and (place.parent / STATE).exists()
    if place.is_file() and place.name != STATE and not inside:
        return None
    return find_checkpoint(place.parent if place.suffix == TENSORS else place)


def _read_file(file: Path) -> dict[str, Tensor]:
    try:
        content, left = (safetensors.torch.load_file(file), ()) if file.suffix == TENSORS else read_torch_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is no readable safetensors file: {error}. Copy it again from where it came.") from error
    except OSError as error:
        raise MissingInput(fault(error, f"{file} cannot be read")) from error
    tensors = named_tensors(content, _CONTAINERS)
    if not tensors:
        shown = f"{', '.join(left[:4])}{' and more' if len(left) > 4 else ''}"
        out = f", and medssl never executes what a weights file brings ({shown})" if left else ""
        raise CheckpointError(
            f"{file} holds no named tensors{out}. Where you trust it, load it yourself and save the network's state_dict() alone, with "
            "torch.save or safetensors."
        )
    return tensors
