"""Labelled cases on disk: which image belongs to which label, and which of them a training may see.

Forms: a Decathlon or nnU-Net folder with `dataset.json`, a datalist JSON file (Auto3DSeg), two folders of files with equal names, NIfTI or
pictures, or an index of DICOM with its label objects. Each case is checked before anything is trained.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

from medssl.archive import Index
from medssl.archive.nifti.modality import UNKNOWN, checked_modality, named_modality
from medssl.config import did_you_mean
from medssl.errors import ConfigError, DataError
from medssl.volumes.cases.case import Case
from medssl.volumes.cases.checking import channel_count, checked
from medssl.volumes.cases.datalists import Listed, folders, from_dataset, read_list
from medssl.volumes.cases.label_values import LabelValues, label_values
from medssl.volumes.cases.options import LabelledOptions
from medssl.volumes.cases.patients import Whose, patients_of, refuse_divided
from medssl.volumes.cases.sources import IndexedImage, indexed_cases, is_coloured, is_scaled
from medssl.volumes.preparation import COLOURS, Channel, windowed


def find_cases(options: LabelledOptions) -> list[Case]:
    """The checked cases of `options.split`, sorted by name; with `labelled` the first N of the seeded order.

    Raises `DataError` for a label without image, an image without label, grids that differ, or no cases; `MissingInput` for files
    that are not there; `ConfigError` for an unknown split.
    """
    found, _ = checked(options, _first(_split(_splits(options), options), options))
    return found


def _split(splits: Mapping[str, list[Case]], options: LabelledOptions) -> list[Case]:
    if splits and options.split not in splits:
        raise ConfigError(f"data.split '{options.split}' is none of the splits{did_you_mean(options.split, splits)}")
    if splits and not splits[options.split]:
        others = ", ".join(f"'{name}' has {len(cases)}" for name, cases in splits.items() if name != options.split)
        beside = f"; of the others {others}" if others else ""
        raise DataError(f"split '{options.split}' of {options.splits or options.dataset or options.images} has no case{beside}.")
    return splits.get(options.split, [])


def training_cases(options: LabelledOptions) -> tuple[list[Case], list[Case]]:
    """(training, validation): the splits' own validation where they have one, else the share `validation` of the patients.

    `labelled` limits the training cases alone.
    """
    splits = _splits(options)
    if "validation" in splits or options.split != "train" or options.validation == 0:
        training, held_out = checked(options, _first(_split(splits, options), options), splits.get("validation", []))
        refuse_divided(training, held_out)
        return training, held_out
    cases = _split(splits, options)
    order = _seeded({case.patient for case in cases}, options.labelled_seed)
    held = set(order[: math.ceil(options.validation * len(order))]) if len(order) > 1 else set()
    training = [case for case in cases if case.patient not in held]
    validation = [case for case in cases if case.patient in held]
    return checked(options, _first(training, options), validation)


def channels_of(
    options: LabelledOptions,
    cases: Sequence[Case],
    known: Collection[str] = (),
    usual: Callable[[], Sequence[Channel]] = tuple,
    grey: bool = False,
) -> tuple[Channel, ...]:
    """The channels of these cases, with names and modalities: the option's, else those of `dataset.json`, else the `usual`, else MR.

    `known`: modalities for which the preparation has a rule, beside DICOM's. `usual` is asked only where nothing else says.

    One array is named by its modality, as in a store; several as `dataset.json` names them, else by their number; those of a picture in
    colour R, G and B, unless they are `grey`.
    """
    coloured = len(cases[0].images) == 1 and is_coloured(cases[0].images[0])
    count = 1 if coloured and grey else channel_count(cases[0])
    listed, other = _channel_names(options), "MR" if is_scaled(cases[0].images) else UNKNOWN
    plain = COLOURS if coloured and not grey else [f"channel {number}" for number in range(count)]
    names = listed if len(listed) == count else list(plain)
    given = [options.modality] * count if isinstance(options.modality, str) else options.modality
    modalities: list[str | None]
    if given is not None:
        modalities = [checked_modality(name, known, "data.modality") for name in given]
    else:
        modalities = [_modality_of_index(cases) or named_modality(name) for name in names]
    if None in modalities:
        seen = tuple(usual())
        if len(seen) == count:
            if listed != names and not any(modalities):
                return seen
            modalities = [said or one.modality for said, one in zip(modalities, seen, strict=True)]
        modalities = [said or other for said in modalities]
    if len(modalities) != count:
        raise ConfigError(f"data.modality names {len(modalities)} modalities, and the cases have {count} channel(s). Give one, or {count}.")
    said = [str(modality) for modality in modalities]
    return windowed(map(Channel, names if count > 1 else said, said, range(count)), options.windows)


def _modality_of_index(cases: Sequence[Case]) -> str | None:
    """What the index says of its volumes, which must agree; None for files."""
    found = sorted({image.record.modality for case in cases for image in case.images if isinstance(image, IndexedImage)})
    if len(found) > 1:
        raise ConfigError(
            f"the labelled volumes of the index are {', '.join(found)}, each prepared by its own rule. Choose by data.where, such as "
            f"data.where=\"modality = '{found[0]}'\", or say by data.modality what all are prepared as."
        )
    return found[0] if found and found[0] != "unknown" else None


def label_values_of(options: LabelledOptions) -> LabelValues:
    """Which class each value of the label files is: the option's, else that of `dataset.json`."""
    return label_values(options.label_values, _dataset(options), options.named)


