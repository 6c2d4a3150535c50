"""`NetworkSpec`: a network as data. It can be built any number of times, compared, and written as JSON.

Everything that medssl does with heads, stems and checkpoints rests on building the same network again with other numbers of outputs. A
network that exists is read back into a specification, or copied (`medssl.networks.instances`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from functools import partial
from numbers import Integral, Real
from typing import Any, TypedDict, Unpack

import torch
from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator
from torch import nn

from medssl.config import BaseOptions, check
from medssl.errors import NetworkError
from medssl.networks.defaults import with_defaults
from medssl.networks.factories import Factory, default_of, factory_by_name, factory_by_path, factory_of, import_path
from medssl.networks.instances import Copies, alike, first_convolution, head_layers, said_by

NetworkLike = "NetworkSpec | str | Mapping[str, Any] | Callable[..., nn.Module] | nn.Module"


class SpecFields(TypedDict, total=False):
    """What `NetworkSpec` may be made with, for type checkers and editors."""

    name: str | None
    _target_: str | None
    target: str | None
    spatial_dims: int
    in_channels: int
    out_channels: int | None
    options: Mapping[str, Any]
    encoder_end: str | None
    head: str | None
    factory: str | None


class NetworkSpec(BaseOptions):
    """A network by `name` (one of MONAI's) or by `_target_` (import path), with what it is built with."""

    model_config = ConfigDict(populate_by_name=True)

    name: str | None = None
    """A network of `monai.networks.nets`: UNet, BasicUNet, SegResNet, DynUNet, ResNet, resnet18, ..."""
    target: str | None = Field(None, alias="_target_")
    """Import path of a network class, or of a function that takes `out_channels`: `package.module.Class`. No expressions."""
    spatial_dims: int = Field(3, ge=2, le=3)
    """2 or 3."""
    in_channels: int = Field(1, ge=1)
    """Channels of the images."""
    out_channels: int | None = Field(None, ge=1)
    """Outputs of the network's own head: classes with background in segmentation. Not needed in pretraining."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The network's own parameters: `{init_filters: 16}`."""
    encoder_end: str | None = None
    """The submodule whose output is the encoder's end, for networks that medssl does not know."""
    head: str | None = None
    """The submodule that is the head, where it cannot be found by difference."""
    factory: str | None = None
    """Set by medssl: a network made by Python code that JSON cannot hold. Pass the same callable again to build it."""

    _callable: Callable[..., nn.Module] | None = PrivateAttr(None)
    _live: nn.Module | None = PrivateAttr(None)

    def __init__(self, name: str | None = None, /, **fields: Unpack[SpecFields]) -> None:
        given: dict[str, Any] = dict(fields)
        if name is not None:
            given["name"] = name
        super().__init__(**given)

    @model_validator(mode="before")
    @classmethod
    def _read_short_forms(cls, values: Any) -> Any:
        """`network: UNet` is a name; beside `_target_`, keys that are no fields are the network's own parameters."""
        if isinstance(values, str):
            return {"_target_": values} if "." in values else {"name": values}
        if isinstance(values, Mapping) and values.get("_target_", values.get("target")) is not None:
            fields = {*cls.model_fields, "_target_"}
            own = {key: value for key, value in values.items() if key not in fields}
            kept = {key: value for key, value in values.items() if key in fields}
            return {**kept, "options": {**own, **(kept.get("options") or {})}}
        return values

    @field_validator("options")
    @classmethod
    def _options_are_json(cls, options: dict[str, Any]) -> dict[str, Any]:
        return {str(key): as_json(value, f"options.{key}") for key, value in options.items()}

    @model_validator(mode="after")
    def _one_origin(self) -> NetworkSpec:
        if sum(origin is not None for origin in (self.name, self.target, self.factory)) != 1:
            raise ValueError("a network needs either name (one of MONAI's, such as SegResNet) or _target_ (an import path), not both")
        return self

    def __str__(self) -> str:
        return self.name or self.target or str(self.factory)

    @property
    def rebuildable(self) -> bool:
        """False where the network was made by Python code that a checkpoint cannot hold."""
        return self.factory is None

    @property
    def live(self) -> nn.Module | None:
        """The network that this was read from, whose weights are the first ones of what is trained; None where none was given."""
        return self._live

    def source(self) -> Factory:
        """What builds this network; raises `NetworkError` for unknown names, paths that are no networks, and lost callables."""
        if self.name is not None:
            return factory_by_name(self.name)
        if self.target is not None:
            return factory_by_path(self.target)
        if self._callable is None:
            raise NetworkError(
                f"this network was made by {self.factory}, which a file cannot hold. Pass the same Python callable or network again, "
                "or name it by its import path (_target_); medssl.load_into(network, ...) loads weights into one that exists."
            )
        return factory_of(self._callable, str(self.factory))

    def checked(self) -> NetworkSpec:
        """The same specification, a bare name with every needed option filled in; `NetworkError` for options that do not exist.

        What was given as a class, a callable or an import path is built as it was given.
        """
        try:
            filled = with_defaults(self.name, self.options)
        except (TypeError, KeyError) as error:
            raise NetworkError(f"the options of {self} cannot be read: {error}. Where one is a list, give a list.") from error
        self.source().check_options(filled)
        return self.model_copy(update={"options": filled})

    def pretraining(self) -> NetworkSpec:
        """The same specification with deep supervision off: in pretraining the head that feeds the full-size output counts."""
        off = {"deep_supervision": False, "dsdepth": 1}
        options = {key: off.get(key, value) if value else value for key, value in self.options.items()}
        return self.model_copy(update={"options": options})

    def build(
        self,
        out_channels: int | None = None,
        in_channels: int | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> nn.Module:
        """A new network, by default with as many outputs as the specification says, or else as many as inputs.

        With `seed`, the first weights depend on it alone and torch's global generator is left as it was.
        """
        spec, source = self.checked(), self.source()
        kwargs: dict[str, Any] = dict(spec.options)
        kwargs[source.out_name] = out_channels or self.out_channels or in_channels or self.in_channels
        if source.in_name is not None:
            kwargs[source.in_name] = in_channels or self.in_channels
        if source.dims_name is not None:
            kwargs[source.dims_name] = self.spatial_dims
        with torch.random.fork_rng(devices=[], enabled=seed is not None), torch.device(device or "cpu"):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            try:
                network = source.call(**kwargs)
            except Exception as error:
                raise NetworkError(f"{source.label} cannot be built with {_shown(kwargs)}: {type(error).__name__}: {error}") from error
        if not isinstance(network, nn.Module):
            raise NetworkError(f"{source.label} returned {type(network).__name__}, not a torch network (torch.nn.Module).")
        return network

    def skeleton(self, out_channels: int | None = None, in_channels: int | None = None) -> nn.Module:
        """The network on the meta device: shapes without values. Networks that need values to be built pass through the CPU."""
        try:
            return self.build(out_channels, in_channels, device="meta", seed=0)
        except NetworkError:
            return self.build(out_channels, in_channels, seed=0).to("meta")


class SpecKey:
    """A specification as a cache key: equal content, equal key."""

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec
        self._content = (spec.model_dump_json(), spec._callable)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SpecKey) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content[0])


