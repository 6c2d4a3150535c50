"""Made archives, and the one question that most tests ask: what does the index say of this folder?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medssl.archive import Index, build_index

Indexed = Callable[..., Index]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An empty folder to put an archive in."""
    folder = tmp_path / "archive"
    folder.mkdir()
    return folder


@pytest.fixture
def indexed(tmp_path: Path) -> Indexed:
    """Index a folder and check that every file is in exactly one volume or counted once."""

    def build(*sources: Path, name: str = "index") -> Index:
        summary = build_index(sources, tmp_path / name, workers=1)
        assert summary.files == sum(record.instances for record in summary.volumes) + sum(summary.rejected.values())
        index = Index(tmp_path / name)
        assert index.summary() == summary
        return index

    return build
