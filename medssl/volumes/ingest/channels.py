"""Which volumes of an index become the channels of one volume in the store: by a rule in the configuration, else by file names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from medssl.archive.nifti.modality import named_modality
from medssl.archive.nifti.names import is_nifti_name, numbered
from medssl.config import BaseOptions
from medssl.volumes.preparation import COLOURS, Channel, check_windows, windowed

if TYPE_CHECKING:
    from medssl.archive import Index, VolumeRecord

MOST = 16
"""Channels of a case that numbers at the end of file names can tell: more are counted things, not channels."""
_IMAGES = ("imagesTr", "imagesTs", "imagesVal")


class ChannelOptions(BaseOptions):
    """The `channels:` key of a store's configuration: what becomes the channels of one volume."""

    series: dict[str, str] = Field(default_factory=dict)
    """Registered series of a study: channel name -> SQL condition over the volume table of the index, such as
    `{CT: "modality = 'CT'", PET: "modality = 'PT'"}`. Of each study one volume for each name, all on one grid, become one volume."""
    frames: int | None = Field(default=None, ge=2, le=512)
    """So many frames, evenly chosen in time, of each dynamic series, of a NIfTI file's fourth axis or of a 2D image over time become the
    channels frame 0, frame 1 and so on."""
    fourth_axis: bool = False
    """The fourth axis of NIfTI files counts channels (Decathlon, BraTS), named as `dataset.json` says. Without it and `frames` such files
    are left out."""
    windows: dict[str, tuple[tuple[float, float], ...]] = Field(default_factory=dict)
    """Intensity windows by modality, such as `{CT: [[-1000, 200], [-160, 240]]}`: each becomes a channel named CT[-160,240] of the same
    image, which is stored once."""

    @model_validator(mode="after")
    def _one_rule(self) -> ChannelOptions:
        if sum((bool(self.series), self.frames is not None, self.fourth_axis)) > 1:
            raise ValueError("give one of series, frames and fourth_axis")
        if len(self.series) == 1:
            raise ValueError("series names one channel; a single series needs no rule but `where`")
        check_windows(self.windows)
        return self

    @property
    def axis(self) -> Literal["time"] | None:
        """What the channels count."""
        return "time" if self.frames is not None else None


@dataclass(frozen=True)
class Group:
    """Volumes of an index that become one volume of a store, an array each."""

    records: tuple[VolumeRecord, ...]
    names: tuple[str, ...] = ()
    """Of the arrays; empty: by the modality."""
    picked: tuple[int, ...] = ()
    """Which values of a voxel count, where one record has several."""
    reason: str | None = None
    """Why it cannot be used."""

    def channels(self, options: ChannelOptions, modality: str | None) -> tuple[Channel, ...]:
        """What a network sees of it; `modality` where the index knows none."""
        fourth = self.records[0].shape[3] if len(self.records[0].shape) == 4 else len(self.records)
        count = len(self.picked) or len(self.names) or fourth
        kinds = [known_modality(self.records[number if len(self.records) > 1 else 0], modality) for number in range(count)]
        if len(self.records) == 1 and self.names:
            kinds = [named_modality(name) or kind for name, kind in zip(self.names, kinds, strict=True)]
        alike = len(set(kinds)) < count
        names = self.names or [f"{kind} {number}" if alike else kind for number, kind in enumerate(kinds)]
        return windowed(map(Channel, names, kinds, range(count)), options.windows)


def known_modality(record: VolumeRecord, modality: str | None) -> str:
    """The index's, or `modality` where it knows none."""
    return modality.upper() if modality and record.modality in ("", "unknown") else record.modality


def grouped(
    index: Index, records: Sequence[VolumeRecord], options: ChannelOptions, modality: str | None, grey: bool = False
) -> list[Group]:
    """Every record in one group at most; a group that cannot be used says why. `grey`: colours are one channel."""
    images = [record for record in records if record.is_image]
    others = [record for record in records if not record.is_image]
    if options.series:
        groups = _registered(index, records, options)
    elif options.frames is not None:
        groups = _dynamic(index, others, options.frames) + [_cine(record, options.frames, grey) for record in images]
    else:
        groups = [_fourth_axis(index, record) for record in others] if options.fourth_axis else _by_names(index, others)
        groups += [_image(record, modality, grey) for record in images]
    return [_with_windows(group, options, modality) for group in groups]


def _with_windows(group: Group, options: ChannelOptions, modality: str | None) -> Group:
    kinds = {known_modality(record, modality).upper() for record in group.records}
    if group.reason is None and options.windows and not kinds & {key.upper() for key in options.windows}:
        return replace(group, reason=f"no intensity window is given for modality {', '.join(sorted(kinds))}")
    return group


def _single(record: VolumeRecord) -> Group:
    if len(record.shape) == 4:
        return Group((record,), reason="a fourth axis: channels.fourth_axis or channels.frames says what it counts")
    return Group((record,))


def _fourth_axis(index: Index, record: VolumeRecord) -> Group:
    return Group((record,), _listed(index, record, record.shape[3])) if len(record.shape) == 4 else Group((record,))


def _listed(index: Index, record: VolumeRecord, count: int) -> tuple[str, ...]:
    """What the data set of a file calls its channels, if it names so many, each by another name."""
    found = index.channel_names(record.volume)
    names = tuple(filter(None, (found.get(number, "") for number in range(count))))
    return names if len(set(names)) == count == len(found) else ()


