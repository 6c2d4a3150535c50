"""The public tables and what they add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from medssl.archive.records import IndexSummary, VolumeRecord

_SCHEMA = pa.schema(
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

COLUMNS = tuple(_SCHEMA.names)


def records_table(records: Sequence[VolumeRecord]) -> pa.Table:
    """One row a volume."""
    rows = [{**record.document(), "affine": record.affine.ravel().tolist()} for record in records]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def records_from(table: pa.Table) -> list[VolumeRecord]:
    """The volumes of `records_table`, in its order."""
    return [
        VolumeRecord(
            **{
                **row,
                "shape": tuple(row["shape"]),
                "spacing": tuple(row["spacing"]),
                "affine": np.array(row["affine"], float).reshape(4, 4),
                "warnings": tuple(row["warnings"]),
            }
        )
        for row in table.to_pylist()
    ]


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
