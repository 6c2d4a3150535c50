"""The table of a store: one row a volume, in Parquet files, and in JSON files while an ingest is under way."""

from __future__ import annotations

import json
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medssl.errors import StoreError
from medssl.faults import fault, is_fault
from medssl.files import is_plain_name, open_regular, read_json

_NUMBERS = pa.list_(pa.float64())
SCHEMA = pa.schema(
    [
        ("volume", pa.string()),
        ("reason", pa.string()),
        ("patient", pa.string()),
        ("series", pa.string()),
        ("modality", pa.string()),
        ("channels", pa.list_(pa.string())),
        ("modalities", pa.list_(pa.string())),
        ("arrays", pa.list_(pa.int32())),
        ("shape", pa.list_(pa.int32())),
        ("spacing", _NUMBERS),
        ("affine", _NUMBERS),
        ("statistics", _NUMBERS),
        ("box", pa.list_(pa.int32())),
        ("points", pa.binary()),
        ("classes", pa.list_(pa.int32())),
        ("class_points", pa.list_(pa.binary())),
        ("fingerprint", pa.string()),
        ("bytes", pa.int64()),
        ("dtype", pa.string()),
        ("digest", pa.string()),
        ("labels_digest", pa.string()),
        ("content", pa.string()),
    ]
)
"""`channels`, `modalities`, `arrays` and `statistics` (six numbers each) are as long as a volume has channels; `class_points` as
`classes`, which is null where a volume has no label; `fingerprint` tells whether the files it was made from are still the same;
`dtype` and the digests are of the volume's own files; `content` is of what they hold (`medssl.volumes.store.identity`)."""

_NEEDED = (
    *("patient", "series", "modality", "channels", "modalities", "arrays"),
    *("shape", "spacing", "affine", "statistics", "box", "points", "content"),
)
"""What the row of a volume that is there has to say."""

ROW_ERRORS = (OSError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, MemoryError, pa.ArrowException)
"""What reading rows is known to raise where they are damaged or hold something else."""


def read_table(folder: Path) -> pa.Table:
    """The whole table sorted by volume, rows of an ingest under way included; of two rows of one volume the later counts."""
    try:
        loose = list(loose_rows(folder).values())
        parts = [_part(path) for path in _files(folder / "table", "part-*.parquet")]
        table = pa.concat_tables([*parts, pa.Table.from_pylist(loose, SCHEMA)])
        names = table["volume"].to_pylist()
        if None in names:
            raise ValueError("a row names no volume")
    except ROW_ERRORS as error:
        if isinstance(error, OSError) and is_fault(error):
            raise StoreError(fault(error, f"the table of the store {folder} cannot be read")) from error
        raise damaged_table(folder, str(error)[:300]) from error
    if all(before < after for before, after in pairwise(names)):
        return table
    last = {name: number for number, name in enumerate(names)}
    return table.take(pa.array([last[name] for name in sorted(last)], pa.int64()))


def _files(folder: Path, pattern: str) -> list[Path]:
    """Sorted. Unlike `glob` it does not take a folder that may not be read for an empty one."""
    return sorted(path for path in folder.iterdir() if fnmatchcase(path.name, pattern)) if folder.is_dir() else []


def _part(path: Path) -> pa.Table:
    # pyarrow says of a file that may not be read that it is none, and waits for a pipe.
    open_regular(path).close()
    # Rows in pieces: read at once, they take up twice what they hold.
    with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
        table = pa.Table.from_batches(file.iter_batches(8192, use_threads=False), file.schema_arrow)
    for field in SCHEMA:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    table = table.select(SCHEMA.names).cast(SCHEMA)
    table.validate(full=True)
    return table


def loose_rows(folder: Path) -> dict[Path, dict[str, Any]]:
    """Rows of an ingest that is under way, by file; to be read before the table, into which another process may just move them."""
    rows = {}
    for path in _files(folder / "rows", "[!.]*.json"):
        with suppress(FileNotFoundError):
            rows[path] = _row(read_json(path))
    return rows


def row_to_json(row: dict[str, Any]) -> bytes:
    """One row as JSON."""
    classes = None if row["class_points"] is None else [content.hex() for content in row["class_points"]]
    return json.dumps(row | {"points": row["points"].hex(), "class_points": classes}).encode()


def _row(document: Any) -> dict[str, Any]:
    """The row of `row_to_json`."""
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names) | document
    classes = None if row["class_points"] is None else [bytes.fromhex(text) for text in row["class_points"]]
    return row | {"points": bytes.fromhex(row["points"]), "class_points": classes}


def check_columns(folder: Path, table: pa.Table) -> None:
    """Refuse, before a name is taken for a file, what no store's table says of its volumes; each row is checked when it is used."""
    names = table["volume"].to_pylist()
    bad = next((name for name in names if not is_plain_name(name)), None)
    if bad is not None:
        raise damaged_table(folder, f"it calls a volume {ascii(bad)[:80]}")
    for name in _NEEDED:
        if table[name].null_count:
            raise damaged_table(folder, f"it does not say the {name} of every volume")
    sides = pc.list_flatten(table["shape"])
    if len(set(pc.list_value_length(table["shape"]).to_pylist())) != 1 or sides.null_count or pc.min(sides).as_py() < 1:
        raise damaged_table(folder, "it holds shapes that cannot be")


def damaged_table(folder: Path, why: str) -> StoreError:
    """The error of a table that is not what was written."""
    return StoreError(f"the table of the store {folder} is damaged: {why}. Make the store again in an empty folder.")
