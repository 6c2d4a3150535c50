"""Made archives, and the one question that most tests ask: what does the index say of this folder?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from medssl.archive import Index, VolumeRecord, build_index

Indexed = Callable[..., Index]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An empty folder to put an archive in."""
    folder = tmp_path / "archive"
    folder.mkdir()
    return folder


def _slices(record: VolumeRecord) -> int:
    return record.shape[2] if record.kind == "dicom" else 1


@pytest.fixture
def indexed(tmp_path: Path) -> Indexed:
    """Index a folder and check that every slice is in exactly one volume or has a reason."""

    def build(*sources: Path, name: str = "index") -> Index:
        summary = build_index(sources, tmp_path / name, workers=1)
        (file,) = (tmp_path / name).glob("tables-*/instances-0000.parquet")
        rows = pq.read_table(file).to_pylist()
        assert all(bool(row["volume"]) != bool(row["reason"]) for row in rows)
        assert len({row["file"] for row in rows}) == summary.files and len({row["instance"] for row in rows}) == len(rows)
        assert Counter(row["volume"] for row in rows if row["volume"]) == {one.volume: _slices(one) for one in summary.volumes}
        index = Index(tmp_path / name)
        assert index.summary() == summary
        return index

    return build
