"""Which tasks a MONAI pipeline can ask, and what they are told of the network."""

from __future__ import annotations

from typing import Any

from medssl.contracts import DenseHead, NetworkInfo, PretextTask
from medssl.errors import ConfigError
from medssl.learn.promises import check_built, check_class
from medssl.networks import as_spec, network_info
from medssl.plugins import Plugins, blame

ELSEWHERE = "Train it with medssl.pretrain."
"""What to do with tasks that need more than one item of a MONAI pipeline, or more than a network's forward pass."""


def task_class(task: str | type[PretextTask]) -> type[PretextTask]:
    """The task of that name; `ConfigError` for one that needs what a MONAI pipeline does not have."""
    cls = Plugins.load().task(task) if isinstance(task, str) else task
    if {"teacher", "teacher_answer"} & cls.needs:
        raise ConfigError(f"'{cls.name}' needs a teacher, which a MONAI pipeline does not keep. {ELSEWHERE}")
    if "body" in cls.needs:
        raise ConfigError(f"'{cls.name}' needs to know where the body is, which the items of a MONAI pipeline do not say. {ELSEWHERE}")
    if cls.compares != "nothing":
        raise ConfigError(f"'{cls.name}' compares crops with each other, and a MONAI pipeline asks about one at a time. {ELSEWHERE}")
    return cls


def known_network(network: Any) -> NetworkInfo | None:
    """What a task may know of `network`: that itself, or anything that `as_spec` takes; None where nothing is said."""
    if network is None or isinstance(network, NetworkInfo):
        return network
    return network_info(as_spec(network).pretraining())


def build_task(cls: type[PretextTask], options: Any, network: NetworkInfo) -> PretextTask:
    """The task as a module."""
    check_class(cls, PretextTask)
    with blame(cls, "__init__"):
        built = cls(options, network)
    check_built(built, cls.name)
    return built


def unknown_network(spatial_dims: int, channels: int) -> NetworkInfo:
    """One that reads the image's channels, of which nothing else is known."""
    return NetworkInfo(spatial_dims, channels, embedding_width=1, feature_width=1, strides=(1,) * spatial_dims)


def refuse_unknown_network(task: PretextTask) -> None:
    """Raise `ConfigError` where the question depends on the network: only those with an answer for every voxel do not."""
    with blame(type(task), "head"):
        head = task.head()
    if not isinstance(head, DenseHead):
        raise ConfigError(
            f"what '{task.name}' shows is fitted to the network's encoder. Say which it is: "
            "network=partial(SegResNet, spatial_dims=3, ...), a NetworkSpec or a NetworkInfo."
        )
