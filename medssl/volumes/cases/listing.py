"""Labelled cases on disk: which image belongs to which label, and which of them a training may see.

Forms: a Decathlon or nnU-Net folder with `dataset.json`, a datalist JSON file (Auto3DSeg), two folders of files with equal names, NIfTI or
pictures, or an index of DICOM with its label objects. Each case is checked before anything is trained.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from medssl.archive import Index
from medssl.archive.geometry import voxel_spacing
from medssl.archive.labels.merging import Classes, Overlaps
from medssl.archive.labels.placing import WAY_OUT, Grid, place_of
from medssl.archive.nifti.modality import UNKNOWN, checked_modality, named_modality
from medssl.config import Seed, did_you_mean
from medssl.errors import ConfigError, DataError
from medssl.volumes.cases.datalists import Listed, folders, from_dataset, read_list
from medssl.volumes.cases.label_values import LabelValues, check_given, check_named, label_values
from medssl.volumes.cases.patients import OWN, Whose, patients_of, refuse_divided
from medssl.volumes.cases.sources import (
    Image,
    IndexedImage,
    Labels,
    grid_of_image,
    header,
    indexed_cases,
    is_coloured,
    is_scaled,
    label_grid,
)
from medssl.volumes.crops import LoadOptions
from medssl.volumes.patients import check_pattern
from medssl.volumes.preparation import COLOURS, Channel, check_windows, windowed

Said = int | str
"""A value of label maps, or the name or number of a segment."""


@dataclass(frozen=True)
class Case:
    """The images of one case, with its label where it has one."""

    name: str
    images: tuple[Image, ...]
    """One file or volume of an index, of which a fourth axis counts channels, or one file a channel."""
    label: Labels | None
    patient: str
    """Cases of one patient never lie on both sides of a split."""
    patient_by: str = OWN
    """How the patient is known."""
    placed_by: Path | None = None
    """The file that says where images lie which do not say it themselves."""
    resample: bool = False
    """Whether the label may be put onto the image's grid to the nearest voxel."""

    @property
    def grid(self) -> Grid:
        """That of its images; raises `DataError`."""
        return grid_of_image(self.images, self.placed_by)

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
    """A folder with `dataset.json` (Decathlon or nnU-Net), or a datalist JSON file; or give `images` and `labels`, or `index`."""
    images: str | None = None
    """Folder of images: NIfTI files, or PNG, JPEG and TIFF."""
    labels: str | dict[str, Said | tuple[Said, ...]] | None = None
    """Folder of label files, named as their images: NIfTI, NRRD (`CASE.nrrd`, Slicer's `CASE.seg.nrrd`), PNG, DICOM SEG or RTSTRUCT
    (`CASE.dcm`). Beside `dataset` or `index`, which bring their own labels: the same as `classes`."""
    index: str | None = None
    """An index folder: its volumes that a DICOM SEG or RTSTRUCT of the index was drawn on are the cases. Needs `classes`."""
    where: str | None = None
    """SQL condition over the volume table of the index."""
    classes: dict[str, Said | tuple[Said, ...]] | None = None
    """Class -> its values in label maps, or the names of its segments (any case, `*` and `?` stand for others) or their numbers, such as
    `{lesion: 255}` or `{liver: [Liver, hepar*], tumour: GTV}`. Classes count from 1 in this order; `background` and `ignore` are no
    classes. Segments that no class names are left out; a value that none names is an error."""
    label_overlaps: Overlaps = "refuse"
    """Voxels of two segments of different classes: refuse them, or take the class that `classes` names later."""
    resample_labels: bool = False
    """Put labels of another grid onto their image's, each voxel by the nearest one of the label; false: they are an error. A label map
    whose voxels are the image's in another order or direction is turned exactly in any case."""
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
        if sum(form is not None for form in (self.dataset, self.images, self.index)) != 1:
            raise ValueError("give one of dataset, images with labels, and index")
        if self.fold is not None and self.dataset is None and self.splits is None:
            raise ValueError("fold is one of a dataset or of splits, and there are none: give splits, or leave fold out")
        if self.where is not None and self.index is None:
            raise ValueError("where chooses volumes of an index: give index, or leave where out")
        if self.images is not None and isinstance(self.labels, dict):
            raise ValueError("labels names the folder of the labels of images: name the classes by classes")
        if self.images is None and isinstance(self.labels, str):
            raise ValueError("labels is a folder beside images alone: name the classes here, such as labels: {liver: [Liver, hepar]}")
        return self

    @model_validator(mode="after")
    def _classes_are_told_once(self) -> LabelledOptions:
        if self.label_values is not None:
            check_given(self.label_values)
        told = [said for said in (self.label_values, self.classes, self.labels) if isinstance(said, dict)]
        if len(told) > 1:
            raise ValueError("give one of classes, label_values, and labels as a mapping")
        if self.named is None and self.index is not None:
            raise ValueError("an index has named segments: say which become which class, such as classes: {liver: [Liver, hepar]}")
        return self

    @property
    def named(self) -> Classes | None:
        """Which values and segments are which class, where it is said by names; raises `ValueError`."""
        said = self.classes if self.classes is not None else self.labels if isinstance(self.labels, dict) else None
        return None if said is None else replace(check_named(said), overlaps=self.label_overlaps)

    @model_validator(mode="after")
    def _spacing_makes_crops_physical(self) -> LabelledOptions:
        if self.size_mm is not None:
            raise ValueError("labelled volumes are predicted whole, and so are resampled whole: give spacing instead of size_mm")
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
        listed = {"train": folders(Path(options.images or ""), Path(options.labels) if isinstance(options.labels, str) else None)}
    every = [item for items in listed.values() for item in items]
    whose = patients_of(every, options.patient, options.patients)
    if options.splits is None:
        return {name: _cases(items, whose) for name, items in listed.items() if items}
    by_name = {item.name: item for item in every}
    return {name: _cases(_named(names, by_name, options.splits), whose) for name, names in _split_file(options).items()}


