"""What is refused: terms that do not fit each other, the network or the crops."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from medssl.augment import ViewOptions
from medssl.contracts import ConsistencyLoss, Crops, NetworkInfo, PretextTask
from medssl.errors import ConfigError, DataError, NetworkError, PluginError
from medssl.learn.heads import require_dense, require_encoder
from medssl.learn.promises import Who, calling, cleaned, overrides
from medssl.learn.questions import ForwardPass
from medssl.networks import NetworkSpec, fixed_size
from medssl.plugins import Plugins


def check_terms(
    tasks: Mapping[str, PretextTask],
    losses: Mapping[str, ConsistencyLoss],
    info: NetworkInfo,
    spec: NetworkSpec,
    views: ViewOptions,
    plugins: Plugins,
) -> None:
    """Raise `ConfigError` or `NetworkError` for terms that cannot be trained together on this network."""
    if not tasks and not losses:
        raise ConfigError("nothing to learn: name at least one pretext task under `tasks:` or one loss under `consistency:`.")
    for key, loss in losses.items():
        if "answers" in loss.needs and not any(task.same_for_views for task in tasks.values()):
            raise ConfigError(
                f"'{key}' compares the answers of two views, and no task here gives both the same answer"
                f"{' (' + ', '.join(tasks) + ')' if tasks else ''}. Add a task such as inpainting, or compare embeddings (simsiam)."
            )
        if "task_embeddings" in loss.needs and not tasks:
            raise ConfigError(f"'{key}' compares embeddings of what a task shows, and there is no task. Add one under `tasks:`.")
        if "feature_maps" in loss.needs:
            require_dense(info, spec, f"the loss '{key}' compares feature maps")
        if {"embeddings", "task_embeddings"} & loss.needs:
            require_encoder(info, spec, plugins)
    needs = {need for loss in losses.values() for need in loss.needs}
    if not views.is_affine and needs & {"answers", "feature_maps"}:
        what = "views.transforms move" if views.transforms else "views.elastic moves"
        raise ConfigError(
            f"{what} voxels in a way no affine describes, so the voxels of two views cannot be compared. "
            "Leave out elastic and grid distortions, or compare embeddings only (simsiam)."
        )


def input_channels(tasks: Mapping[str, PretextTask], channels: int) -> int:
    """Channels that the network takes for images of `channels` channels; `ConfigError` where the tasks disagree."""
    asked: dict[str, int] = {}
    for key, task in tasks.items():
        with calling(task, key, "input_channels"):
            asked[key] = task.input_channels(channels)
        if not isinstance(asked[key], int) or asked[key] < 1:
            raise PluginError(f"{Who(task, key)}: input_channels() gave {asked[key]!r}; a whole number of 1 or more is needed.")
    if len(set(asked.values())) > 1:
        raise ConfigError(f"the tasks disagree about the channels of the network's input: {asked}. Train them in rounds (`from:`).")
    return next(iter(asked.values()), channels)


def check_crops(crops: Crops, info: NetworkInfo) -> None:
    """Raise `DataError` for crops of other dimensions or channels than the network was built for."""
    if crops.spatial_dims != info.spatial_dims or crops.images.shape[1] != info.channels:
        raise DataError(
            f"crops of shape {tuple(crops.images.shape)} do not fit the network: it takes {info.channels} channels "
            f"and {info.spatial_dims} spatial dimensions. Change `network` or `data`."
        )


def clean_input(crops: Crops, tasks: Mapping[str, PretextTask]) -> Tensor:
    """(B, C, *size): what the network is shown of the crops themselves, as the first task that has an opinion says."""
    for key, task in tasks.items():
        if overrides(task, PretextTask, "clean"):
            return cleaned(task, key, crops)
    return crops.images


def check_clean(crops: Crops, tasks: Mapping[str, PretextTask]) -> None:
    """Raise `ConfigError` where two tasks show other things uncorrupted: what views are embedded as would depend on their order."""
    shown = {key: cleaned(task, key, crops) for key, task in tasks.items() if overrides(task, PretextTask, "clean")}
    for (one, first), (other, second) in pairwise(shown.items()):
        if first.shape != second.shape or not torch.equal(first, second):
            raise ConfigError(f"'{one}' and '{other}' disagree about what an uncorrupted input looks like. Train them in rounds (`from:`).")


def check_groups(crops: Crops, terms: Mapping[str, PretextTask | ConsistencyLoss]) -> None:
    """Raise `ConfigError` where a term compares the crops of a volume and every crop comes from another."""
    comparing = [key for key, term in terms.items() if term.compares == "group"]
    if comparing and len(set(crops.group.tolist())) == len(crops):
        raise ConfigError(
            f"'{comparing[0]}' compares crops of one volume, and each comes from another. Set data.crops_per_volume to 2 or more."
        )


def check_size(one: ForwardPass, spec: NetworkSpec) -> None:
    """Raise where a pass shows pieces of the crops to a network that takes one size alone."""
    fixed, shown = fixed_size(spec), tuple(one.inputs.shape[2:])
    if fixed is None or fixed == shown:
        return
    what = f"the task '{one.questions[0].key}'" if one.host is not None else "something here"
    raise NetworkError(
        f"{what} shows pieces of {' x '.join(map(str, shown))} voxels, and {spec} takes {' x '.join(map(str, fixed))} alone (img_size). "
        "Take a task that shows whole crops, or a network without a fixed size."
    )


def check_channels(one: ForwardPass, takes: int) -> None:
    """Raise where a pass shows another number of channels than the network takes."""
    shown = one.inputs.shape[1]
    if shown == takes:
        return
    if one.host is None:
        raise ConfigError(
            f"the tasks need a network of {takes} input channels, and something here (a loss on embeddings, or a task that rides on "
            f"another's input) shows it the {shown} channels of the images themselves. A task that changes the channels says by `clean` "
            "what it shows uncorrupted; with one that does not, train in rounds (`from:`)."
        )
    question = one.questions[0]
    raise PluginError(f"{Who(question.task, question.key)} shows {shown} channels and announced {takes}.")
