"""Archives to damage, and the one question of most tests here: is every file counted, and is every other one still read?"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from medssl.archive import IndexSummary, build_index
from medssl.testing.dicom import made_affine, made_volume, write_series

Summed = Callable[..., IndexSummary]


def contents(patients: int = 3, slices: int = 6) -> dict[str, bytes]:
    """Name -> DICOM file of a series for each patient."""
    found: dict[str, bytes] = {}
    folder = Path("made")
    for number in range(patients):
        found |= _series(folder / str(number), number, slices)
    return found


def _series(folder: Path, number: int, slices: int) -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        files = write_series(Path(place), made_volume((16, 14, slices), number), made_affine(), patient=str(number))
        return {f"{folder}/{file.name}": file.read_bytes() for file in files}


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar file of these members."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return target.getvalue()


@pytest.fixture
def summed(tmp_path: Path) -> Summed:
    """Index sources and check that every file is in exactly one volume or counted once."""

    def build(*sources: Path, workers: int = 1) -> IndexSummary:
        summary = build_index(sources, tmp_path / "index", workers=workers)
        assert summary.files == sum(record.instances for record in summary.volumes) + sum(summary.rejected.values())
        return summary

    return build
