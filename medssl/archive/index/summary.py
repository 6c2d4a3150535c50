"""The public tables and what they add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from medssl.archive.geometry import usable_position, usable_spacing
from medssl.archive.index.pseudonyms import is_pseudonym
from medssl.archive.index.records import IndexSummary, VolumeRecord
from medssl.archive.instance import SCHEMA
from medssl.archive.tables import TABLE_ERRORS, damaged

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
    }
)
"""The volume table that `--where` sees. `affine` is the 4x4 matrix row by row."""

COLUMNS = tuple(VOLUMES.names)

_PLACE = {"volume": pa.string(), "slice": pa.int64()}
INSTANCES = pa.schema(
    {
        "instance": pa.string(),
        "frame": pa.int64(),
        "kind": pa.string(),
        "modality": pa.string(),
        "ending": pa.string(),
        "reason": pa.string(),
        **_PLACE,
    }
)
"""The public row of an instance."""
PRIVATE = pa.schema([*SCHEMA, *({"instance": pa.string(), **_PLACE}).items()])
"""The private row of an instance."""
PLACE = tuple(_PLACE)
"""Columns that are empty for an instance in no volume."""


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
        raise damaged("volumes.parquet", "holds a row that describes no volume") from error
    if not sound:
        raise damaged("volumes.parquet", "holds a row that describes no volume")
    return record


def _sound(one: VolumeRecord) -> bool:
    names = all(is_pseudonym(name) for name in (one.volume, one.patient, one.study, one.series))
    sides = (3,) if one.kind == "dicom" else (3, 4)
    sizes = len(one.shape) in sides and all(0 < side <= 2**31 for side in one.shape) and one.instances > 0
    place = len(one.spacing) == 3 and usable_spacing(one.spacing)
    place = place and bool(np.isfinite(one.affine).all()) and usable_position(one.affine[:3, 3].tolist())
    texts = all(text.isprintable() for text in (one.modality, one.split_by or "", *one.warnings))
    return names and sizes and place and texts and one.kind in ("dicom", "nifti")


def summarize(instances: pa.Table, records: Sequence[VolumeRecord]) -> IndexSummary:
    """Counts over the public instance table."""
    # A file with frames has a row for each; that of frame 0 stands for the file.
    kinds = [kind for kind, frame in zip(instances["kind"].to_pylist(), instances["frame"].to_pylist(), strict=True) if frame < 1]
    return IndexSummary(
        files=len(kinds),
        instances=sum(1 for kind in kinds if kind),
        volumes=list(records),
        rejected=count_reasons(instances),
    )


def count_reasons(instances: pa.Table) -> dict[str, int]:
    """Reason -> files, commonest first."""
    counts = Counter(reason for reason in instances["reason"].to_pylist() if reason)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
