"""From a configuration to an objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from medssl.augment import ViewOptions
from medssl.learn.objective import Objective
from medssl.learn.terms import resolve_losses, resolve_tasks
from medssl.networks import as_spec, network_info
from medssl.plugins import Plugins


def build_objective(
    network: Any,
    tasks: Sequence[Any] = (),
    consistency: Sequence[Any] = (),
    views: ViewOptions | None = None,
    seed: int = 0,
    plugins: Plugins | None = None,
) -> Objective:
    """The objective of a network specification (anything `as_spec` takes) and of terms by name, class or object.

    First weights of network, heads and terms depend on `seed` alone; torch's global generator is left as it was. Raises
    `ConfigError` with the path of a wrong option, `PluginError` for a term that is not installed, `NetworkError` for a term
    that this network cannot answer.
    """
    plugins = plugins or Plugins.load()
    spec = as_spec(network).pretraining()
    task_terms, loss_terms = resolve_tasks(tasks, plugins), resolve_losses(consistency, plugins)
    info = network_info(spec, plugins)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        built = [(term.build(info), term.weight) for term in task_terms]
        losses = [(term.build(info), term.weight) for term in loss_terms]
        module = spec.build(in_channels=_input_channels([task for task, _ in built], info.channels), seed=seed)
        return Objective(module, spec, built, losses, views or ViewOptions(), seed, plugins)


def _input_channels(tasks: Sequence[Any], channels: int) -> int:
    asked = {task.input_channels(channels) for task in tasks} or {channels}
    return int(max(asked))
