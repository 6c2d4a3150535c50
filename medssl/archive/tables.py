"""Parquet files, written whole or not at all, readable by their owner alone."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from medssl.errors import ArchiveError


def write_table(table: pa.Table, file: Path) -> None:
    """Write under a temporary name and rename: a reader sees the old file, the new one or none."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_private(file, sink.getvalue().to_pybytes())


def read_table(file: Path) -> pa.Table:
    """The whole table; raises `ArchiveError` where it is missing or damaged."""
    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise ArchiveError(f"the index is damaged: {file.name} cannot be read. Index the archive again into the same folder.") from error


def write_private(file: Path, content: bytes) -> None:
    """Write `content` with mode 0600, under a temporary name, synced, then renamed."""
    waiting = file.with_name(f".{file.name}.{uuid4().hex[:8]}")
    descriptor = os.open(waiting, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(waiting, file)  # noqa: PTH105
    except OSError:
        waiting.unlink(missing_ok=True)
        raise