def _indexed(folder: str, where: str | None) -> list[Listed]:
    """The labelled volumes of an index; what was paired is said where some label objects have no volume."""
    found, said = indexed_cases(Index(folder), where)
    if not found:
        raise DataError(
            f"no volume of the index {folder}{f' where {where}' if where else ''} has a label object: {said}. "
            f"`medssl labels {folder}` shows what there is."
        )
    if ";" in said:
        warnings.warn(f"{said}. `medssl labels {folder}` shows what there is.", stacklevel=2)
    return [Listed(image.name, (image,), labels, image.record.patient) for image, labels in found]


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
    where, cases = options.dataset or options.images or options.index, [*training, *validation]
    if not cases:
        raise DataError(f"no cases in {where}. Give images with labels.")
    bare = [case for case in cases if case.label is None]
    if bare:
        raise DataError(
            f"{len(bare)} of {len(cases)} images in {where} have no label, such as {bare[0].images[0].name}. "
            "Add the labels, remove the images, or name the labelled cases in data.splits."
        )
    usual = channel_count(cases[0])
    unplaced: list[str] = []
    placed: dict[str, Case] = {}
    for case in cases:
        placed[case.name] = _on_one_grid(replace(case, resample=options.resample_labels), unplaced)
        _refuse_one_slice(placed[case.name], options)
        count = channel_count(case)
        # Colours may all become grey: that is seen when they are read.
        if count != usual and is_scaled(case.images):
            raise DataError(
                f"case '{case.name}' has {count} channel(s) and case '{cases[0].name}' has {usual}. All cases must have the same channels."
            )
    if unplaced:
        warnings.warn(
            f"{len(unplaced)} file(s) say not where they lie (qform and sform codes are 0) and are taken to lie where their partner does, "
            f"such as {unplaced[0]}.",
            stacklevel=2,
        )
    return [placed[case.name] for case in training], [placed[case.name] for case in validation]


def channel_count(case: Case) -> int:
    """How many channels a case has: its files, or the fourth axis of its one file."""
    shape, _ = header(case.images[0])
    return len(case.images) if len(case.images) > 1 or len(shape) < 4 else shape[3]


def _refuse_one_slice(case: Case, options: LabelledOptions) -> None:
    sides = case.grid.shape
    if min(sides) == 1 and len(options.size) == 3:
        two = [side for side in options.size if side > 1][:2]
        raise DataError(
            f"case '{case.name}' is one slice ({' x '.join(map(str, sides))} voxels), and data.size has three sides. Train in 2D: "
            f"data.size={two} and network.spatial_dims=2."
        )


def _on_one_grid(case: Case, unplaced: list[str]) -> Case:
    """The case with what says where its images lie; raises `DataError` where a further image or a whole label map lies on another grid.

    What is `unplaced` is named there.
    """
    shape, affine = header(case.images[0])
    of_label = label_grid(case.label) if case.label is not None else None
    if affine is None and isinstance(case.label, Path) and of_label is not None and of_label[1] is not None:
        unplaced.append(str(case.images[0]))
        affine, case = of_label[1], replace(case, placed_by=case.label)
        if of_label[0] != shape[:3]:
            raise DataError(f"case '{case.name}': {_nowhere(case)}, and its label has another shape: {list(of_label[0])}.")
    if affine is None:
        raise DataError(f"case '{case.name}': {_nowhere(case)}. Convert it again with its orientation.")
    image = case.grid
    for path in case.images[1:]:
        other_shape, other = header(path)
        near = other is not None and np.allclose(affine, other, rtol=0, atol=1e-2 * max(1e-3, min(voxel_spacing(affine))))
        if other is None or shape[:3] != other_shape or not near:
            where = f"{path} {_grid(other_shape, other) if other is not None else 'says not where it lies'}"
            raise _differs(case, image, f"image {where}. Resample the image onto the image's grid.", "image")
    if of_label is None:
        return case
    own_shape, own = of_label
    if own is None:
        unplaced.append(str(case.label))
        own = affine
    label = Grid(_three(own_shape), own)
    place = place_of(label, image)
    if not case.resample and (len(own_shape) > 3 or place is None or not place.is_whole(label.shape, image.shape)):
        raise _differs(case, image, f"label {case.label} {_grid(own_shape, own)}. {WAY_OUT}", "label")
    return case


def _nowhere(case: Case) -> str:
    return f"the image {case.images[0]} says not where it lies (qform and sform codes are 0)"


def _differs(case: Case, image: Grid, other: str, what: str) -> DataError:
    return DataError(f"case '{case.name}': the {what}'s grid differs from the image's: image {case.images[0]} {image}; {other}")


def _grid(shape: tuple[int, ...], affine: NDArray[np.float64]) -> str:
    return f"{Grid(_three(shape), affine)}{f' and a fourth axis of {shape[3]}' if len(shape) > 3 else ''}"


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*shape[:3], *(1,) * (3 - len(shape)))
    return x, y, z
