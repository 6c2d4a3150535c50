"""A real Orthanc gives the volumes that the folder gives, voxel for voxel, and comes back when it or we were killed."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless, RLELossless

from medssl.archive import Index, build_index
from medssl.testing.dicom import made_affine, made_volume, write_localizer, write_series

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
Start = Callable[..., Any]


def hospital(folder: Path) -> None:
    """CT and MR, compressed and not, with digits that do not end, and a localizer."""
    affine = made_affine()
    affine[:3, 3] += (1 / 3, 2 / 7, 0.123456)
    write_series(folder / "ct", made_volume((16, 20, 24), 1), affine, series="ct", slope=1.0, intercept=-1024.0, signed=False)
    write_localizer(folder / "ct", series="ct")
    write_series(folder / "mr", np.abs(made_volume((12, 10, 9), 2)), affine, modality="MR", series="mr", signed=False)
    compressed = {"rle": RLELossless, "jpegls": JPEGLSLossless}
    for number, (name, syntax) in enumerate(compressed.items(), 3):
        voxels = np.abs(made_volume((9, 8, 7), number))
        for file in write_series(folder / name, voxels, affine, modality="MR", series=name, signed=False):
            dataset = pydicom.dcmread(file)
            if syntax == RLELossless:
                dataset.compress(syntax, generate_instance_uid=False)
            else:
                dataset.PixelData = encapsulate([imagecodecs.jpegls_encode(np.frombuffer(dataset.PixelData, np.uint16).reshape(8, 9))])
                dataset.file_meta.TransferSyntaxUID = syntax
            dataset.save_as(file)


Volumes = dict[str, tuple[np.ndarray, np.ndarray, dict[str, Any]]]


def volumes(index: Path) -> Volumes:
    """By name: an index that is made again keeps its names, so that those of the folder are those of the PACS."""
    opened = Index(index)
    return {one.volume: (opened.read(one.volume).array, one.affine, one.document()) for one in opened.volumes()}


def assert_same(found: Volumes, wanted: Volumes) -> None:
    assert wanted.keys() == found.keys() and wanted
    for name, (array, affine, row) in wanted.items():
        assert found[name][0].dtype == array.dtype and np.array_equal(found[name][0], array), name
        assert np.allclose(found[name][1], affine, atol=1e-9), name
        assert {**found[name][2], "affine": 0} == {**row, "affine": 0}, name


@pytest.mark.parametrize("workers", [1, 2])
def test_the_volumes_of_a_pacs_are_those_of_the_folder(workers: int, orthanc: Start, archive: Path, tmp_path: Path) -> None:
    hospital(archive)
    server = orthanc()
    server.upload(archive)
    ours = build_index([archive], tmp_path / "index", workers=1)
    wanted = volumes(tmp_path / "index")
    theirs = build_index([server.location], tmp_path / "index", workers=workers)
    assert theirs.rejected == ours.rejected and theirs.files == ours.files
    assert_same(volumes(tmp_path / "index"), wanted)


def test_conditions_choose_and_a_password_lets_in(orthanc: Start, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital(archive)
    server = orthanc({"someone": "a secret"})
    server.upload(archive)
    monkeypatch.setenv("MEDSSL_DICOMWEB_USER", "someone")
    monkeypatch.setenv("MEDSSL_DICOMWEB_PASSWORD", "a secret")
    summary = build_index([f"{server.location}?Modality=CT"], tmp_path / "index", workers=2)
    assert [record.modality for record in summary.volumes] == ["CT"] and summary.files == 25
    assert np.array_equal(Index(tmp_path / "index").read(summary.volumes[0].volume).array, made_volume((16, 20, 24), 1))


@pytest.mark.parametrize("name", ["dicom2nifti", "enhanced", "dcm_qa_ts", "mr-brain-study"])
def test_real_scans_too(name: str, orthanc: Start, tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"real images are not at {SHARED}; this test has a twin on made data")
    folder = tmp_path / "copy"
    seen: set[str] = set()
    for file in sorted(path for path in (SHARED / name).rglob("*") if path.is_file()):
        uid = str(pydicom.dcmread(file, force=True, stop_before_pixels=True).get("SOPInstanceUID", ""))
        # A PACS keeps one object of a UID, and a file without its meta header it does not take.
        if uid and uid not in seen and file.read_bytes()[128:132] == b"DICM":
            seen.add(uid)
            (folder / file.relative_to(SHARED / name)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / file.relative_to(SHARED / name))
    server = orthanc()
    server.upload(folder)
    ours = build_index([folder], tmp_path / "index", workers=1)
    wanted = volumes(tmp_path / "index")
    theirs = build_index([server.location], tmp_path / "index", workers=2)
    assert theirs.rejected == ours.rejected and theirs.files == ours.files
    assert_same(volumes(tmp_path / "index"), wanted)


def test_a_server_that_is_killed_and_started_again_costs_nothing_but_time(
    orthanc: Start, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital(archive)
    server = orthanc()
    server.upload(archive)
    # Slow enough to be met in the middle.
    monkeypatch.setenv("MEDSSL_DICOMWEB_RATE", "8")
    monkeypatch.setenv("MEDSSL_DICOMWEB_BACKOFF", "0.5")

    def again() -> None:
        time.sleep(0.6)
        server.kill()
        time.sleep(1.0)
        server.start()

    build_index([archive], tmp_path / "index", workers=1)
    wanted = volumes(tmp_path / "index")
    breaking = threading.Thread(target=again)
    breaking.start()
    assert build_index([server.location], tmp_path / "index", workers=2).files == 48
    breaking.join()
    monkeypatch.setenv("MEDSSL_DICOMWEB_RATE", "40")
    breaking = threading.Thread(target=again)
    breaking.start()
    assert_same(volumes(tmp_path / "index"), wanted)
    breaking.join()


def test_who_is_killed_in_the_middle_starts_again(orthanc: Start, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital(archive)
    server = orthanc()
    server.upload(archive)
    monkeypatch.setenv("MEDSSL_DICOMWEB_RATE", "4")
    build_index([archive], tmp_path / "index", workers=1)
    wanted = volumes(tmp_path / "index")
    command = [sys.executable, "-m", "medssl", "index", server.location, "--index", str(tmp_path / "index")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "index").glob(".new-*")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    monkeypatch.delenv("MEDSSL_DICOMWEB_RATE")
    build_index([server.location], tmp_path / "index", workers=2)
    assert_same(volumes(tmp_path / "index"), wanted)
