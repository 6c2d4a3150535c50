"""From a configuration to an objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from medssl.augment import ViewOptions
from medssl.contracts import ConsistencyLoss, PretextTask
from medssl.learn.checks import input_channels
from medssl.learn.objective import Objective
from medssl.learn.terms import Term, check_keys, resolve_losses, resolve_tasks
from medssl.learn.weighing import Combine
from medssl.networks import NetworkSpec, as_spec, first_network, network_info
from medssl.plugins import Plugins


def build_objective(
    network: Any,
    tasks: Sequence[Any] = (),
    consistency: Sequence[Any] = (),
    views: ViewOptions | None = None,
    seed: int = 0,
    plugins: Plugins | None = None,
    crop: Sequence[int] | None = None,
    combine: Combine = "sum",
) -> Objective:
    """The objective of a network specification (anything `as_spec` takes) and of terms by name, class or object.

    `network` says how many channels the images have; the objective's own `spec` says how many the network takes for these tasks.
    First weights of network, heads and terms depend on `seed` alone; torch's global generator is left as it was. Raises
    `ConfigError` with the path of a wrong option, `PluginError` for a term that is not installed, `NetworkError` for a term
    that this network cannot answer.
    """
    plugins = plugins or Plugins.load()
    terms = resolve_tasks(tasks, plugins), resolve_losses(consistency, plugins)
    spec = as_spec(network).pretraining()
    return assemble(spec, *terms, views or ViewOptions(), seed, plugins, crop, lambda own: first_network(own, seed), combine)


def assemble(
    spec: NetworkSpec,
    tasks: Sequence[Term[PretextTask]],
    losses: Sequence[Term[ConsistencyLoss]],
    views: ViewOptions,
    seed: int,
    plugins: Plugins,
    crop: Sequence[int] | None,
    first: Callable[[NetworkSpec], nn.Module],
    combine: Combine = "sum",
) -> Objective:
    """The objective of resolved terms over the network that `first` gives for the specification it takes with these tasks."""
    check_keys([*tasks, *losses])
    info = network_info(spec, plugins, crop)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        built = [term.build(info) for term in tasks]
        compared = [term.build(info) for term in losses]
        takes = input_channels({term.key: term.module for term in built}, info.channels)
        own = spec.model_copy(update={"in_channels": takes})
        return Objective(first(own), own, built, compared, views, seed, plugins, info, combine)
