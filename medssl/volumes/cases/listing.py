"""Labelled cases on disk: which image belongs to which label, and which of them a training may see.

Forms: a Decathlon or nnU-Net folder with `dataset.json`, a datalist JSON file (Auto3DSeg), or two folders of NIfTI files or pictures with
equal names. Each case is checked before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from medssl.archive.geometry import voxel_spacing
from medssl.archive.nifti.modality import UNKNOWN, checked_modality, named_modality
from medssl.config import Seed, did_you_mean
from medssl.errors import ConfigError, DataError
from medssl.volumes.cases.datalists import Listed, folders, from_dataset, read_list
from medssl.volumes.cases.files import header, is_coloured, is_scaled
from medssl.volumes.cases.label_values import LabelValues, check_given, label_values
from medssl.volumes.cases.patients import OWN, Whose, check_pattern, patients_of, refuse_divided
from medssl.volumes.crops import LoadOptions
from medssl.volumes.preparation import COLOURS, Channel, check_windows, windowed


@dataclass(frozen=True)
class Case:
    """The images of one case, with its label where it has one."""

    name: str
    images: tuple[Path, ...]
    """One file, of which a fourth axis counts channels, or one file a channel."""
    label: Path | None
    patient: str
    """Cases of one patient never lie on both sides of a split."""
    patient_by: str = OWN
    """How the patient is known."""

    @property
    def volume(self) -> str:
        """Its name in a store, which tells neither path nor case."""
        return pseudonym(self.name)


def pseudonym(name: str) -> str:
    """What a store calls a case or patient of that name; the same on every machine."""
    return blake2b(name.encode(), digest_size=8).hexdigest()


class LabelledOptions(LoadOptions):
    """The `data:` key of a fine-tuning configuration."""

    dataset: str | None = None
    """A folder with `dataset.json` (Decathlon or nnU-Net), or a datalist JSON file; or give `images` and `labels`."""
    images: str | None = None
    """Folder of images: NIfTI files, or PNG, JPEG and TIFF."""
    labels: str | None = None
    """Folder of label maps, NIfTI or PNG, named as their images."""
    label_values: dict[int, int | Literal["ignore"]] | None = None
    """Value in the label files -> class that is trained, such as `{0: 0, 63: 1, 126: 2, 255: ignore}`: renumbers, merges (two values, one
    class), drops (class 0) or ignores; 0 is the background unless named. Null: each value is its class, and nnU-Net's label "ignore" is
    ignored. Predictions have the values of the files."""
    splits: str | None = None
    """JSON file: split name -> list of case names, or nnU-Net's list of folds."""
    split: str = "train"
    """The split to train on."""
    fold: int | None = Field(default=None, ge=0)
    """Fold of a datalist or of nnU-Net's splits that is kept for validation."""
    labelled: int | None = Field(default=None, ge=1)
    """Train on the first N cases of a seeded order, so that 8 labelled cases are among the 16 of a larger run."""
    labelled_seed: Seed = 0
    """Seed of that order."""
    validation: float = Field(default=0.2, ge=0, lt=1)
    """Share of the patients kept for validation where neither splits nor fold say which."""
    patient: str | None = None
    """Regular expression whose group is the patient in a case's name, such as `(p[0-9]+)_visit`; null: as the list of cases says, or
    names of known forms (BIDS, patient001_..., TCGA, BraTS), else each case counts as a patient."""
    patients: str | None = None
    """CSV file with the columns case and patient, in place of `patient`."""
    modality: str | tuple[str, ...] | None = None
    """DICOM modality of the images, such as CT or MR, for the image preparation, or one for each channel; null: what dataset.json says,
    else that of the pretraining's images, else MR, and unknown of pictures."""
    windows: dict[str, tuple[tuple[float, float], ...]] = Field(default_factory=dict)
    """Intensity windows by modality, such as `{CT: [[-1000, 200], [-160, 240]]}`: each becomes a channel of its own, as in a store. A
    pretrained network that was shown windows is shown the same without it."""
    spacing: float | tuple[float, float, float] | None = None
    """Resample images and labels to this spacing in mm; null: the pretrained network's, or each image's own."""
    foreground: float = Field(default=0.75, ge=0, le=1)
    """Share of the crops that are placed around a labelled voxel, each class alike; the others lie anywhere."""

    @model_validator(mode="after")
    def _one_form(self) -> LabelledOptions:
        if (self.dataset is None) == (self.images is None):
            raise ValueError("give either dataset, or images with labels")
        if self.fold is not None and self.dataset is None and self.splits is None:
            raise ValueError("fold is one of a dataset or of splits, and images with labels have none: give splits, or leave fold out")
        return self

    @model_validator(mode="after")
    def _classes_count_on(self) -> LabelledOptions:
        if self.label_values is not None:
            check_given(self.label_values)
        return self

    @model_validator(mode="after")
    def _slices_are_no_channels(self) -> LabelledOptions:
        if self.slab > 1:
            raise ValueError("slab: volumes are predicted slice by slice, so a labelled training takes one slice at a time: leave slab out")
        return self

    @model_validator(mode="after")
    def _windows_are_some(self) -> LabelledOptions:
        check_windows(self.windows)
        return self

    @model_validator(mode="after")
    def _patients_are_told_once(self) -> LabelledOptions:
        if self.patient is not None and self.patients is not None:
            raise ValueError("give patient or patients, not both")
        if self.patient is not None:
            check_pattern(self.patient)
        return self


