"""Settling a bucket: the series of some rows become volumes, and each row ends in one or with its reason.

A bucket is a file of rows that holds whole series and is small enough for the memory of one process. Settling it needs no other
bucket and no archive: what duplicates are is known before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl.archive.index.buckets import Stretch, read_bucket
from medssl.archive.index.making import COMMON, Made, make_volumes, record_of_uniform
from medssl.archive.index.parts import PartWriter, Rows, batches
from medssl.archive.index.pseudonyms import Pseudonyms
from medssl.archive.index.records import VolumeRecord
from medssl.archive.index.summary import INSTANCES, PRIVATE, records_table
from medssl.archive.instance import SCHEMA, WHOLE, from_table, named
from medssl.archive.outcomes import Reason, ending
from medssl.archive.series.locations import placed_by_location
from medssl.archive.series.uniform import uniform_series

ENTERED = "entered"
"""The outcome of a zip or tar file whose members are files of the archive: it is kept to know it again, and is none itself."""
ROWS = 8192
"""Rows that are settled at once, if no series has more."""


@dataclass(frozen=True)
class Bucket:
    """Work for one process."""

    file: Path
    places: Sequence[Stretch]
    """Where in it the rows are."""
    part: int
    public: Path
    """Folder of the tables to be."""
    private: Path
    names: Pseudonyms
    slice_location: bool


@dataclass(frozen=True)
class _Volume:
    record: VolumeRecord
    rows: Sequence[int]
    """The slices in order, as rows of the table that is settled."""
    date: str
    """Of the volume's study, where its first slice says one."""


def settle(bucket: Bucket) -> int:
    """Write the part of a bucket; returns its rows."""
    table = read_bucket(bucket.file, bucket.places)
    order = [(name, "ascending") for name in ("patient", "study", "series", "source", "key", "frame")]
    table = table.sort_by(order)
    with PartWriter(bucket.public, bucket.private, bucket.part) as writer:
        for piece in batches(table, _begins(table).tolist()[1:], ROWS):
            writer.add(_settled(piece.combine_chunks(), bucket.names, bucket.slice_location))
    return len(table)


def _begins(table: pa.Table) -> NDArray[np.int64]:
    """Rows at which a series begins; a row of no series is one for itself."""
    new = np.array(pc.equal(table["series"], ""), bool)
    new[:1] = True
    for name in ("patient", "study", "series"):
        new[1:] |= np.array(pc.not_equal(table[name].slice(1), table[name].slice(0, len(table) - 1)), bool)
    return np.flatnonzero(new)


def _settled(table: pa.Table, names: Pseudonyms, slice_location: bool) -> Rows:
    mark = table["mark"].fill_null("")
    reasons = pc.if_else(pc.equal(mark, ""), table["reason"], mark)
    volumes = list(_uniform(table, reasons, names))
    rest = np.ones(len(table), bool)
    for volume in volumes:
        rest[volume.rows] = False
    others, left = _others(table, np.flatnonzero(rest), reasons, names, slice_location)
    # Pseudonyms give an order that does not depend on where files lie.
    volumes = sorted([*volumes, *others], key=lambda one: (one.record.patient, one.record.study, one.record.series, one.record.volume))
    ended = reasons.to_pylist()
    for row, reason in left.items():
        ended[row] = reason
    of, number = np.full(len(table), len(volumes)), np.zeros(len(table), np.int64)
    for place, volume in enumerate(volumes):
        of[volume.rows], number[volume.rows] = place, np.arange(len(volume.rows))
    by_name = sorted(range(len(volumes)), key=lambda place: volumes[place].record.volume)
    ranks = np.append(np.argsort(by_name), len(volumes))
    order = pa.array(np.lexsort((number, ranks[of])))
    outside = of == len(volumes)
    where = {
        "volume": pa.array([one.record.volume for one in volumes], pa.string()).take(pa.array(of, mask=outside)),
        "slice": pa.array(number, mask=outside),
    }
    outcome = pa.table({**_outcomes(table, ended, names), **where}).take(order)
    private = table.select(SCHEMA.names).take(order)
    for name in PRIVATE.names[len(SCHEMA) :]:
        private = private.append_column(name, outcome[name])
    public = pa.table([private[name] if name not in outcome.column_names else outcome[name] for name in INSTANCES.names], schema=INSTANCES)
    public = public.filter(pc.not_equal(outcome["reason"], ENTERED))
    records = records_table([one.record for one in volumes])
    return Rows(public, private.cast(PRIVATE), records, {one.record.volume: one.date for one in volumes})


