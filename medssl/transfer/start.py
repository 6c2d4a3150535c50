"""What a fine-tuning starts from: the checked configuration, the cases, the network with its first weights, the image form.

Image preparation and spacing of a pretrained checkpoint are taken over; values in the configuration that differ are refused,
since a network must see images as it saw them in pretraining.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medssl.config import check
from medssl.errors import ConfigError, TransferError
from medssl.networks import NetworkSpec, as_spec, check_crop, first_network, stored_spec
from medssl.train.checkpoint import Checkpoint
from medssl.train.loop import seeded
from medssl.train.progress import counting
from medssl.train.weights import SAYS_NO_NETWORK, own_checkpoint
from medssl.transfer.images import ImageForm, Spacing
from medssl.transfer.load import LoadReport, load_pretrained
from medssl.transfer.options import FinetuneConfig
from medssl.transfer.outputs import with_outputs
from medssl.volumes import (
    Case,
    Channel,
    LabelValues,
    Preparation,
    Seen,
    Store,
    are_shown_raw,
    as_spacing,
    channels_of,
    choose_kind,
    dimensions_of,
    kinds_seen,
    label_values_of,
    store_cases,
    stored_cases,
    training_cases,
    usual_preparation,
    with_windows,
)


@dataclass(frozen=True)
class Plan:
    """A fine-tuning that has passed every check that needs no weights."""

    config: FinetuneConfig
    """Resolved: network with its number of outputs, spacing and preparation filled in."""
    spec: NetworkSpec
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    store: Store
    """The training cases."""
    values: LabelValues
    """Which class each value of the label files is."""
    form: ImageForm
    origin: Checkpoint | None
    """The pretrained checkpoint; None from scratch, and for files of other programs, which say nothing of images."""

    @property
    def classes(self) -> tuple[int, ...]:
        """Label values, background aside."""
        return tuple(range(1, int(self.spec.out_channels or 0)))


def make_plan(config: FinetuneConfig, folder: Path, verbose: bool = True) -> Plan:
    """Check cases, labels, crop and pretrained checkpoint; the resolved configuration is the plan's.

    All cases, those of the validation too, are looked at and go into a store in `folder`, or are found there; without `verbose` the
    logger alone hears how that is going.
    """
    origin = own_checkpoint(Path(config.pretrained)) if config.pretrained is not None else None
    spec = _network(config, origin)
    if spec.out_channels is not None and spec.out_channels < 2:
        raise ConfigError("network.out_channels is 1; segmentation needs one for the background and one for each label value.")
    training, validation = training_cases(config.data)
    usual = usual_preparation(dimensions_of([*training, *validation]))
    preparation, spacing = _image_form(config, origin.state if origin is not None else {}, config.pretrained, usual)
    usually = partial(_usual_channels, origin, preparation)
    cases_own = channels_of(config.data, training, preparation.modalities, usually, preparation.grey)
    channels = _as_pretrained(cases_own, origin)
    seen = _seen(origin, preparation)
    if seen is not None and origin is not None and not config.unseen_modality:
        seen.check_modalities(channels, "the cases", str(origin.path), "unseen_modality: true")
    if spec.in_channels != len(channels):
        names = ", ".join(channel.name for channel in channels)
        raise ConfigError(
            f"network.in_channels is {spec.in_channels}; the cases have {len(channels)} channel(s) ({names}). Set it to that."
        )
    check_crop(spec, config.data.size, config.data.batch)
    values = label_values_of(config.data)
    with counting("looking at labelled cases", verbose=verbose) as report:
        store_cases(
            [*training, *validation],
            folder,
            channels,
            spacing=spacing,
            preparation=preparation,
            values=values,
            workers=config.data.threads,
            progress=report,
        )
    if seen is not None:
        seen.check_store(
            stored_cases(folder, [*training, *validation]), {case.volume: f"case '{case.name}'" for case in [*training, *validation]}
        )
    store = stored_cases(folder, training)
    spec = with_outputs(spec, values, store, stored_cases(folder, validation) if validation else None)
    modalities = tuple({channel.array: channel.modality for channel in channels}.values())
    modality = modalities[0] if len(set(modalities)) == 1 else modalities
    data = config.data.model_copy(update={"spacing": spacing, "modality": modality})
    resolved = config.model_copy(update={"network": spec, "data": data, "preparation": preparation})
    form = ImageForm(preparation, spacing, channels, spec.spatial_dims == 2)
    return Plan(resolved, spec, tuple(training), tuple(validation), store, values, form, origin)


def first_weights(plan: Plan) -> tuple[nn.Module, LoadReport | None]:
    """The network before its first step: a function of the seed and of the pretrained checkpoint, if any."""
    config = plan.config
    if config.pretrained is None:
        return first_network(plan.spec, config.seed), None
    with seeded(config.seed, 0, 0, torch.device("cpu")):
        return load_pretrained(
            plan.spec,
            plan.origin or config.pretrained,
            out_channels=plan.spec.out_channels,
            min_coverage=config.min_coverage,
            allow_missing=config.allow_missing,
            rename=config.rename,
            stem=config.stem,
        )


def _network(config: FinetuneConfig, origin: Checkpoint | None) -> NetworkSpec:
    if config.network is not None:
        return as_spec(config.network)
    if origin is None or "network" not in origin.state:
        raise TransferError(f"{config.pretrained} {SAYS_NO_NETWORK}")
    spec = stored_spec(origin.state["network"], f"the network in {origin.path}")
    return as_spec(spec.model_copy(update={"out_channels": None}))


def _as_pretrained(channels: tuple[Channel, ...], origin: Checkpoint | None) -> tuple[Channel, ...]:
    """The channels that a pretrained network was shown of as many images; the cases' own where it says none or they are others."""
    kinds = kinds_seen(origin.state) if origin is not None else ()
    if origin is None or len(kinds) != 1:
        return channels
    theirs = kinds[0].channels
    arrays = {channel.array for channel in channels}
    if len(channels) == len(arrays) < len(theirs) and arrays == {channel.array for channel in theirs}:
        return theirs
    ours, names = ([channel.name for channel in some] for some in (channels, theirs))
    if ours != names and sorted(ours) == sorted(names):
        raise ConfigError(
            f"the cases have the channels {', '.join(ours)}, and {origin.path} was trained on {', '.join(names)}: the network would see "
            "one for the other. Give the images in that order."
        )
    return channels


