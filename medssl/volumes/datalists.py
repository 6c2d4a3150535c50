"""Lists of images and labels as other tools write them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl.archive.nifti_names import nifti_files, stem
from medssl.errors import DataError, MissingInput

_SPLIT = {"training": "train", "train": "train", "validation": "validation", "val": "validation", "test": "test", "testing": "test"}
_CHANNEL = re.compile(r"_(\d{4})$")


@dataclass(frozen=True)
class Listed:
    """The images of a case that a list names, and its label if any."""

    name: str
    images: tuple[Path, ...]
    """One file, or one a channel."""
    label: Path | None
    patient: str | None = None


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises `MissingInput` or `DataError`."""
    if not path.is_file():
        raise MissingInput(f"there is no file {path}. Give the path of a JSON file, or data.images and data.labels.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error


def from_dataset(path: Path, fold: int | None = None) -> dict[str, list[Listed]]:
    """Split -> cases of a Decathlon or nnU-Net folder or of a datalist file; `fold` of a datalist becomes the validation."""
    if not path.exists():
        raise MissingInput(f"there is no dataset at {path}. Give a folder with dataset.json, or a datalist JSON file.")
    file = path / "dataset.json" if path.is_dir() else path
    content = read_json(file)
    if isinstance(content, Mapping) and not any(isinstance(content.get(key), list) for key in _SPLIT):
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
    case = Listed(
        _case_name(paths[0]), paths, _existing(file, label, where) if isinstance(label, str) else None, str(patient) if patient else None
    )
    return case, entry.get("fold")


def _existing(file: Path, text: str, where: str) -> Path:
    path = (file.parent / text).resolve()
    if not path.is_file():
        raise MissingInput(f"{file}: {where} names {text}, which is not at {path}. Paths count from the folder of the JSON file.")
    return path


def _case_name(path: Path) -> str:
    return _CHANNEL.sub("", stem(path))


def _nnunet(folder: Path) -> dict[str, list[Listed]]:
    if not (folder / "imagesTr").is_dir():
        raise DataError(f"{folder}/dataset.json lists no 'training' and there is no imagesTr beside it. Is this a labelled dataset?")
    found = {"train": folders(folder / "imagesTr", folder / "labelsTr")}
    if (folder / "imagesTs").is_dir():
        labels = folder / "labelsTs"
        found["test"] = folders(folder / "imagesTs", labels if labels.is_dir() else None)
    return found


def folders(images: Path, labels: Path | None) -> list[Listed]:
    """Cases of two folders whose files have equal names, nnU-Net's `_0000`, `_0001` aside, which are channels of one case.

    Raises `DataError` for a label without image.
    """
    label_files = {name: files[0] for name, files in _by_name(_files(labels), stem, {}).items()} if labels else {}
    image_files = grouped_by_case(_files(images), alone=label_files)
    orphans = sorted(set(label_files) - set(image_files))
    if orphans:
        raise DataError(
            f"{len(orphans)} labels in {labels} have no image in {images}, such as {label_files[orphans[0]].name}. "
            "Image and label of a case must have the same file name."
        )
    return [Listed(name, paths, label_files.get(name)) for name, paths in sorted(image_files.items())]


def grouped_by_case(paths: Sequence[Path], alone: Collection[str] = ()) -> dict[str, tuple[Path, ...]]:
    """Case -> its images: `CASE_0000`, `CASE_0001` and so on, without a gap, are channels of `CASE`, other files cases of their own.

    `alone` names files that are cases of their own in any event: those that have a label. Raises `DataError` where two files name
    one case.
    """
    numbers: dict[str, list[int]] = {}
    for path in paths:
        found = _CHANNEL.search(stem(path))
        if found and stem(path) not in alone:
            numbers.setdefault(_case_name(path), []).append(int(found[1]))
    whole = {case: len(found) for case, found in numbers.items() if sorted(found) == list(range(len(found)))}

    def name(path: Path) -> str:
        return _case_name(path) if _case_name(path) in whole and stem(path) not in alone else stem(path)

    return _by_name(paths, name, whole)


def _by_name(paths: Sequence[Path], name: Callable[[Path], str], counts: Mapping[str, int]) -> dict[str, tuple[Path, ...]]:
    """Name -> its files, one each or as many as `counts` says; raises `DataError` for more."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(name(path), []).append(path)
    for case, files in found.items():
        if len(files) > counts.get(case, 1):
            raise DataError(f"{files[0]} and {files[1].name} both name the case '{case}'. Keep or rename one of them.")
    return {case: tuple(sorted(files)) for case, files in found.items()}


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise MissingInput(f"there is no folder {folder}. Give a folder of NIfTI files.")
    return nifti_files(folder)
