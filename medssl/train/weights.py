"""Reading weights: medssl's own checkpoints, and files of other programs without executing anything from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, contiguous_format, nn

from medssl.errors import CheckpointError, MissingInput, UsageError
from medssl.faults import fault, faults_as
from medssl.files import take_folder, write_atomically
from medssl.networks import NetworkSpec, described_spec
from medssl.run import Run
from medssl.train.checkpoint import Checkpoint, find_checkpoint
from medssl.train.checkpoint_state import STATE, TENSORS
from medssl.train.inert import named_tensors, read_torch_file
from medssl.train.run_folder import WEIGHTS, holds_run, refuse_other_run

Source = str | Path | Run | Checkpoint | Mapping[str, Any]
"""Where weights come from: a run or its folder, a checkpoint or its folder, a file, or named tensors."""
SAYS_NO_NETWORK = (
    "does not say what network it holds. Name it beside it: `network:` in a configuration, in Python network=partial(SegResNet, ...), a "
    "NetworkSpec, or the network itself."
)
"""What lacks where a file or state dict is a checkpoint, for messages."""
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
    _check_source(source)
    place = source.folder if isinstance(source, Run) else Path(source)
    checkpoint = own_checkpoint(place)
    return Weights(place, _read_file(place), None, ()) if checkpoint is None else _weights_of(checkpoint)


def _check_source(source: Any) -> None:
    if not isinstance(source, str | PurePath | Run):
        own = " Give its state_dict()." if isinstance(source, nn.Module) else ""
        raise UsageError(f"weights come from a run, a checkpoint, a file or a state dict, not from {type(source).__name__}.{own}")


def origin_given(given: Source | None, config: Any, key: str) -> Source | None:
    """The weights that a call names, as an argument or in a configuration made in Python, where a text would name them in a file."""
    if given is not None or not isinstance(config, Mapping):
        return given
    return config.get(key)


def origin_path(origin: Source | None, out: str | Path, resume: bool) -> str | None:
    """Where the weights that a run begins with lie, as its configuration names them; None where it begins with none.

    A state dict lies nowhere: it becomes a file of the run's folder `out`, where a run that goes on finds it again.
    """
    if isinstance(origin, Run | Checkpoint):
        return str(origin.folder if isinstance(origin, Run) else origin.path)
    if origin is None or isinstance(origin, str | PurePath):
        return None if origin is None else str(origin)
    given, file = read_weights(origin).tensors, Path(out) / WEIGHTS
    if resume and holds_run(out):
        if not file.is_file() or not _are_same(given, _read_file(file)):
            raise UsageError(f"{out} holds a run that began with other weights than these. Give {file} back, or another folder as out.")
        return str(file)
    refuse_other_run(out)
    # Each by itself in memory: of tensors that share it safetensors writes none.
    whole = {name: tensor.detach().to("cpu").clone(memory_format=contiguous_format) for name, tensor in given.items()}
    with faults_as(UsageError, f"the given weights cannot be written to {file}"):
        take_folder(Path(out))
        write_atomically(file, safetensors.torch.save(whole))
    return str(file)


def _are_same(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(tensor.detach().cpu(), others[name]) for name, tensor in some.items())


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
