"""Zip and tar files inside a folder are part of the archive."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medssl.archive import Index, Reason, build_index
from medssl.testing.dicom import made_affine, made_volume, write_series

Indexed = Callable[..., Index]


def packed(folder: Path, name: str, form: str, seed: int, tmp_path: Path) -> np.ndarray:
    """One series in an archive of that name; returns its voxels."""
    voxels = made_volume((5, 4, 6), seed)
    write_series(tmp_path / name, voxels, made_affine(), series=name, patient=name)
    made = shutil.make_archive(str(tmp_path / f"packed {name}"), form, tmp_path / name)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.move(made, folder / name)
    return voxels


@pytest.mark.parametrize("workers", [1, 2])
def test_zip_and_tar_files_in_folders_are_read(workers: int, archive: Path, tmp_path: Path) -> None:
    forms = {"a.zip": "zip", "b.tar": "tar", "c.tar.gz": "gztar", "without ending": "zip", "d.tbz": "bztar"}
    wanted = [packed(archive / "sub", name, form, seed, tmp_path) for seed, (name, form) in enumerate(forms.items())]
    write_series(archive, made_volume((5, 4, 6), 99), made_affine())
    wanted.append(made_volume((5, 4, 6), 99))
    summary = build_index([archive], tmp_path / "index", workers=workers)
    index = Index(tmp_path / "index")
    found = [index.read(record.volume).array for record in index.volumes()]
    assert sorted(array.tobytes() for array in found) == sorted(array.tobytes() for array in wanted)
    assert (summary.files, summary.rejected) == (36, {})


def test_the_same_series_in_a_folder_and_in_a_zip_is_one(archive: Path, indexed: Indexed) -> None:
    write_series(archive / "a", made_volume((5, 4, 6)), made_affine())
    shutil.make_archive(str(archive / "copy"), "zip", archive / "a")
    index = indexed(archive)
    assert len(index.volumes()) == 1 and index.rejected() == {Reason.DUPLICATE: 6}


def test_what_is_no_archive_of_files_keeps_its_reason(archive: Path, indexed: Indexed, tmp_path: Path) -> None:
    write_series(archive, made_volume((5, 4, 6)), made_affine())
    packed(archive, "inner.zip", "zip", 1, tmp_path)
    with zipfile.ZipFile(archive / "outer.zip", "w") as outer:
        outer.write(archive / "inner.zip", "inner.zip")
    (archive / "inner.zip").unlink()
    with zipfile.ZipFile(archive / "report.docx", "w") as document:
        document.writestr("[Content_Types].xml", "<Types/>")
    with zipfile.ZipFile(archive / "empty.zip", "w"):
        pass
    (archive / "broken.zip").write_bytes(b"PK\x03\x04" + bytes(200))
    (archive / "lone.gz").write_bytes(b"\x1f\x8b" + bytes(200))
    index = indexed(archive)
    assert len(index.volumes()) == 1
    expected = {Reason.NOT_MEDICAL: 1, Reason.EMPTY_FILE: 1, Reason.DAMAGED_ARCHIVE: 1, Reason.COMPRESSED_ARCHIVE: 2}
    assert index.rejected() == expected