def find_cases(options: LabelledOptions) -> list[Case]:
    """The checked cases of `options.split`, sorted by name; with `labelled` the first N of the seeded order.

    Raises `DataError` for a label without image, an image without label, grids that differ, or no cases; `MissingInput` for files
    that are not there; `ConfigError` for an unknown split.
    """
    found, _ = _checked(options, _first(_split(_splits(options), options), options))
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
        training, held_out = _checked(options, _first(_split(splits, options), options), splits.get("validation", []))
        refuse_divided(training, held_out)
        return training, held_out
    cases = _split(splits, options)
    order = _seeded({case.patient for case in cases}, options.labelled_seed)
    held = set(order[: math.ceil(options.validation * len(order))]) if len(order) > 1 else set()
    training = [case for case in cases if case.patient not in held]
    validation = [case for case in cases if case.patient in held]
    return _checked(options, _first(training, options), validation)


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
    modalities = (
        [named_modality(name) for name in names] if given is None else [checked_modality(name, known, "data.modality") for name in given]
    )
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


def label_values_of(options: LabelledOptions) -> LabelValues:
    """Which class each value of the label files is: the option's, else that of `dataset.json`."""
    return label_values(options.label_values, _dataset(options))


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
    else:
        listed = {"train": folders(Path(options.images or ""), Path(options.labels) if options.labels else None)}
    every = [item for items in listed.values() for item in items]
    whose = patients_of(every, options.patient, options.patients)
    if options.splits is None:
        return {name: _cases(items, whose) for name, items in listed.items() if items}
    by_name = {item.name: item for item in every}
    return {name: _cases(_named(names, by_name, options.splits), whose) for name, names in _split_file(options).items()}


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


def _checked(options: LabelledOptions, training: Sequence[Case], validation: Sequence[Case] = ()) -> tuple[list[Case], list[Case]]:
    """Both parts as lists, every case with a label on its image's grid and with the same channels."""
    where, cases = options.dataset or options.images, [*training, *validation]
    if not cases:
        raise DataError(f"no cases in {where}. Give images with labels.")
    bare = [case for case in cases if case.label is None]
    if bare:
        raise DataError(
            f"{len(bare)} of {len(cases)} images in {where} have no label, such as {bare[0].images[0].name}. "
            "Add the labels, remove the images, or name the labelled cases in data.splits."
        )
    usual = channel_count(cases[0])
    for case in cases:
        check_grid(case)
        count = channel_count(case)
        # Colours may all become grey: that is seen when they are read.
        if count != usual and is_scaled(case.images):
            raise DataError(
                f"case '{case.name}' has {count} channel(s) and case '{cases[0].name}' has {usual}. All cases must have the same channels."
            )
    return list(training), list(validation)


def channel_count(case: Case) -> int:
    """How many channels a case has: its files, or the fourth axis of its one file."""
    shape, _ = header(case.images[0])
    return len(case.images) if len(case.images) > 1 or len(shape) < 4 else shape[3]


def check_grid(case: Case) -> None:
    """Raises `DataError` where a case's label or a further image lies on another grid than its first image."""
    shape, affine = header(case.images[0])
    others = [("image", path) for path in case.images[1:]] + ([("label", case.label)] if case.label is not None else [])
    for what, path in others:
        other_shape, other_affine = header(path)
        near = np.allclose(affine, other_affine, rtol=0, atol=1e-2 * max(1e-3, min(voxel_spacing(affine))))
        if shape[:3] != other_shape or not near:
            raise DataError(
                f"case '{case.name}': the {what}'s grid differs from the image's: image {case.images[0]} {_grid(shape[:3], affine)}; "
                f"{what} {path} {_grid(other_shape, other_affine)}. Resample the {what} onto the image's grid."
            )


def _grid(shape: tuple[int, ...], affine: NDArray[np.float64]) -> str:
    spacing = "x".join(f"{side:.4g}" for side in voxel_spacing(affine))
    origin = ", ".join(f"{x:.4g}" for x in affine[:3, 3])
    axes = "".join(["LR", "PA", "IS"][int(np.argmax(np.abs(c[:3])))][int(c[int(np.argmax(np.abs(c[:3])))] > 0)] for c in affine.T[:3])
    return f"has shape {list(shape)}, spacing {spacing} mm, axes {axes}, origin ({origin})"
