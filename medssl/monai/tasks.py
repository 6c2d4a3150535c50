"""Which tasks a MONAI pipeline can ask, and what they are told of the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from medssl.config import shown
from medssl.contracts import ConsistencyLoss, DenseHead, ModuleHead, NetworkHead, NetworkInfo, PooledHead, PretextTask
from medssl.errors import ConfigError, MedsslError
from medssl.learn.promises import check_built, check_class, check_head
from medssl.networks import as_spec, network_info
from medssl.plugins import Plugins, blame

ELSEWHERE = "Train it with medssl.pretrain."
"""What to do with tasks that need more than one item of a MONAI pipeline, or more than a network's forward pass."""


def task_class(task: str | type[PretextTask]) -> type[PretextTask]:
    """The task of that name; `ConfigError` for one that needs what a MONAI pipeline does not have."""
    cls: type[PretextTask] = _class(task, PretextTask, "pretext task")
    if {"teacher", "teacher_answer"} & cls.needs:
        raise ConfigError(f"'{cls.name}' needs a teacher, which a MONAI pipeline does not keep. {ELSEWHERE}")
    if cls.compares != "nothing":
        raise ConfigError(f"'{cls.name}' compares crops with each other, and a MONAI pipeline asks about one at a time. {ELSEWHERE}")
    return cls


def loss_class(loss: str | type[ConsistencyLoss]) -> type[ConsistencyLoss]:
    """The consistency loss of that name."""
    cls: type[ConsistencyLoss] = _class(loss, ConsistencyLoss, "consistency loss")
    return cls


def _class(given: Any, base: type[nn.Module], kind: str) -> Any:
    found = given if isinstance(given, type) and issubclass(given, base) else _named(given, base, kind)
    check_class(found, base)
    return found


def _named(given: Any, base: type[nn.Module], kind: str) -> Any:
    if not isinstance(given, str):
        raise ConfigError(f"a {kind} is named or given as its class, and {shown(given)} is neither. Give a name (`medssl plugins list`).")
    plugins = Plugins.load()
    offered = plugins.offered()
    if given in offered and offered[given][0] != kind:
        takes = "PretextTaskd, PretextLoss" if offered[given][0] == "pretext task" else "ConsistencyOnTensors"
        raise ConfigError(f"'{given}' is a {offered[given][0]}, and a {kind} is needed here. Give it to {takes}.")
    return plugins.task(given) if base is PretextTask else plugins.loss(given)


def known_network(network: Any) -> NetworkInfo | None:
    """What a task may know of `network`: that itself, or anything that `as_spec` takes; None where nothing is said."""
    if network is None or isinstance(network, NetworkInfo):
        return network
    return network_info(as_spec(network).pretraining())


def build_task(cls: type[PretextTask], options: Any, network: NetworkInfo) -> PretextTask:
    """The task as a module; `ConfigError` for one whose answer a pipeline cannot give."""
    with blame(cls, "__init__"):
        built = cls(options, network)
    check_built(built, cls.name)
    head_of(built)
    return built


_ANSWERED: dict[type[Any], str] = {ModuleHead: "module of its own", NetworkHead: "network's own output"}


def head_of(task: PretextTask) -> DenseHead | PooledHead:
    """What the task's `head()` says; `ConfigError` for one that a pipeline does not build."""
    with blame(type(task), f"head of task '{task.name}'"):
        head = task.head()
    check_head(head, task, task.name)
    if not isinstance(head, DenseHead | PooledHead):
        raise ConfigError(f"'{task.name}' is answered by a {_ANSWERED[type(head)]}, which a MONAI pipeline does not run. {ELSEWHERE}")
    return head


def unknown_network(spatial_dims: int, channels: int) -> NetworkInfo:
    """One that reads the image's channels, of which nothing else is known."""
    return NetworkInfo(spatial_dims, channels, embedding_width=1, feature_width=1, strides=(1,) * spatial_dims)


def refuse_unknown_network(task: PretextTask) -> None:
    """Raise `ConfigError` where the question depends on the network: only those with an answer for every voxel do not."""
    if not isinstance(head_of(task), DenseHead):
        raise ConfigError(
            f"what '{task.name}' shows is fitted to the network's encoder. Say which it is: "
            "network=partial(SegResNet, spatial_dims=3, ...), a NetworkSpec or a NetworkInfo."
        )


def tried_without_network(cls: type[PretextTask], options: Any) -> PretextTask | None:
    """The task for some image, of a network of which nothing is known; None where only the image can tell whether that is one for it.

    Raises `ConfigError` for a task that asks no image anything without knowing the network, and for one that no pipeline can answer.
    """
    tokens = replace(unknown_network(3, 1), token_grid=(2, 2, 2), crop=(32, 32, 32))
    for network in (*(unknown_network(3, channels) for channels in CHANNELS_TRIED), tokens):
        try:
            with blame(cls, "__init__"):
                built = cls(options, network)
        except MedsslError:
            continue
        check_built(built, cls.name)
        refuse_unknown_network(built)
        return built
    return None


CHANNELS_TRIED = (1, 3, 2, 4)
"""Of images: some tasks want colours, or several."""
