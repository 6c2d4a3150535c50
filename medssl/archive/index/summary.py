"""The public tables and what they add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medssl.archive.geometry import usable_position, usable_spacing
from medssl.archive.index.pseudonyms import is_pseudonym
from medssl.archive.index.records import IndexSummary, VolumeRecord
from medssl.archive.instance import SCHEMA
from medssl.archive.tables import TABLE_ERRORS, damaged

_WHOLE, _WORD, _NUMBER = pa.int64(), pa.string(), pa.float64()
_TAKEN = {
    **dict.fromkeys(("study_number", "series_number"), _WHOLE),
    **dict.fromkeys(("body_part", "sequence", "variant"), _WORD),
    **dict.fromkeys(("echo_time", "repetition_time", "inversion_time", "flip_angle", "b_value"), _NUMBER),
    **dict.fromkeys(("contrast", "kernel", "manufacturer", "model"), _WORD),
    **dict.fromkeys(("field_strength", "kvp"), _NUMBER),
}
"""How a volume was taken."""
VOLUMES = pa.schema(
    {
        "volume": pa.string(),
        "patient": pa.string(),
        "study": pa.string(),
        "series": pa.string(),
        "modality": pa.string(),
        "kind": pa.string(),
        "shape": pa.list_(pa.int64()),
        "spacing": pa.list_(pa.float64()),
        "affine": pa.list_(pa.float64()),
        "instances": pa.int64(),
        "split_by": pa.string(),
        "warnings": pa.list_(pa.string()),
        "dimensions": _WHOLE,
        "frames": _WHOLE,
        "colours": _WHOLE,
        "inverted": pa.bool_(),
        "deviation": pa.float64(),
        **_TAKEN,
    }
)
"""The volume table that `--where` sees. `affine` is the 4x4 matrix row by row."""

COLUMNS = tuple(VOLUMES.names)
UNKNOWN = ("split_by", *_TAKEN)
"""Columns that are empty where nothing is known."""

_PLACE = {"volume": pa.string(), "slice": pa.int64()}
INSTANCES = pa.schema(
    {
        "instance": pa.string(),
        "file": pa.string(),
        "frame": pa.int64(),
        "kind": pa.string(),
        "modality": pa.string(),
        "series": pa.string(),
        "rows": pa.int64(),
        "columns": pa.int64(),
        "manufacturer": pa.string(),
        "ending": pa.string(),
        "reason": pa.string(),
        **_PLACE,
    }
)
"""The public row of an instance."""
PRIVATE = pa.schema([*SCHEMA, *({"instance": pa.string(), "file": pa.string(), "outcome": pa.string(), **_PLACE}).items()])
"""The private row of an instance. `reason` is what the file alone decides, `outcome` what the whole archive does."""
PLACE = tuple(_PLACE)
"""Columns that are empty for an instance in no volume."""
SLICES = pa.schema(
    {
        "volume": pa.string(),
        "date": pa.string(),
        "first": pa.int64(),
        "count": pa.int64(),
        "group": pa.int64(),
        **{name: SCHEMA.field(name).type for name in ("source", "key", "temporal", "trigger", "acquired", "acquisition")},
    }
)
"""The private row of a volume: its study's date, which rows of which row group of the private instances are its slices, and what
the first of them says."""
CHANGES = pa.schema({"kind": pa.string(), "name": pa.string()})
"""A "file" or a "volume" of earlier tables that no longer counts there."""
STUDIES = pa.schema({"study": pa.string(), "number": pa.int64()})
"""Which of its patient's studies one is, by date."""


def records_table(records: Sequence[VolumeRecord]) -> pa.Table:
    """One row a volume."""
    rows = [{**record.document(), "affine": record.affine.ravel().tolist()} for record in records]
    return pa.Table.from_pylist(rows, schema=VOLUMES)


def records_from(table: pa.Table) -> list[VolumeRecord]:
    """The volumes of `records_table`, in its order; raises `ArchiveError` for what no index says of a volume."""
    return [_record(row) for row in table.to_pylist()]


def _record(row: dict[str, Any]) -> VolumeRecord:
    try:
        affine = np.array(row["affine"], float).reshape(4, 4)
        lists = {name: tuple(row[name]) for name in ("shape", "spacing", "warnings")}
        record = VolumeRecord(**{**row, **lists, "affine": affine})
        sound = _sound(record)
    except TABLE_ERRORS as error:
        raise damaged("the volume table", "holds a row that describes no volume") from error
    if not sound:
        raise damaged("the volume table", "holds a row that describes no volume")
    return record


def _sound(one: VolumeRecord) -> bool:
    names = all(is_pseudonym(name) for name in (one.volume, one.patient, one.study, one.series))
    flat = one.dimensions == 2
    sides = (3,) if one.kind == "dicom" and not flat else (3, 4)
    sizes = one.dimensions in (2, 3) and (one.shape[2] == 1) == flat and one.frames > 0 and one.colours in (1, 3)
    sizes = sizes and len(one.shape) in sides and all(0 < side <= 2**31 for side in one.shape) and one.instances > 0
    place = len(one.spacing) in ((0, 2) if flat else (3,)) and usable_spacing(one.spacing)
    place = place and bool(np.isfinite(one.affine).all()) and usable_position(one.affine[:3, 3].tolist())
    taken = [getattr(one, name) for name in _TAKEN]
    words = [value for value in taken if isinstance(value, str)]
    place = place and bool(np.isfinite([one.deviation, *(value for value in taken if isinstance(value, float))]).all())
    texts = all(text.isprintable() for text in (one.modality, one.split_by or "", *one.warnings, *words))
    return names and sizes and place and texts and one.kind in ("dicom", "nifti", "picture")


@dataclass
class Counts:
    """What the public instance table adds up to, part by part."""

    files: int = 0
    instances: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Reason -> files; a file of which slices end for different reasons counts for each."""

    def add(self, instances: pa.Table) -> None:
        """All rows of a file are in one part; a file with many slices has a row for each."""
        files = instances.group_by("file").aggregate([("kind", "max")])
        self.files += len(files)
        self.instances += pc.sum(pc.not_equal(files["kind_max"], "")).as_py() or 0
        ended = instances.filter(pc.not_equal(instances["reason"], "")).group_by(["file", "reason"]).aggregate([])
        for one in pc.value_counts(ended["reason"].combine_chunks()).to_pylist():
            self.rejected[one["values"]] += one["counts"]

    def reasons(self) -> dict[str, int]:
        """Reason -> files, commonest first."""
        return dict(sorted(self.rejected.items(), key=lambda item: (-item[1], item[0])))

    def summary(self, records: Sequence[VolumeRecord]) -> IndexSummary:
        """With the volumes."""
        return IndexSummary(files=self.files, instances=self.instances, volumes=list(records), rejected=self.reasons())