def as_spec(network: Any) -> NetworkSpec:
    """A checked specification from a specification, a name, an import path, a mapping, a callable that takes `out_channels`, or a network.

    A class or `functools.partial` with plain arguments becomes the specification by name or import path that says the same, so it
    can be written as JSON; other callables can be built and compared in this process only, and their specification says so. So it is
    with a network that exists: its attributes say what it was built with, or it is copied.
    """
    if isinstance(network, NetworkSpec):
        return _measured(network.checked(), network.model_fields_set)
    if isinstance(network, nn.Module):
        return _from_live(network)
    if isinstance(network, str):
        return as_spec(check(NetworkSpec, {"_target_" if "." in network else "name": network}, "network"))
    if isinstance(network, Mapping):
        return as_spec(check(NetworkSpec, network, "network"))
    if callable(network):
        return _from_callable(network)
    raise NetworkError(
        f"a network is a NetworkSpec, a name, a mapping or a callable that takes out_channels, not {type(network).__name__}."
    )


def _from_callable(network: Callable[..., Any]) -> NetworkSpec:
    call, keywords = _flatten(network)
    label = f"{getattr(call, '__module__', '?')}.{getattr(call, '__qualname__', type(call).__name__)}"
    if inspect.isclass(call) and not issubclass(call, nn.Module):
        raise NetworkError(f"{label} is a class, but no torch network (it does not derive from torch.nn.Module).")
    source = factory_of(call, label)
    fields = {field: keywords.pop(parameter) for parameter, field in source.reserved.items() if parameter in keywords}
    for parameter, field in source.reserved.items():
        usual = default_of(call, parameter)
        if field != "out_channels" and field not in fields and usual is not None:
            fields[field] = usual
    try:
        options = {key: as_json(value, f"the argument {key}") for key, value in keywords.items()}
        origin = _origin(call)
    except NetworkError as reason:
        spec = NetworkSpec(factory=f"the Python callable {label} ({reason})", **fields)
        spec._callable = partial(call, **keywords) if keywords else call
        return _measured(spec, fields)
    if "name" in origin and with_defaults(origin["name"], options) != options:
        origin = {"_target_": f"monai.networks.nets.{origin['name']}"}  # the name alone would stand for another network
    source.check_options(options)
    return _measured(NetworkSpec(**origin, options=options, **fields).checked(), fields)