def _image(record: VolumeRecord, modality: str | None, grey: bool) -> Group:
    """A still: one channel, or one a colour."""
    if record.frames > 1:
        return Group((record,), reason=f"frames over time, {record.frames} of them: channels.frames says how many become channels")
    return Group((record,), (known_modality(record, modality),) if grey or record.colours == 1 else COLOURS)


def _cine(record: VolumeRecord, count: int, grey: bool) -> Group:
    """Some frames of a 2D image over time."""
    if record.frames < count:
        return Group((record,), reason=f"fewer than {count} frames: {record.frames}")
    if record.colours > 1 and not grey:
        return Group((record,), reason="frames in colour: as channels they must be grey, which grey (--grey) makes of them")
    return Group((record,), *_picked(record.frames, count))


def _picked(whole: int, count: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and numbers of so many frames, evenly chosen."""
    return tuple(f"frame {number}" for number in range(count)), tuple(round(number * (whole - 1) / (count - 1)) for number in range(count))


def _by_names(index: Index, records: Sequence[VolumeRecord]) -> list[Group]:
    """nnU-Net's `CASE_0000`, `CASE_0001` are channels of `CASE` where the whole folder is named so."""
    folders: dict[tuple[int, str], dict[str, VolumeRecord]] = defaultdict(dict)
    for record in records:
        source, key = index.file(record.volume)
        folders[source, str(PurePath(key).parent)][PurePath(key).name] = record
    groups: list[Group] = []
    for (_, folder), files in folders.items():
        named = all(is_nifti_name(name) and len(record.shape) == 3 for name, record in files.items())
        cases = numbered(list(files)) if named else None
        several = cases is not None and (len(cases) > 1 or PurePath(folder).name in _IMAGES)
        if cases is None or not several or not 1 < len(next(iter(cases.values()))) <= MOST:
            groups += [_single(record) for record in files.values()]
        else:
            names = _listed(index, next(iter(files.values())), len(next(iter(cases.values()))))
            groups += [_on_one_grid(Group(tuple(files[file] for file in of_case), names)) for of_case in cases.values()]
    return groups


def _registered(index: Index, records: Sequence[VolumeRecord], options: ChannelOptions) -> list[Group]:
    chosen = {name: {record.volume for record in index.volumes(condition)} for name, condition in options.series.items()}
    studies: dict[tuple[str, str], list[VolumeRecord]] = defaultdict(list)
    for record in records:
        if any(record.volume in volumes for volumes in chosen.values()):
            studies[record.patient, record.study].append(record)
    return [group for study in studies.values() for group in _of_study(study, chosen)]


def _of_study(study: Sequence[VolumeRecord], chosen: dict[str, set[str]]) -> list[Group]:
    """A volume for each grid on which a study has each channel once; where it has none, a reason."""
    groups, doubled = [], list[str]()
    for members in _by_grid(study):
        of_names = {name: [record for record in members if record.volume in volumes] for name, volumes in chosen.items()}
        if all(len(found) == 1 for found in of_names.values()):
            found = tuple(found[0] for found in of_names.values())
            if len({record.volume for record in found}) == len(found):
                groups.append(Group(found, tuple(chosen)))
                continue
        doubled += [name for name, found in of_names.items() if len(found) > 1]
    if groups:
        return groups
    missing = [name for name, volumes in chosen.items() if not any(record.volume in volumes for record in study)]
    why = "no series in its study is channel " + ", ".join(missing) if missing else "the series of its study share no grid"
    if doubled and not missing:
        why = f"several series of its study on one grid are channel {', '.join(dict.fromkeys(doubled))}"
    return [Group((study[0],), reason=why)]


def _by_grid(records: Iterable[VolumeRecord]) -> list[list[VolumeRecord]]:
    grids: list[list[VolumeRecord]] = []
    for record in records:
        same = next((members for members in grids if _same_grid(members[0], record)), None)
        if same is None:
            grids.append([record])
        else:
            same.append(record)
    return grids


def _same_grid(one: VolumeRecord, other: VolumeRecord) -> bool:
    """A corner that lies elsewhere by a hundredth of a voxel is another grid, as it is for images and labels."""
    return one.shape == other.shape and np.allclose(one.affine, other.affine, rtol=0, atol=0.01 * min(one.spacing, default=1))


def _on_one_grid(group: Group) -> Group:
    if all(_same_grid(group.records[0], record) for record in group.records):
        return group
    return replace(group, records=group.records[:1], names=(), reason="the images of its channels lie on different grids")


def _dynamic(index: Index, records: Sequence[VolumeRecord], count: int) -> list[Group]:
    """Frames of one series on one grid in the order of time, or the fourth axis of a file."""
    groups: list[Group] = []
    of_series: dict[str, list[VolumeRecord]] = defaultdict(list)
    for record in records:
        of_series[record.series].append(record)
    for members in of_series.values():
        for frames in _by_grid(members):
            ordered = sorted(frames, key=lambda record: index.moment(record.volume))
            whole = ordered[0].shape[3] if len(ordered[0].shape) == 4 else len(ordered)
            if whole < count:
                groups.append(Group((ordered[0],), reason=f"fewer than {count} frames: {whole}"))
                continue
            names, picked = _picked(whole, count)
            if len(ordered[0].shape) == 4:
                groups.append(Group((ordered[0],), names, picked))
            else:
                groups.append(Group(tuple(ordered[place] for place in picked), names))
    return groups