def _channel_names(options: LabelledOptions) -> list[str]:
    content = _dataset(options)
    names = (content.get("modality") or content.get("channel_names") or {}) if isinstance(content, Mapping) else {}
    if isinstance(names, str):
        return [names]
    return [str(names[key]) for key in sorted(names, key=int)] if isinstance(names, Mapping) and all(key.isdigit() for key in names) else []


def _dataset(options: LabelledOptions) -> Any:
    """The content of `dataset.json` or of a datalist; None for two folders."""
    if options.dataset is None:
        return None
    path = Path(options.dataset)
    return read_list(path / "dataset.json" if path.is_dir() else path)


def _splits(options: LabelledOptions) -> dict[str, list[Case]]:
    if options.dataset is not None:
        listed = from_dataset(Path(options.dataset), options.fold if options.splits is None else None)
    elif options.index is not None:
        listed = {"train": _indexed(options.index, options.where)}
    else:
        listed = {"train": folders(Path(options.images or ""), Path(options.labels) if options.labels is not None else None)}
    every = [item for items in listed.values() for item in items]
    whose = patients_of(every, options.patient, options.patients)
    if options.splits is None:
        return {name: _cases(items, whose) for name, items in listed.items() if items}
    by_name = {item.name: item for item in every}
    return {name: _cases(_named(names, by_name, options.splits), whose) for name, names in _split_file(options).items()}


def _indexed(folder: str, where: str | None) -> list[Listed]:
    """The labelled volumes of an index; what was paired is said where some label objects have no volume."""
    found, pairing = indexed_cases(Index(folder), where)
    if not found:
        raise DataError(
            f"no volume of the index {folder}{f' where {where}' if where else ''} has a label object: {pairing}. "
            f"`medssl labels {folder}` shows what there is."
        )
    if pairing.unpaired:
        warnings.warn(f"{pairing}. `medssl labels {folder}` shows what there is.", stacklevel=2)
    return [Listed(one.name, (one.image,), one, one.image.record.patient) for one in found]


def _split_file(options: LabelledOptions) -> dict[str, list[str]]:
    content = read_list(Path(str(options.splits)))
    if isinstance(content, list):
        fold = options.fold or 0
        if fold >= len(content):
            raise ConfigError(f"data.fold {fold}: {options.splits} has {len(content)} folds, from 0.")
        content = content[fold]
    elif options.fold is not None:
        raise ConfigError(
            f"data.fold {options.fold}: {options.splits} is no list of folds. Name its split by data.split, or leave fold out."
        )
    if not isinstance(content, dict):
        raise DataError(f"{options.splits} is no mapping from split to case names.")
    return {"validation" if key == "val" else key: value for key, value in content.items() if _is_names(value)}


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _named(names: Sequence[str], by_name: Mapping[str, Listed], where: str) -> list[Listed]:
    missing = [name for name in names if name not in by_name]
    if missing:
        raise DataError(f"{where} names {len(missing)} cases that have no image, such as '{missing[0]}'{did_you_mean(missing[0], by_name)}")
    return [by_name[name] for name in names]


def _cases(items: Iterable[Listed], whose: Mapping[str, Whose]) -> list[Case]:
    found = (Case(item.name, item.images, item.label, whose[item.name].patient, whose[item.name].by) for item in items)
    cases = sorted(found, key=lambda case: case.name)
    for before, after in pairwise(cases):
        if before.name == after.name:
            raise DataError(f"two cases are named '{before.name}': {before.images[0]} and {after.images[0]}. Rename one.")
    return cases


def _first(cases: Sequence[Case], options: LabelledOptions) -> list[Case]:
    if options.labelled is None:
        return list(cases)
    usable = {case.name: case for case in cases if case.label is not None}
    if options.labelled > len(usable):
        raise ConfigError(f"data.labelled is {options.labelled} and there are {len(usable)} labelled cases to train on. Ask for fewer.")
    return [usable[name] for name in sorted(_seeded(usable, options.labelled_seed)[: options.labelled])]


def _seeded(names: Iterable[str], seed: int) -> list[str]:
    """A fixed random order that does not depend on what else is in the list."""
    return sorted(names, key=lambda name: blake2b(f"{seed}/{name}".encode()).digest())
