"""What the name of an image file, NIfTI or a picture, says: label map or image, whose, of which visit. nnU-Net, Decathlon and BIDS
conventions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import TypeVar

Name = TypeVar("Name", str, Path)

_LABEL_FOLDER = re.compile(r"^(labels?|masks?)(Tr|Ts|Val)?$", re.IGNORECASE)
_LABEL_FILE = re.compile(r"(^|[_-])(seg|dseg|probseg|segmentation|mask|label|labels)$", re.IGNORECASE)
_SUBJECT = re.compile(r"^(sub-[A-Za-z0-9]+)")
_SESSION = re.compile(r"(?:^|_)(ses-[A-Za-z0-9]+)")
_CHANNEL = re.compile(r"_(\d{4})$")
_NIFTI = (".nii", ".nii.gz")
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_ENDING = re.compile("(" + "|".join(re.escape(ending) for ending in (*_NIFTI[::-1], *_PICTURES)) + ")$", re.IGNORECASE)


def is_nifti_name(name: str) -> bool:
    """Does the name end as NIfTI files do?"""
    return name.lower().endswith(_NIFTI)


def is_picture_name(name: str) -> bool:
    """Does the name end as PNG, JPEG and TIFF files do?"""
    return name.lower().endswith(_PICTURES)


def stem(name: str | PurePath) -> str:
    """The file name without folders and `.nii.gz`, `.png` and the like."""
    return _ENDING.sub("", PurePath(name).name)


def image_files(folder: Path) -> list[Path]:
    """The NIfTI files that lie in a folder itself, sorted, or where it has none its pictures; hidden ones are left out."""
    found = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    return [path for path in found if is_nifti_name(path.name)] or [path for path in found if is_picture_name(path.name)]


def is_label(name: str) -> bool:
    """A label map, by its folder (`labelsTr`, `masks`) or its ending (`_seg`, `_dseg`, `_mask`): never taken for an image."""
    folders = PurePath(name).parts[:-1]
    return any(_LABEL_FOLDER.match(folder) for folder in folders) or bool(_LABEL_FILE.search(stem(name)))


def patient_of(name: str) -> str:
    """Whose image: `sub-01` of BIDS, `CASE` of nnU-Net's `CASE_0000.nii.gz`, else the file's own name."""
    for part in PurePath(name).parts:
        subject = _SUBJECT.match(part)
        if subject:
            return subject.group(1)
    return case_of(name)


def session_of(name: str) -> str:
    """The visit: patient and `ses-02` of BIDS where there is one."""
    for part in PurePath(name).parts:
        session = _SESSION.search(part)
        if session:
            return f"{patient_of(name)}/{session.group(1)}"
    return patient_of(name)


def case_of(name: str | PurePath) -> str:
    """The stem without nnU-Net's channel number at its end."""
    return _CHANNEL.sub("", stem(name))


def channel_numbers(names: Iterable[str | PurePath]) -> dict[str, list[int]]:
    """Case -> the channel numbers at the end of its files' names."""
    found: dict[str, list[int]] = {}
    for name in names:
        number = _CHANNEL.search(stem(name))
        if number is not None:
            found.setdefault(case_of(name), []).append(int(number[1]))
    return found


def numbered(names: Sequence[Name], channels: int | None = None) -> dict[str, tuple[Name, ...]] | None:
    """Case -> its files by channel, where every file of a folder is called `CASE_0000`, `CASE_0001` and so on, and all cases have
    the same channels (as many as `channels`, where that is known); else None."""
    found = channel_numbers(names)
    counts = {tuple(sorted(numbers)) for numbers in found.values()}
    alike = len(counts) == 1 and counts <= {tuple(range(channels or len(next(iter(counts)))))}
    if not alike or sum(map(len, found.values())) != len(names):
        return None
    cases: dict[str, list[Name]] = {case: [] for case in found}
    for name in sorted(names):
        cases[case_of(name)].append(name)
    return {case: tuple(files) for case, files in cases.items()}
