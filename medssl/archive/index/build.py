"""Building an index: scan the sources, settle duplicates, make volumes of series, write the tables."""

from __future__ import annotations

import json
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Literal

import numpy as np
import pyarrow as pa

from medssl.archive import geometry
from medssl.archive.headers.scan import Progress, scan, shards_of
from medssl.archive.index.folder import IndexFolder
from medssl.archive.index.pseudonyms import Pseudonyms
from medssl.archive.index.records import IndexSummary, VolumeRecord
from medssl.archive.index.summary import records_table, summarize
from medssl.archive.instance import Instance, to_table
from medssl.archive.limits import Refused
from medssl.archive.outcomes import Reason, ending
from medssl.archive.series.duplicates import mark_duplicates
from medssl.archive.series.splitting import Left, Stack, split_volumes
from medssl.archive.sources.folder import FolderSource
from medssl.archive.sources.locations import source_class
from medssl.archive.sources.packed import DamagedArchive, TarSource
from medssl.archive.tables import write_table
from medssl.errors import ArchiveError, MedsslError, UsageError
from medssl.faults import fault
from medssl.files import write_atomically
from medssl.source import ArchiveSource

if TYPE_CHECKING:
    from medssl.plugins import Plugins

_DAMAGES_SHOWN = 3
"""Damages of one archive that are told one by one; all are counted."""

Chosen = tuple[type[ArchiveSource], str]
"""A source's class and the location to make it with."""


@dataclass(frozen=True)
class Made:
    """One volume with the instances it is made of, in order."""

    record: VolumeRecord
    slices: tuple[Instance, ...]


def build_index(
    sources: Sequence[str | Path],
    folder: str | Path,
    *,
    workers: int = 2,
    progress: Progress | None = None,
    plugins: Plugins | None = None,
) -> IndexSummary:
    """Read `sources` (folders, zip or tar files, what plugins open) into the index folder and say what they hold.

    Everything is grouped by UID over all sources. Every file ends in one volume or with one `Reason`. An index that is already in
    `folder` is replaced, and keeps its pseudonyms. `progress` is called with files done and files in all.
    `plugins` open what no source of medssl's own does; without them the installed ones.
    Raises `UsageError`, `MissingInput` or `ArchiveError`.
    """
    if not sources:
        raise UsageError("no archive given. Name at least one folder, zip or tar file.")
    chosen = [source_class(source, plugins) for source in sources]
    try:
        with IndexFolder.held(Path(folder)) as root:
            return _built(chosen, root, workers, progress)
    except MedsslError:  # MissingInput is an OSError too, and says more
        raise
    except OSError as error:
        raise ArchiveError(fault(error, f"the index cannot be written to {folder}")) from error


def _built(chosen: Sequence[Chosen], root: IndexFolder, workers: int, progress: Progress | None) -> IndexSummary:
    names = Pseudonyms.of(root.key)
    with root.building() as (public, private):
        sources = _opened(chosen)
        instances = mark_duplicates(_scanned(sources, root, private, workers, progress), sources)
        made, left = _volumes(instances, names)
        final = _final(instances, left)
        rows = _instances_table(final, made, names)
        records = [one.record for one in made]
        write_table(rows, public / "instances.parquet")
        write_table(records_table(records), public / "volumes.parquet")
        write_table(_private_table(final, rows), private / "instances.parquet")
        write_atomically(private / "sources.json", json.dumps([place for _, place in chosen]).encode())
    return summarize(rows, records)


class DamageWarning(UserWarning):
    """A zip or tar file of which a part is lost."""


class _NothingOf(ArchiveSource):
    """Stands for a zip or tar file of which nothing can be read: one file, counted as damaged."""

    name = "damaged"
    schemes: ClassVar[tuple[str, ...]] = ()

    def keys(self) -> Iterator[str]:
        yield ""

    def open(self, key: str) -> BinaryIO:
        raise Refused(Reason.DAMAGED_ARCHIVE)


def _opened(chosen: Sequence[Chosen]) -> list[ArchiveSource]:
    """The sources; of several a damaged one costs itself and a warning. Archives are numbered: their names may tell who is in them."""
    sources: list[ArchiveSource] = []
    for number, (kind, place) in enumerate(chosen, 1):
        which = f"archive {number} of {len(chosen)}" if len(chosen) > 1 else "the archive"
        try:
            source = kind(place)
        except DamagedArchive as error:
            if len(chosen) == 1:
                raise
            _warn(f"{which} is left out: {error}")
            source = _NothingOf(place)
        for damage in source.damages[:_DAMAGES_SHOWN] if isinstance(source, TarSource) else ():
            _warn(f"{which} is damaged after its member {damage.after}, at byte {damage.at}: what lay there is lost. Copy it again.")
        sources.append(source)
    return sources


def _warn(message: str) -> None:
    warnings.warn(message, DamageWarning, stacklevel=5)


