"""What a name or an import path stands for, and what it may be called with.

MONAI's networks name their parameters differently (`out_channels` or `num_classes`, `in_channels` or `n_input_channels`); the
differences end here. An import path names a network class or a function that takes a number of outputs: nothing else is called.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

from torch import nn

from medssl.config import did_you_mean
from medssl.errors import NetworkError

OUT_NAMES = ("out_channels", "num_classes", "n_classes", "out_chans", "out_dim")
IN_NAMES = ("in_channels", "n_input_channels", "in_chans", "n_channels", "num_input_channels")
DIMS_NAMES = ("spatial_dims", "dimensions")
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True)
class Factory:
    """Something that builds a network, with the names it gives to what every network has."""

    label: str
    call: Callable[..., Any]
    parameters: Mapping[str, bool]
    """Parameter name -> must it be given?"""
    takes_any: bool
    """True where unknown keywords are passed on and cannot be checked."""
    out_name: str
    in_name: str | None
    dims_name: str | None

    @property
    def reserved(self) -> dict[str, str]:
        """Parameters that are set by the specification's own fields: parameter -> field."""
        fields = {"out_channels": self.out_name, "in_channels": self.in_name, "spatial_dims": self.dims_name}
        return {parameter: field for field, parameter in fields.items() if parameter is not None}

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raises `NetworkError` for options that this network does not have or that must be given and are not."""
        for name, value in options.items():
            if name in self.reserved:
                raise NetworkError(f"option '{name}' of {self.label}: write it as network.{self.reserved[name]}, beside options.")
            if name not in self.parameters and not self.takes_any:
                known = [option for option in self.parameters if option not in self.reserved]
                raise NetworkError(f"{self.label} has no option '{name}'{did_you_mean(name, known)}")
            if name == "pretrained" and value:
                raise NetworkError(f"{self.label}: pretrained={value!r} would download weights. Load a local file with load_pretrained.")
        given = set(options) | set(self.reserved)
        missing = [name for name, required in self.parameters.items() if required and name not in given]
        if missing:
            raise NetworkError(f"{self.label} needs {', '.join(missing)}: give {'it' if len(missing) == 1 else 'them'} in network.options.")


def factory_of(call: Callable[..., Any], label: str) -> Factory:
    """How to call `call`; raises `NetworkError` where it cannot be told a number of outputs."""
    parameters, takes_any = _parameters(call)
    out_name = _first(OUT_NAMES, parameters)
    if out_name is None and takes_any and isinstance(call, partial | type):
        out_name = OUT_NAMES[0]
    if out_name is None:
        raise NetworkError(
            f"{label} cannot be told its number of outputs: none of its parameters is {', '.join(OUT_NAMES[:-1])} or {OUT_NAMES[-1]}. "
            "Give a network class or a function that takes out_channels and returns the network."
        )
    return Factory(label, call, parameters, takes_any, out_name, _first(IN_NAMES, parameters), _first(DIMS_NAMES, parameters))


def factory_by_name(name: str) -> Factory:
    """A network of `monai.networks.nets`; `NetworkError` with the nearest names for any other."""
    from monai.networks import nets

    candidate = getattr(nets, name, None)
    if candidate is None or not _is_monai_network(candidate):
        hint = did_you_mean(name, monai_names())
        raise NetworkError(
            f"unknown network '{name}'{hint} A network of your own is named by its import path: _target_: package.module.Class"
        )
    return factory_of(candidate, name)


def factory_by_path(path: str) -> Factory:
    """A network class, or a function that takes a number of outputs, by its import path."""
    found = import_path(path)
    if inspect.isclass(found):
        if not issubclass(found, nn.Module):
            raise NetworkError(f"_target_ '{path}' is a class, but no torch network (it does not derive from torch.nn.Module).")
    elif not inspect.isfunction(found):
        raise NetworkError(f"_target_ '{path}' is a {type(found).__name__}, not a network class or a function that returns one.")
    elif _first(OUT_NAMES, _parameters(found)[0]) is None:
        raise NetworkError(
            f"_target_ '{path}' is a function without a parameter out_channels, so it is not taken for one that builds networks."
        )
    return factory_of(found, path)


def import_path(path: str) -> Any:
    """The object at a dotted import path; no expressions, no private names."""
    if not _PATH.fullmatch(path) or any(part.startswith("_") for part in path.split(".")):
        raise NetworkError(f"_target_ '{path}' is not an import path. Write package.module.Class; expressions are not read.")
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            found: Any = import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
                continue
            raise NetworkError(f"_target_ '{path}': {module_name} cannot be imported: {error}") from error
        except ImportError as error:
            raise NetworkError(f"_target_ '{path}': {module_name} cannot be imported: {error}") from error
        for position, part in enumerate(parts[cut:], cut):
            if not hasattr(found, part):
                raise NetworkError(
                    f"_target_ '{path}': {'.'.join(parts[:position])} has no '{part}'{did_you_mean(part, _networks_in(found))}"
                )
            found = getattr(found, part)
        return found
    raise NetworkError(f"_target_ '{path}': there is no module '{parts[0]}'. Install its package or put its folder on PYTHONPATH.")


def _networks_in(module: Any) -> list[str]:
    return [name for name, value in vars(module).items() if inspect.isclass(value) and issubclass(value, nn.Module)]


@lru_cache(maxsize=1)
def monai_names() -> tuple[str, ...]:
    """Networks of `monai.networks.nets` that take a number of inputs and of outputs, each under its own name."""
    from monai.networks import nets

    found = [(name, value) for name, value in vars(nets).items() if getattr(value, "__name__", None) == name and _is_monai_network(value)]
    return tuple(sorted(name for name, _ in found))


def _is_monai_network(candidate: Any) -> bool:
    if not callable(candidate) or not getattr(candidate, "__module__", "monai.").startswith("monai."):
        return False
    if inspect.isclass(candidate) and not issubclass(candidate, nn.Module):
        return False
    try:
        parameters, _ = _parameters(candidate)
    except NetworkError:
        return False
    return _first(OUT_NAMES, parameters) is not None and _first(IN_NAMES, parameters) is not None


def _first(names: tuple[str, ...], parameters: Mapping[str, bool]) -> str | None:
    return next((name for name in names if name in parameters), None)


def _parameters(call: Callable[..., Any]) -> tuple[dict[str, bool], bool]:
    """Keyword parameters (name -> required) of a class or function, followed through `**kwargs` to the parent classes."""
    given: set[str] = set()
    while isinstance(call, partial):
        given |= set(call.keywords)
        if call.args:
            bound = list(_parameters(call.func)[0])[: len(call.args)]
            given |= set(bound)
        call = call.func
    parameters: dict[str, bool] = {}
    takes_any = False
    for level in _levels(call):
        takes_any = False
        for parameter in _signature(level).values():
            if parameter.kind is parameter.VAR_KEYWORD:
                takes_any = True
            elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and parameter.name != "self":
                parameters.setdefault(parameter.name, parameter.default is parameter.empty)
        if not takes_any:
            break
    for name in given | _set_inside(call):
        if name in parameters:
            parameters[name] = False
    return parameters, takes_any


def default_of(call: Callable[..., Any], parameter: str) -> int | None:
    """The number that `call` itself takes for `parameter` where it is not given; None where it must be."""
    for level in _levels(call):
        found = _signature(level).get(parameter)
        if found is not None:
            return found.default if isinstance(found.default, int) else None
    return None


def _levels(call: Callable[..., Any]) -> list[Any]:
    if inspect.isclass(call):
        return [vars(cls)["__init__"] for cls in call.__mro__ if "__init__" in vars(cls) and cls not in (nn.Module, object)]
    module, name = getattr(call, "__module__", ""), str(getattr(call, "__name__", ""))
    if module == "monai.networks.nets.resnet" and name.startswith("resnet"):
        from monai.networks.nets import ResNet

        return [call, ResNet.__init__]
    if module == "monai.networks.nets.mednext" and name == "<lambda>":
        from monai.networks.nets.mednext import create_mednext

        return [call, create_mednext]
    return [call]


def _set_inside(call: Any) -> set[str]:
    """Parameters of a parent that the callable fills itself (depth and width of `resnet50`, the block of `SEResNet50`)."""
    if inspect.isfunction(call):
        return {"monai.networks.nets.resnet": {"block", "layers", "block_inplanes"}, "monai.networks.nets.mednext": {"variant"}}.get(
            call.__module__, set()
        )
    if inspect.isclass(call) and call.__module__ == "monai.networks.nets.senet" and call.__name__ != "SENet":
        return {"block", "layers", "groups", "reduction"}
    return set()


def _signature(call: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(call).parameters
    except (TypeError, ValueError) as error:
        raise NetworkError(f"{call!r} has no readable signature, so it cannot be told its number of outputs.") from error
