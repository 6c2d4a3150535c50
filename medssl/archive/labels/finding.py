"""Which label objects of an index belong to which of its volumes: by the images, else the series, else the frame of reference they name."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from medssl.archive.headers.dicom import read_dataset
from medssl.archive.headers.elements import text
from medssl.archive.index.reading import Index
from medssl.archive.index.records import VolumeRecord
from medssl.archive.instance import Instance
from medssl.archive.labels.elements import reading
from medssl.archive.labels.merging import Classes, ClassMap, class_map
from medssl.archive.labels.objects import LabelObject, Refers
from medssl.archive.labels.placing import Grid, LabelProblem
from medssl.archive.labels.rtstruct import read_rtstruct
from medssl.archive.labels.seg import read_seg
from medssl.archive.labels.surface import read_surface
from medssl.archive.limits import watched
from medssl.archive.outcomes import Reason
from medssl.faults import faults_as
from medssl.files import open_regular

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_SEG = (_STORAGE + "66.4", _STORAGE + "66.7")
_SURFACE = (_STORAGE + "66.5",)
_RTSTRUCT = (_STORAGE + "481.3",)
_LABELS = (*_SEG, *_SURFACE, *_RTSTRUCT)


@dataclass(frozen=True)
class Found:
    """A label object of an index, with what its header says. Private: holds names of files and free text."""

    instance: Instance
    header: LabelObject


@dataclass(frozen=True)
class Pairing:
    """Label objects and the volumes that they were drawn on."""

    objects: Mapping[str, tuple[Found, ...]]
    """Volume -> its label objects."""
    unpaired: Mapping[str, int]
    """Why label objects have no volume -> how many."""

    def __str__(self) -> str:
        count = sum(map(len, self.objects.values()))
        rest = "".join(f"; {number} {reason}" for reason, number in sorted(self.unpaired.items()))
        return f"{count} label object{'s' * (count != 1)} of {len(self.objects)} volume{'s' * (len(self.objects) != 1)}{rest}"


def pair_labels(index: Index, records: Sequence[VolumeRecord]) -> Pairing:
    """The segmentations, of voxels or surfaces, and structure sets of an index with those of these volumes that they were drawn on."""
    places = _Places.of(index, records)
    found: dict[str, list[Found]] = defaultdict(list)
    unpaired: Counter[str] = Counter()
    for one in _objects(index):
        try:
            header = read_object(index, one, header=True)
        except LabelProblem:
            unpaired["cannot be read"] += 1
            continue
        volume = places.volume_of(header.refers)
        if volume in places.volumes:
            found[volume].append(Found(one, header))
        else:
            unpaired[volume] += 1
    return Pairing({volume: tuple(objects) for volume, objects in sorted(found.items())}, dict(unpaired))


def _objects(index: Index) -> list[Instance]:
    found = index.left_out_for(Reason.SEGMENTATION, Reason.RADIOTHERAPY)
    return [one for one in found if one.sop_class in _LABELS]


@dataclass(frozen=True)
class _Places:
    """Where the images that label objects name are."""

    volumes: frozenset[str]
    instances: Mapping[str, tuple[str, ...]]
    series: Mapping[str, tuple[str, ...]]
    frames: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, index: Index, records: Sequence[VolumeRecord]) -> _Places:
        instances, series, frames = (defaultdict[str, dict[str, None]](dict) for _ in range(3))
        names = [record.volume for record in records if record.kind == "dicom" and record.dimensions == 3]
        for volume in names:
            for one in index.slices(volume):
                for places, name in ((instances, one.uid), (series, one.series), (frames, one.frame_of_reference)):
                    if name:
                        places[name][volume] = None
        return cls(frozenset(names), *({name: tuple(found) for name, found in part.items()} for part in (instances, series, frames)))

    def volume_of(self, refers: Refers) -> str:
        """The volume, or why there is none."""
        votes = Counter(volume for uid in refers.instances for volume in self.instances.get(uid, ()))
        candidates = [volume for volume, count in votes.items() if count == max(votes.values())]
        for names, places in ((refers.series, self.series), (refers.frames, self.frames)):
            candidates = candidates or list(dict.fromkeys(volume for name in sorted(names) for volume in places.get(name, ())))
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            return "drawn on one of several volumes that nothing tells apart"
        return "drawn on images that are not in the index, or not among its chosen volumes"


def read_object(index: Index, one: Instance, header: bool = False) -> LabelObject:
    """A label object of an index, or its header alone; raises `LabelProblem`."""
    try:
        with index.open(one) as file:
            return _read(file, one.sop_class, header)
    except OSError as error:
        raise LabelProblem("a label object of the index cannot be opened: moved or deleted? Index the archive again.") from error


def read_dicom_file(path: Path, header: bool = False) -> LabelObject:
    """The segmentation or structure set of a file; raises `LabelProblem`."""
    with faults_as(LabelProblem, f"{path} cannot be read"), open_regular(path) as file:
        with reading(f"file {path}"):
            kind = text(read_dataset(file, ["SOPClassUID"], pixels=False), "SOPClassUID")
        if kind not in _LABELS:
            raise LabelProblem(f"{path} is no DICOM segmentation and no structure set.")
        file.seek(0)
        return _read(file, kind, header)


def _read(file: BinaryIO, sop_class: str, header: bool) -> LabelObject:
    stream = watched(file)
    if sop_class in _SEG:
        return read_seg(stream, pixels=not header)
    return read_surface(stream, surfaces=not header) if sop_class in _SURFACE else read_rtstruct(stream, contours=not header)


def labels_of(index: Index, record: VolumeRecord, objects: Iterable[Found], classes: Classes, resample: bool = False) -> ClassMap:
    """The classes of a volume's label objects, on its grid; raises `LabelProblem`."""
    x, y, z = record.shape[:3]
    read = [read_object(index, one.instance) for one in objects if _has(one.header, classes)]
    return class_map(read or [one.header for one in objects], classes, Grid((x, y, z), record.affine), resample)


def _has(header: LabelObject, classes: Classes) -> bool:
    """Whether any of its segments is asked for: others are not read."""
    return any(classes.wanted(name, segment) for name in classes.named for segment in header.segments)