def _scanned(sources: Sequence[ArchiveSource], root: IndexFolder, private: Path, workers: int, progress: Progress | None) -> list[Instance]:
    """Every instance, sorted: what follows does not depend on the order in which a source names its files."""
    shards = shards_of(_keys(source, root.root) for source in sources)
    if not shards:
        places = ", ".join(source.location for source in sources)
        raise ArchiveError(f"there is no file in {places}. Name the folder that holds the scans; it is read with all its subfolders.")
    waiting = private / "scan"
    waiting.mkdir(mode=0o700)
    instances = scan(shards, sources, waiting, workers, progress)
    for file in waiting.iterdir():
        file.unlink()
    waiting.rmdir()
    return sorted(instances, key=lambda one: one.identity)


def _keys(source: ArchiveSource, root: Path) -> Iterator[str]:
    """The source's names without those of the index itself, which may lie inside the archive's folder."""
    inside: str | None = None
    if isinstance(source, FolderSource):
        relative = os.path.relpath(root.resolve(), Path(source.location).resolve())
        inside = None if relative.startswith("..") else relative + os.sep
    for key in source.keys():  # noqa: SIM118 - a source is no dictionary
        if inside is None or not key.startswith(inside):
            yield key


def _volumes(instances: Sequence[Instance], names: Pseudonyms) -> tuple[list[Made], list[Left]]:
    series: dict[tuple[str, str, str], list[Instance]] = defaultdict(list)
    made: list[Made] = []
    left: list[Left] = []
    for one in instances:
        if one.reason:
            continue
        if one.kind == "nifti":
            made.append(_from_nifti(one, names))
        else:
            series[one.patient, one.study, one.series].append(one)
    for members in series.values():
        stacks, rest = split_volumes(members)
        made += [_from_stack(stack, names) for stack in stacks]
        left += rest
    # Pseudonyms give an order that does not depend on where files lie.
    return sorted(made, key=lambda one: (one.record.patient, one.record.study, one.record.series, one.record.volume)), left


def _from_stack(stack: Stack, names: Pseudonyms) -> Made:
    first = stack.slices[0]
    identity = "\n".join([first.series, *(one.named(one.uid) for one in stack.slices)])
    return Made(
        _record(first, "dicom", names, identity, stack.shape, stack.affine, ", ".join(stack.split_by) or None, stack.warnings),
        stack.slices,
    )


def _from_nifti(one: Instance, names: Pseudonyms) -> Made:
    affine = np.array(one.affine, float).reshape(4, 4)
    return Made(_record(one, "nifti", names, one.uid, one.shape, affine, None, one.warnings), (one,))


def _record(
    first: Instance,
    kind: Literal["dicom", "nifti"],
    names: Pseudonyms,
    identity: str,
    shape: tuple[int, ...],
    affine: geometry.Float,
    split_by: str | None,
    warnings: tuple[str, ...],
) -> VolumeRecord:
    return VolumeRecord(
        volume=names.name("volume", f"{kind}\n{identity}"),
        patient=_patient(first, names),
        study=names.name("study", first.study or first.series),
        series=names.name("series", first.series),
        modality=first.modality,
        kind=kind,
        shape=tuple(shape),
        spacing=geometry.voxel_spacing(affine),
        affine=affine,
        instances=len(shape) and (shape[2] if kind == "dicom" else 1),
        split_by=split_by,
        warnings=warnings,
    )


def _patient(one: Instance, names: Pseudonyms) -> str:
    """An empty PatientID says nothing: then a study is taken for a person of its own."""
    return names.name("patient", f"{one.kind}\n{one.patient}" if one.patient else f"study\n{one.study or one.series}")


def _final(instances: Sequence[Instance], left: Sequence[Left]) -> list[Instance]:
    reasons = {item.instance.identity: item.reason for item in left}
    return [replace(one, reason=reasons[one.identity].value) if one.identity in reasons else one for one in instances]


def _instances_table(instances: Sequence[Instance], made: Sequence[Made], names: Pseudonyms) -> pa.Table:
    """The public row of each instance: how it ended, and its place in its volume."""
    place = {one.identity: (volume.record.volume, number) for volume in made for number, one in enumerate(volume.slices)}
    where = [place.get(one.identity, (None, None)) for one in instances]
    return pa.table(
        {
            "instance": [names.name("instance", one.named(f"{one.source}\n{os.fsdecode(one.key)}")) for one in instances],
            "frame": pa.array([one.frame for one in instances], pa.int64()),
            "kind": [one.kind for one in instances],
            "modality": [one.modality for one in instances],
            "ending": [ending(one.why) for one in instances],
            "reason": [one.reason for one in instances],
            "volume": pa.array([volume for volume, _ in where], pa.string()),
            "slice": pa.array([number for _, number in where], pa.int64()),
        }
    )


def _private_table(instances: Sequence[Instance], rows: pa.Table) -> pa.Table:
    table = to_table(list(instances))
    for name in ("instance", "volume", "slice"):
        table = table.append_column(name, rows[name])
    return table