def _from_live(network: nn.Module) -> NetworkSpec:
    spec = _read_back(network)
    if spec is None:
        kind = type(network)
        copies = Copies(network)
        fields: SpecFields = {"out_channels": head_layers(network).outputs, "factory": f"a live {kind.__module__}.{kind.__qualname__}"}
        spec = NetworkSpec(**fields)
        spec._callable = copies
        spec = _measured(spec, fields)
    spec._live = network
    return spec


def _read_back(network: nn.Module) -> NetworkSpec | None:
    """What builds a network like this one, as its attributes say it; None where what they say builds another."""
    kind, first = type(network), first_convolution(network)
    if first is None:
        return None
    try:
        source = factory_of(kind, kind.__qualname__)
        measured = {source.dims_name: first[1].weight.dim() - 2, source.in_name: first[1].in_channels}
        said = {name: value for name, value in measured.items() if name} | said_by(network, source.parameters)
        if source.out_name not in said:
            said[source.out_name] = head_layers(network).outputs
        spec = _from_callable(partial(kind, **said))
        return spec if spec.rebuildable and alike(network, spec.build(seed=0)) else None
    except NetworkError:
        return None


def _flatten(network: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The callable inside nested partials and all arguments by name."""
    layers: list[partial[Any]] = []
    while isinstance(network, partial):
        layers.append(network)
        network = network.func
    keywords: dict[str, Any] = {}
    names = list(inspect.signature(network).parameters)
    for layer in reversed(layers):
        free = [name for name in names if name not in keywords]
        keywords.update(zip(free, layer.args, strict=False))
        keywords.update(layer.keywords)
    return network, keywords


def _origin(call: Callable[..., Any]) -> dict[str, Any]:
    """How to name `call` in a file; `NetworkError` with the reason where that is not possible."""
    module, qualname = getattr(call, "__module__", None), getattr(call, "__qualname__", None)
    if module is None or qualname is None or "<" in qualname or module == "__main__":
        raise NetworkError("it has no import path")
    if module.startswith("monai.networks.nets."):
        from monai.networks import nets

        if getattr(nets, qualname, None) is call:
            return {"name": qualname}
    if import_path(f"{module}.{qualname}") is not call:
        raise NetworkError("its import path names something else")
    return {"_target_": f"{module}.{qualname}"}


def _measured(spec: NetworkSpec, given: Collection[str]) -> NetworkSpec:
    """Dimensions and input channels read from the first convolution, where the network fixes them and nobody said them."""
    source = spec.source()
    unknown = {
        "spatial_dims": source.dims_name is None and "spatial_dims" not in given,
        "in_channels": source.in_name is None and "in_channels" not in given,
    }
    if not any(unknown.values()):
        return spec
    found = first_convolution(spec.skeleton())
    if found is None:
        return spec
    _, first = found
    read = {"spatial_dims": first.weight.dim() - 2, "in_channels": first.in_channels}
    return spec.model_copy(update={field: read[field] for field, missing in unknown.items() if missing})


def as_json(value: Any, where: str) -> Any:
    """`value` as JSON holds it (tuples become lists); `NetworkError` for what JSON cannot hold."""
    if isinstance(value, Enum):
        return as_json(value.value, where)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise NetworkError(f"{where} is {value}, which JSON cannot hold")
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): as_json(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item, where) for item in value]
    raise NetworkError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def _shown(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
