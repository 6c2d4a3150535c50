"""Settling a bucket: the series of some rows become volumes, and each row ends in one or with its reason.

A bucket is a file of rows that holds whole series and is small enough for the memory of one process. Settling it needs no other
bucket and no archive: what duplicates are is known before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl.archive.index.making import Made, make_volumes
from medssl.archive.index.parts import PartWriter, Rows, batches
from medssl.archive.index.pseudonyms import Pseudonyms
from medssl.archive.index.summary import INSTANCES, PRIVATE, records_table
from medssl.archive.instance import SCHEMA, WHOLE, Instance, from_table
from medssl.archive.outcomes import Reason, ending
from medssl.archive.series.locations import placed_by_location
from medssl.archive.tables import read_rows

ENTERED = "entered"
"""The outcome of a zip or tar file whose members are files of the archive: it is kept to know it again, and is none itself."""
MARKED = pa.schema([*SCHEMA, pa.field("mark", pa.string())])
"""A row with what the whole archive says of it: a reason, `ENTERED`, or nothing."""
ROWS = 2048
"""Rows that become objects at once, if no series has more."""


@dataclass(frozen=True)
class Bucket:
    """Work for one process."""

    file: Path
    """Sorted by bucket."""
    rows: range
    """Which of its rows."""
    part: int
    public: Path
    """Folder of the tables to be."""
    private: Path
    names: Pseudonyms
    slice_location: bool


def settle(bucket: Bucket) -> int:
    """Write the part of a bucket; returns its rows."""
    table = read_rows(bucket.file, MARKED, bucket.rows, ("mark",))
    order = [(name, "ascending") for name in ("patient", "study", "series", "source", "key", "frame")]
    table = table.sort_by(order)
    with PartWriter(bucket.public, bucket.private, bucket.part) as writer:
        for piece in batches(table, _starts(table).tolist(), ROWS):
            writer.add(_settled(piece, bucket.names, bucket.slice_location))
    return len(table)


def _starts(table: pa.Table) -> NDArray[np.int64]:
    """Rows at which a series begins; a row of no series is one for itself."""
    if len(table) < 2:
        return np.zeros(0, np.int64)
    new = np.array(pc.equal(table["series"].slice(1), ""), bool)
    for name in ("patient", "study", "series"):
        new |= np.array(pc.not_equal(table[name].slice(1), table[name].slice(0, len(table) - 1)), bool)
    return np.flatnonzero(new) + 1


def _settled(table: pa.Table, names: Pseudonyms, slice_location: bool) -> Rows:
    instances = from_table(table.select(SCHEMA.names))
    if slice_location:
        instances = [placed_by_location(one) for one in instances]
    marks = table["mark"].to_pylist()
    marked = [replace(one, reason=mark) if mark else one for one, mark in zip(instances, marks, strict=True)]
    made, left = make_volumes(marked, names)
    reasons = {item.instance.identity: item.reason.value for item in left}
    ended = [reasons.get(one.identity, one.reason) for one in marked]
    place = {one.identity: (volume.record.volume, number) for volume in made for number, one in enumerate(volume.slices)}
    order = np.array(sorted(range(len(marked)), key=lambda row: (*place.get(marked[row].identity, ("~", 0)), row)), np.int64)
    outcome = pa.table(_outcomes(marked, ended, place, names)).take(pa.array(order))
    private = table.select(SCHEMA.names).take(pa.array(order))
    for name in PRIVATE.names[len(SCHEMA) :]:
        private = private.append_column(name, outcome[name])
    public = pa.table([private[name] if name not in outcome.column_names else outcome[name] for name in INSTANCES.names], schema=INSTANCES)
    public = public.filter(pc.not_equal(outcome["reason"], ENTERED))
    return Rows(public, private.cast(PRIVATE), records_table([one.record for one in made]), {one.record.volume: _date(one) for one in made})


def _outcomes(
    instances: Sequence[Instance], ended: Sequence[str], place: dict[tuple[int, bytes, int], tuple[str, int]], names: Pseudonyms
) -> dict[str, pa.Array]:
    """What is public of each instance and not already a column of its own."""
    keys = [f"{one.source}\n{os.fsdecode(one.key)}" for one in instances]
    files = [names.name("instance", key) for key in keys]
    series = {uid: names.name("series", uid) if uid else "" for uid in {one.series for one in instances}}
    where = [place.get(one.identity, (None, None)) for one in instances]
    return {
        "instance": pa.array(
            [
                file if one.frame == WHOLE else names.name("instance", one.named(key))
                for one, key, file in zip(instances, keys, files, strict=True)
            ],
            pa.string(),
        ),
        "file": pa.array(files, pa.string()),
        "series": pa.array([series[one.series] for one in instances], pa.string()),
        "manufacturer": pa.array([one.taken.manufacturer for one in instances], pa.string()),
        "ending": pa.array([ending(Reason(reason) if reason and reason != ENTERED else None) for reason in ended], pa.string()),
        "reason": pa.array(ended, pa.string()),
        "outcome": pa.array(ended, pa.string()),
        "volume": pa.array([volume for volume, _ in where], pa.string()),
        "slice": pa.array([number for _, number in where], pa.int64()),
    }


def _date(made: Made) -> str:
    """Of the volume's study, where its first slice says one."""
    dates = [one.taken.study_date for one in made.slices]
    return min(dates) if dates[0] else ""