def _uniform(table: pa.Table, reasons: pa.Array, names: Pseudonyms) -> Iterator[_Volume]:
    """The series that are a volume at first sight."""
    source, key, frame, uid, date = (table[name].to_pylist() for name in ("source", "key", "frame", "uid", "study_date"))
    usable = np.asarray(pc.equal(reasons, ""), bool)
    for found in uniform_series(table, _begins(table), usable, COMMON):
        rows = found.rows.tolist()
        files = len({(source[row], key[row]) for row in rows})
        record = record_of_uniform(found, [named(uid[row], frame[row]) for row in rows], files, names)
        yield _Volume(record, rows, _date([date[row] for row in rows]))


def _others(
    table: pa.Table, rows: NDArray[np.int64], reasons: pa.Array, names: Pseudonyms, slice_location: bool
) -> tuple[list[_Volume], dict[int, str]]:
    """The volumes of all other rows, and those that are in none though nothing was against them: row -> reason."""
    some = pa.array(rows)
    instances = from_table(table.select(SCHEMA.names).take(some))
    if slice_location:
        instances = [placed_by_location(one) for one in instances]
    own, marked = (column.take(some).to_pylist() for column in (table["reason"], reasons))
    instances = [replace(one, reason=after) if after != before else one for one, before, after in zip(instances, own, marked, strict=True)]
    row_of = {one.identity: row for one, row in zip(instances, rows.tolist(), strict=True)}
    made, left = make_volumes(instances, names)
    volumes = [_Volume(one.record, [row_of[each.identity] for each in one.slices], _date_of(one)) for one in made]
    ended = {row_of[one.identity]: one.reason for one in instances}
    return volumes, ended | {row_of[one.instance.identity]: one.reason.value for one in left}


def _outcomes(table: pa.Table, ended: Sequence[str], names: Pseudonyms) -> dict[str, pa.Array]:
    """What is public of each instance and not already a column of its own."""
    source, key, frame = (table[name].to_pylist() for name in ("source", "key", "frame"))
    keys = [f"{number}\n{os.fsdecode(name)}" for number, name in zip(source, key, strict=True)]
    files = [names.name("instance", name) for name in keys]
    instances = [
        file if number == WHOLE else names.name("instance", named(name, number))
        for file, name, number in zip(files, keys, frame, strict=True)
    ]
    endings = {reason: ending(Reason(reason) if reason and reason != ENTERED else None) for reason in set(ended)}
    series = table["series"].combine_chunks().dictionary_encode()
    called = pa.array([names.name("series", uid) if uid else "" for uid in series.dictionary.to_pylist()], pa.string())
    return {
        "instance": pa.array(instances, pa.string()),
        "file": pa.array(files, pa.string()),
        "series": called.take(series.indices),
        "manufacturer": table["manufacturer"].combine_chunks(),
        "ending": pa.array([endings[reason] for reason in ended], pa.string()),
        "reason": pa.array(ended, pa.string()),
        "outcome": pa.array(ended, pa.string()),
    }


def _date_of(made: Made) -> str:
    return _date([one.taken.study_date for one in made.slices])


def _date(dates: Sequence[str]) -> str:
    return min(dates) if dates[0] else ""
