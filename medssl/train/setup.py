"""What a pretraining starts from: the checked configuration, the store, the network and its objective.

Everything that can be known before the first step is checked here, so that a run of days does not end in its first minute.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from medssl.augment import ViewOptions
from medssl.config import check
from medssl.contracts import ConsistencyLoss, PretextTask
from medssl.errors import ConfigError, PluginError, TransferError, UsageError
from medssl.learn import Objective, build_objective, check_crop
from medssl.learn.joining import rank, world
from medssl.learn.terms import Term, TermOptions, resolve_losses, resolve_tasks
from medssl.networks import NetworkSpec, as_spec, stored_spec
from medssl.networks.difference import head_tensors
from medssl.networks.names import network_names
from medssl.networks.transferable import load_matching
from medssl.plugins import Plugins
from medssl.train.checkpoint import Checkpoint
from medssl.train.checkpoint_state import checksum_of
from medssl.train.config import PretrainConfig, read_config
from medssl.train.definition import Training
from medssl.train.device import choose_device, choose_dtype
from medssl.train.weights import SAYS_NO_NETWORK, Weights, own_checkpoint, read_weights
from medssl.volumes import CropLoader, DataOptions, Preparation, Seen, Store, channels_of_crops, kinds_document, kinds_of, kinds_seen

MIN_COVERAGE = 0.9
"""Least share of a network, its head aside, that a further round must find in the run it goes on from."""


@dataclass(frozen=True)
class Plan:
    """A pretraining that has passed every check that needs no step."""

    config: PretrainConfig
    """Resolved: the terms with all their options."""
    spec: NetworkSpec
    store: Store
    tasks: tuple[Term[PretextTask], ...]
    losses: tuple[Term[ConsistencyLoss], ...]
    origin: Checkpoint | None
    """What `from:` names; None where that is nothing, or a file of tensors, which says nothing of images."""
    first: Weights | None
    """The weights there."""
    plugins: Plugins

    def objective(self) -> Objective:
        """Network, heads and terms with their first weights, a function of the seed and of `from:`."""
        config = self.config
        terms = self.tasks, self.losses
        built = build_objective(self.spec, *terms, config.views, config.seed, self.plugins, config.data.size, config.combine)
        check_crop(built, config.data.size, config.data.batch)
        if self.first is not None:
            _load_origin(built, self.first)
        return built

    def training(self) -> Training:
        """The plan made ready: what is trained, on which crops, and what its checkpoints say."""
        config, store = self.config, self.store
        objective = self.objective()

        def loader(first_step: int) -> CropLoader:
            return CropLoader(
                store, config.data, config.seed, config.train.accumulate, first_step, rank(), world(), body=objective.wants_body
            )

        document = {
            "preparation": store.preparation.model_dump(mode="json"),
            "spacing": config.data.voxel_mm if len(config.data.voxel_mm or ()) == 3 else store.manifest.spacing,
            "channels": len(channels_of_crops(store, config.data)),
            "channel_names": list(channels_of_crops(store, config.data)),
            **trained_on(store, config.data.size, config.tasks, config.consistency),
        }
        return Training(
            kind="pretrain",
            title="pretraining",
            config=config,
            options=config.train,
            seed=config.seed,
            objective=objective,
            loader=loader,
            batch=config.data.batch,
            data=store_fingerprint(store),
            document=document,
            plugins=self.plugins,
            origin=self.origin,
        )


def make_plan(
    config: str | Path | Mapping[str, Any] | PretrainConfig | None,
    overrides: Sequence[str],
    given: Mapping[str, Any],
    plugins: Plugins,
    open_store: Callable[[str], Store] = Store,
) -> Plan:
    """Check a configuration (a file, a mapping, or nothing) with `given` arguments laid over it, what needs no images first."""
    terms = {key: given[key] for key in ("tasks", "consistency") if key in given}
    others = {key: value for key, value in given.items() if key not in terms}
    checked = read_config(PretrainConfig, config, overrides, others, "pretraining")
    tasks = tuple(resolve_tasks(terms.get("tasks", [term.document() for term in checked.tasks]), plugins))
    losses = tuple(resolve_losses(terms.get("consistency", [term.document() for term in checked.consistency]), plugins))
    if not tasks and not losses:
        _refuse_nothing(plugins)
    origin = own_checkpoint(Path(checked.from_)) if checked.from_ is not None else None
    first = read_weights(origin or checked.from_) if checked.from_ is not None else None
    spec = _network(checked, origin).checked()
    _check_sides(spec, checked.data)
    choose_dtype(checked.train.precision, choose_device(checked.train.device))
    store = open_store(checked.data.store)
    if not checked.data.unfinished:
        store.check_finished("data.unfinished=true")
    _check_channels(spec, store, checked.data)
    _check_preparation(store, origin)
    resolved = {"network": spec, "tasks": documents(tasks), "consistency": documents(losses)}
    return Plan(checked.model_copy(update=resolved), spec, store, tasks, losses, origin, first, plugins)


def documents(terms: Sequence[Term[Any]]) -> tuple[TermOptions, ...]:
    """The terms with every option filled in, as the run's `config.yaml` has them."""
    return tuple(check(TermOptions, term.document()) for term in terms)


def _refuse_nothing(plugins: Plugins) -> None:
    if not plugins.tasks() and not plugins.losses():
        raise PluginError(
            "no plugin with a pretext task is installed. Install one: pip install medssl-inpainting medssl-placement medssl-consistency"
        )
    raise ConfigError("nothing to learn: name at least one pretext task under `tasks:` (see: medssl plugins list).")


