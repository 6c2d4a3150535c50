"""Pretraining: a network learns from a store's volumes without labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medssl.config import check
from medssl.errors import UsageError
from medssl.plugins import Plugins
from medssl.run import Run
from medssl.train.config import PretrainConfig
from medssl.train.progress import counting
from medssl.train.run_folder import VOLUMES, holds_run, refuse_other_run
from medssl.train.setup import given_parts, make_plan
from medssl.train.training import run_training
from medssl.train.weights import Source, origin_given, origin_path
from medssl.volumes import Preparation, Store, are_items, store_items


def pretrain(
    network: Any = None,
    data: Any = None,
    tasks: Any = None,
    consistency: Any = None,
    out: str | Path | None = None,
    *,
    size: Sequence[int] | None = None,
    batch: int | None = None,
    views: Any = None,
    seed: int | None = None,
    from_: Source | None = None,
    modality: str | None = None,
    preparation: Preparation | Mapping[str, Any] | None = None,
    encoder_end: str | None = None,
    config: str | Path | Mapping[str, Any] | PretrainConfig | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    verbose: bool = True,
    handlers: Sequence[Any] = (),
    plugins: Plugins | None = None,
    **train: Any,
) -> Run:
    """Pretrain a network on a store and return the run; `out` becomes its folder.

    Give a `config` (a YAML file or a mapping), or the parts, or both (the parts win). `network` is a `NetworkSpec`, a name, a callable
    taking `out_channels`, such as `partial(SegResNet, ...)`, or a network that exists, which is left as it is: the run trains one like
    it, from its weights on. `encoder_end` names the submodule where its encoder ends, if a term reads that and medssl does not know.
    `data` is a store's folder with `size` (voxels) and `batch`, the options of `data:`, or a MONAI dataset or datalist, of which a store
    is made in `out`, as `medssl.monai.store_items` does; with these go `modality`, of items that say none themselves (under the key
    `modality`, or in their files), and `preparation`. `tasks` and `consistency` are lists of names, mappings, classes or objects;
    `from_` an earlier run that this round goes on from, a file of weights or a state dict (with `network`); further keywords are options
    of `train:`, such as `steps=1000`. With `resume` the run goes on from its newest good checkpoint, or starts. Without `verbose`
    progress goes to the logger `medssl.train` (level INFO) alone.

    Raises:
        ConfigError: unknown keys, values out of range, a network that does not fit the store.
        PluginError: a task that is not installed, or one that failed, with its package.
        Stopped: SIGINT, SIGTERM or SIGUSR1 came; a checkpoint was written before.
    """
    if out is None:
        raise UsageError("pretrain needs out, the folder of the run.")
    if are_items(data):
        place = Path(out) / VOLUMES
        open_store: Callable[[str], Store] = partial(
            _stored, data=data, out=Path(out), resume=resume, verbose=verbose, modality=modality, preparation=_rules(preparation)
        )
    elif modality is None and preparation is None:
        place, open_store = data, Store
    else:
        raise UsageError("modality and preparation say what the items of a dataset are. A store knows it of its volumes: make it so.")
    origin = origin_path(origin_given(from_, config, "from"), out, resume)
    given = given_parts(network, place, tasks, consistency, size, batch, views, seed, origin, encoder_end, train)
    plan = make_plan(config, overrides, given, plugins or Plugins.load(), open_store)
    return run_training(out, lambda _: plan.training(), resume=resume, handlers=handlers, verbose=verbose)


def _rules(preparation: Preparation | Mapping[str, Any] | None) -> Preparation | None:
    if preparation is None or isinstance(preparation, Preparation):
        return preparation
    if not isinstance(preparation, Mapping):
        raise UsageError(
            f"preparation is of {type(preparation).__name__}. Give a Preparation or its options; transforms go into the dataset."
        )
    return check(Preparation, preparation, "preparation")


def _stored(
    folder: str, *, data: Any, out: Path, resume: bool, verbose: bool, modality: str | None, preparation: Preparation | None
) -> Store:
    """The items of a MONAI pipeline as a store in the run's folder, where a run that goes on finds them again."""
    if not (resume and holds_run(out)):
        refuse_other_run(out)
    with counting("storing items", verbose=verbose) as report:
        # Labels are nothing that a pretraining reads: odd ones are no reason to refuse the images.
        done = store_items(data, folder, label_key=None, modality=modality, preparation=preparation, progress=report)
    for volume, reason in done.left_out.items():
        warnings.warn(f"{volume} is left out: {reason}", stacklevel=4)
    store = Store(folder)
    if len(store) != done.volumes:
        raise UsageError(f"{folder} holds items of other data too. Delete it, or give another folder as out.")
    return store