def _image_form(config: FinetuneConfig, state: Mapping[str, Any], origin: str | None, usual: Preparation) -> tuple[Preparation, Spacing]:
    """`usual`: where neither the configuration nor the pretrained checkpoint says more."""
    preparation, spacing = config.preparation, as_spacing(config.data.spacing)
    if state.get("preparation") is not None:
        theirs = check(Preparation, state["preparation"], f"preparation in {origin}")
        if preparation is not None and preparation != theirs and not are_shown_raw(kinds_seen(state), theirs):
            _refuse("preparation", preparation.model_dump(mode="json"), theirs.model_dump(mode="json"), origin)
        preparation = preparation or theirs
    if state.get("spacing") is not None:
        pretrained = as_spacing(state["spacing"])
        if spacing is not None and spacing != pretrained:
            _refuse("data.spacing", spacing, pretrained, origin)
        spacing = pretrained
    if state.get("preparation") is None:
        return with_windows(preparation or usual, config.data.windows), spacing
    windows = with_windows(Preparation(), config.data.windows).channels
    unseen = [name for name in windows if name not in (preparation or usual).channels]
    if unseen:
        raise ConfigError(f"data.windows names {', '.join(unseen)}, which {origin} never saw. Leave data.windows out, or pretrain again.")
    return preparation or usual, spacing


def _usual_channels(origin: Checkpoint | None, preparation: Preparation) -> tuple[Channel, ...]:
    """What the network was pretrained on, where that is one kind of images."""
    kinds = kinds_seen(origin.state) if origin is not None else ()
    if origin is None or not kinds:
        return ()
    return choose_kind(kinds, preparation, None, str(origin.path), "data.modality: CT").channels


def _seen(origin: Checkpoint | None, preparation: Preparation) -> Seen | None:
    """What the pretrained network saw; None where nothing says."""
    kinds = kinds_seen(origin.state) if origin is not None else ()
    if origin is None or not kinds or origin.state.get("preparation") is None:
        return None
    theirs = check(Preparation, origin.state["preparation"], f"preparation in {origin.path}")
    return Seen(kinds, theirs, None if theirs == preparation else preparation)


def _refuse(key: str, given: Any, theirs: Any, origin: str | None) -> None:
    raise ConfigError(
        f"{key} is {given}, but {origin} was pretrained with {theirs}: the network would see other images than it learned on. "
        f"Leave {key} out, or pretrain again."
    )
