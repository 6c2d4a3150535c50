"""Torch files without running anything from them: tensors are rebuilt, and everything else becomes an inert stand-in.

Most public checkpoints hold more than tensors: an `argparse.Namespace`, numpy scalars, an optimizer, a configuration. A pickle names
functions and classes and says what to call with what; here it is given torch's rebuilding of tensors and a few plain containers, and
for any other name a stand-in that takes whatever is done to it and does nothing.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from medssl.errors import CheckpointError

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of torch's format before 1.6: its magic number, pickled."""
_ZIP = b"PK\x03\x04"


class Inert:
    """Stands for any class, function or object that a file names; whatever is done to it does nothing."""

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Whatever it is made of."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Inert:
        """Itself, whatever it is called with."""
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """As a list is filled."""

    def extend(self, values: Any) -> None:
        """As a list is filled."""

    def add(self, value: Any) -> None:
        """As a set is filled."""


class _Call:
    """A function that a pickle may call, and cannot change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *given: Any) -> Any:
        return self._function(*given)

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Any:
    if not isinstance(storage, torch.storage.TypedStorage):
        return Inert()
    return torch._utils._rebuild_tensor(storage, offset, size, stride)  # type: ignore[no-untyped-call]


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _of_a_subclass(function: Any, _: Any, given: Any, __: Any) -> Any:
    """A `Parameter` with attributes, or a tensor of another class: the plain tensor."""
    return function(*given) if isinstance(function, _Call) and isinstance(given, tuple) else Inert()


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor"): _Call(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Call(_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): _Call(_of_a_subclass),
    ("builtins", "set"): set,
    ("builtins", "bytearray"): bytearray,
}


def read_torch_file(file: Path) -> tuple[Any, tuple[str, ...]]:
    """What a torch file holds, and the names of what became a stand-in; nothing from the file is executed.

    Raises `CheckpointError` for what is no torch file, or cut short, and `OSError`.
    """
    with file.open("rb") as stream:
        start = stream.read(len(_LEGACY))
    left: dict[str, None] = {}
    reader: Any = SimpleNamespace(Unpickler=_unpickler(left), load=lambda stream, **options: _unpickler(left)(stream, **options).load())
    reader.__name__ = __name__
    try:
        if start.startswith(_ZIP):
            _refuse_programs(file)
            content = torch.load(file, "cpu", reader, weights_only=False, mmap=False, encoding="latin1")
        elif start == _LEGACY:
            # From memory: torch would try a file on disk as a tar of its oldest format first, and unpack it.
            content = torch.load(io.BytesIO(file.read_bytes()), "cpu", reader, weights_only=False, encoding="latin1")
        else:
            raise CheckpointError(f"{file} is no torch file. Give a file that torch.save or safetensors wrote.")
    except (CheckpointError, OSError):
        raise
    except Exception as error:
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{file} is no readable torch file, perhaps cut short: {what}. Copy it again from where it came.") from error
    return content, tuple(left)


def _unpickler(left: dict[str, None]) -> type[pickle.Unpickler]:
    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            found = _KNOWN.get((module, name))
            if found is not None:
                return found
            if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
            left[f"{module}.{name}"] = None
            return Inert

    return Unpickler


def _refuse_programs(file: Path) -> None:
    """TorchScript is a program: torch would load it as one. Asked of torch's own reader, which decides."""
    if "constants.pkl" in torch._C.PyTorchFileReader(str(file)).get_all_records():  # type: ignore[attr-defined, unused-ignore]
        raise CheckpointError(
            f"{file} is refused: it is a TorchScript program, and medssl never executes what a weights file brings. "
            "Where you trust it, load it yourself and save its state_dict() alone."
        )


def named_tensors(content: Any, containers: tuple[str, ...]) -> dict[str, Tensor]:
    """The named tensors inside `content`, looked for under the keys that training programs use."""
    if not isinstance(content, dict):
        return {}
    items = dict.items(content)  # what the file itself brings is not asked
    inner = next((value for key in containers for name, value in items if name == key and isinstance(value, dict)), None)
    if inner is not None:
        return named_tensors(inner, containers)
    return {str(name): value for name, value in items if isinstance(value, Tensor)}