def _network(config: PretrainConfig, origin: Checkpoint | None) -> NetworkSpec:
    if config.network is not None:
        return as_spec(config.network)
    if origin is None or "network" not in origin.state:
        raise TransferError(f"{config.from_} {SAYS_NO_NETWORK}")
    spec = as_spec(stored_spec(origin.state["network"], f"the network in {origin.path}"))
    # A task of that run may have changed what the network takes; this round's tasks say anew what they make of the images.
    return spec.model_copy(update={"in_channels": origin.state.get("channels") or spec.in_channels})


def _check_sides(spec: NetworkSpec, data: DataOptions) -> None:
    if len(data.size) != spec.spatial_dims:
        raise ConfigError(
            f"data.size has {len(data.size)} sides and the network {spec.spatial_dims} spatial dimensions. "
            "Give as many sides, or another network.spatial_dims."
        )


def _check_channels(spec: NetworkSpec, store: Store, data: DataOptions) -> None:
    channels = channels_of_crops(store, data)
    if len(channels) != spec.in_channels:
        raise ConfigError(
            f"the crops of {data.store} have {len(channels)} channel(s) ({', '.join(channels)}) and network.in_channels is "
            f"{spec.in_channels}. Set network.in_channels: {len(channels)}."
        )


def _check_preparation(store: Store, origin: Checkpoint | None) -> None:
    if origin is None or origin.state.get("preparation") is None:
        return
    theirs = check(Preparation, origin.state["preparation"], f"preparation in {origin.path}")
    if theirs != store.preparation:
        ours, other = (one.model_dump(mode="json") for one in (store.preparation, theirs))
        raise ConfigError(
            f"the store prepares images by {ours}, {origin.path} was trained on images prepared by {other}: the network would see "
            "other images than it learned on. Make the store with the same preparation."
        )
    Seen(kinds_seen(origin.state), theirs).check_store(store, {})


def _load_origin(objective: Objective, origin: Weights) -> None:
    spec, network = objective.spec, objective.network
    names = network_names(origin.tensors, network.state_dict(), origin.path, {})
    heads = {*head_tensors(spec), *(names.of.get(name, name) for name in origin.head)}
    matched = load_matching(network, {new: origin.tensors[name] for name, new in names.of.items()}, heads)
    if objective.teacher is not None:
        objective.teacher.network.load_state_dict(objective.network.state_dict())
    if matched.coverage < MIN_COVERAGE:
        raise TransferError(
            f"only {matched.coverage:.1%} of {spec} (its head aside) is in {origin.path}; a further round needs {MIN_COVERAGE:.0%}. "
            "Name the same network as in that run, or leave `network:` out."
        )
    first = [name for name in matched.new if name not in heads]
    if first:
        warnings.warn(
            f"this round goes on from {matched.coverage:.1%} of the network in {origin.path}; these begin anew: {', '.join(first[:5])}"
            f"{' and others' if len(first) > 5 else ''}.",
            stacklevel=2,
        )


def trained_on(store: Store, size: Sequence[int], tasks: Sequence[TermOptions], consistency: Sequence[TermOptions]) -> dict[str, Any]:
    """What the checkpoints of every training say of what it sees: the kinds of images, crops of `size` (voxels), and its terms."""
    return {
        "kinds": kinds_document(kinds_of(store)),
        "size": list(size),
        "tasks": [term.document() for term in tasks],
        "consistency": [term.document() for term in consistency],
    }


def store_fingerprint(store: Store) -> str:
    """What a resumed run must find again: every volume by its data, and how all were resampled and are prepared."""
    volumes = list(zip(store.column("content"), store.patients.tolist(), store.shapes().tolist(), strict=True))
    return checksum_of(json.dumps([volumes, store.manifest.model_dump(mode="json")], sort_keys=True).encode())


def given_parts(
    network: Any,
    data: Any,
    tasks: Any,
    consistency: Any,
    size: Any,
    batch: int | None,
    views: Any,
    seed: int | None,
    origin: str | None,
    encoder_end: str | None,
    train: Mapping[str, Any],
) -> dict[str, Any]:
    """The keys of a configuration that were given as arguments of `pretrain`."""
    given: dict[str, Any] = {}
    if network is not None:
        spec = as_spec(network)
        given["network"] = spec if encoder_end is None else spec.model_copy(update={"encoder_end": encoder_end})
    elif encoder_end is not None:
        raise ConfigError("encoder_end names a submodule of a network. Give the network beside it.")
    if data is not None or size is not None or batch is not None:
        given["data"] = _data(data) | {key: value for key, value in (("size", size), ("batch", batch)) if value is not None}
    for key, terms in (("tasks", tasks), ("consistency", consistency)):
        if terms is not None:
            given[key] = [terms] if isinstance(terms, str | Mapping) else list(terms)
    if views is not None:
        given["views"] = views if isinstance(views, ViewOptions) else dict(views)
    if seed is not None:
        given["seed"] = seed
    if origin is not None:
        given["from"] = origin
    if train:
        given["train"] = dict(train)
    return given


def _data(data: Any) -> dict[str, Any]:
    if data is None:
        return {}
    if isinstance(data, DataOptions):
        return data.model_dump(exclude_unset=True)
    if isinstance(data, Mapping):
        return dict(data)
    if isinstance(data, Store):
        return {"store": str(data.folder)}
    if isinstance(data, str | PurePath):
        return {"store": str(data)}
    what = "an empty list" if isinstance(data, list | tuple) and not data else f"a {type(data).__name__}"
    raise UsageError(
        f"data is {what}. Give a store or its folder, the options of `data:`, a list of dictionaries, or a dataset of them (not a loader)."
    )
