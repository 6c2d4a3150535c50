"""Lists of images and labels as other tools write them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl.archive.labels.files import label_files, label_stem
from medssl.archive.nifti.names import case_of, channel_numbers, image_files, numbered, stem
from medssl.errors import ConfigError, DataError, MissingInput
from medssl.faults import faults_as
from medssl.files import read_json
from medssl.volumes.cases.sources import Image, Labels

_SPLIT = {"training": "train", "train": "train", "validation": "validation", "val": "validation", "test": "test", "testing": "test"}


@dataclass(frozen=True)
class Listed:
    """The images of a case that a list names, and its label if any."""

    name: str
    images: tuple[Image, ...]
    """One file, or one a channel."""
    label: Labels | None
    patient: str | None = None


def read_list(path: Path) -> Any:
    """The content of a JSON file; raises `MissingInput` or `DataError`."""
    if not path.is_file():
        raise MissingInput(f"there is no file {path}. Give the path of a JSON file, or data.images and data.labels.")
    try:
        with faults_as(DataError, f"{path} cannot be read"):
            return read_json(path)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error


def from_dataset(path: Path, fold: int | None = None) -> dict[str, list[Listed]]:
    """Split -> cases of a Decathlon or nnU-Net folder or of a datalist file; `fold` of a datalist becomes the validation."""
    if not path.exists():
        raise MissingInput(f"there is no dataset at {path}. Give a folder with dataset.json, or a datalist JSON file.")
    file = path / "dataset.json" if path.is_dir() else path
    content = read_list(file)
    if isinstance(content, Mapping) and not any(isinstance(content.get(key), list) for key in _SPLIT):
        if fold is not None:
            raise ConfigError(
                f"data.fold {fold}: {file} lists no folds. Name nnU-Net's splits_final.json by data.splits, or leave fold out."
            )
        return _nnunet(file.parent)
    lists = {"training": content} if isinstance(content, list) else content
    if not isinstance(lists, Mapping):
        raise DataError(f"{file} holds neither 'training' nor a list of images and labels.")
    found: dict[str, list[Listed]] = {}
    for key, split in _SPLIT.items():
        for number, entry in enumerate(lists.get(key) or []):
            item, entry_fold = _entry(entry, file, f"{key}[{number}]")
            held = fold is not None and split == "train" and entry_fold == fold
            found.setdefault("validation" if held else split, []).append(item)
    if fold is not None and not found.get("validation"):
        raise DataError(f"data.fold {fold}: no entry of {file} has that fold.")
    return found


def _entry(entry: Any, file: Path, where: str) -> tuple[Listed, Any]:
    if isinstance(entry, str):
        entry = {"image": entry}
    found = entry.get("image") if isinstance(entry, Mapping) else None
    images = [found] if isinstance(found, str) else found
    if not (isinstance(images, list) and images and all(isinstance(image, str) for image in images)):
        raise DataError(f"{file}: {where} names no image. Each entry needs 'image' and, for training, 'label'.")
    label = entry.get("label")
    paths = tuple(_existing(file, image, where) for image in images)
    patient = entry.get("patient") or entry.get("subject")
    label_path = _existing(file, label, where) if isinstance(label, str) else None
    case = Listed(_case_name(paths, label_path), paths, label_path, str(patient) if patient else None)
    return case, entry.get("fold")


def _existing(file: Path, text: str, where: str) -> Path:
    path = (file.parent / text).resolve()
    if not path.is_file():
        raise MissingInput(f"{file}: {where} names {text}, which is not at {path}. Paths count from the folder of the JSON file.")
    return path


def _case_name(paths: Sequence[Path], label: Path | None) -> str:
    """The label's name where it says the case and the image's adds a channel; of several images what they share; else the image's."""
    prefix = case_of(paths[0])
    channels = [f"{prefix}_{number:04d}" for number in range(len(paths))]
    several = len(paths) > 1 and [stem(path) for path in paths] == channels
    return prefix if several or (label is not None and label_stem(label) == prefix) else stem(paths[0])


def _nnunet(folder: Path) -> dict[str, list[Listed]]:
    if not (folder / "imagesTr").is_dir():
        raise DataError(f"{folder}/dataset.json lists no 'training' and there is no imagesTr beside it. Is this a labelled dataset?")
    found = {"train": folders(folder / "imagesTr", folder / "labelsTr")}
    if (folder / "imagesTs").is_dir():
        labels = folder / "labelsTs"
        channels = len(found["train"][0].images) if found["train"] else None
        found["test"] = folders(folder / "imagesTs", labels if labels.is_dir() else None, channels)
    return found


def folders(images: Path, labels: Path | None, channels: int | None = None) -> list[Listed]:
    """Cases of two folders whose files have equal names; `CASE_0000`, `CASE_0001` of nnU-Net are channels of `CASE`, `channels` of them
    where that is known.

    Raises `DataError` for a label without image.
    """
    label_of = _whole(_label_files(labels)) if labels else {}
    found = _files(images)
    image_files = grouped_by_case(found, channels, label_of)
    orphans = sorted(set(label_of) - set(image_files))
    if orphans:
        raise DataError(
            f"{len(orphans)} labels in {labels} have no image in {images}, such as {label_of[orphans[0]][0].name}. "
            f"Image and label of a case must have the same file name, {_about_channels(found)}."
        )
    return [Listed(name, paths, label_of[name][0] if name in label_of else None) for name, paths in sorted(image_files.items())]


def grouped_by_case(paths: Sequence[Path], channels: int | None = None, labels: Collection[str] = ()) -> dict[str, tuple[Path, ...]]:
    """Case -> its images: each file by its whole name, unless the folder is nnU-Net's by its structure.

    It is where every file is called `CASE_0000`, `CASE_0001` and so on, all cases have the same channels (as many as `channels`, where
    that is known), and labels, where there are any, are named as cases and not as files. Raises `DataError` where two files name one
    case.
    """
    found = numbered(paths, channels)
    named = not labels or (not any(stem(path) in labels for path in paths) and any(case_of(path) in labels for path in paths))
    return found if found is not None and named else _whole(paths)


def _about_channels(paths: Sequence[Path]) -> str:
    """The other way to name images, and where a folder that looks like it departs from it."""
    found = channel_numbers(paths)
    usual = max((sorted(numbers) for numbers in found.values()), key=list(map(sorted, found.values())).count, default=[0])
    odd = next((case for case, numbers in found.items() if sorted(numbers) != usual), None)
    where = "" if odd is None else f" ('{odd}' has {_numbered(found[odd])}, others {_numbered(usual)})"
    return f"or every image nnU-Net's CASE_0000, CASE_0001, with the same channels for each case{where}"


def _numbered(numbers: Sequence[int]) -> str:
    return ", ".join(f"{number:04d}" for number in sorted(numbers))


def _whole(paths: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """Whole name -> the file; raises `DataError` where two have one name."""
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(label_stem(path), path)
        if other is not path:
            raise DataError(f"{other} and {path.name} both name the case '{label_stem(path)}'. Keep or rename one of them.")
    return {case: (path,) for case, path in found.items()}


def _label_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise MissingInput(f"there is no folder {folder}. Give a folder of label files: NIfTI, NRRD, DICOM segmentations or RTSTRUCT.")
    return label_files(folder)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise MissingInput(f"there is no folder {folder}. Give a folder of NIfTI files, or of PNG, JPEG and TIFF.")
    return image_files(folder)
