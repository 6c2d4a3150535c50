"""The same index whoever reads the files: this process, processes of this machine, or a cluster of which a worker is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medssl.archive import Index, build_index
from medssl.archive.executors import cluster
from medssl.archive.index import scanning
from medssl.errors import ArchiveError
from medssl.testing.dicom import made_affine, made_volume, write_series


def tables(index: Path) -> object:
    found = Index(index)._contents
    rows = [row for part in found.instances() for row in part.to_pylist()]
    return found.volumes.to_pylist(), sorted(rows, key=lambda row: row["instance"])


def with_key_of(index: Path, name: str) -> Path:
    other = index.with_name(name)
    (other / "private").mkdir(parents=True)
    shutil.copy(index / "private" / "key", other / "private" / "key")
    return other


@pytest.fixture
def hospital(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scanning, "SHARD", (6, 6))
    for number in range(4):
        write_series(archive / str(number), made_volume((6, 5, 30), number), made_affine(), patient=str(number))
    shutil.make_archive(str(archive / "packed"), "zip", archive / "0")
    (archive / "notes.txt").write_text("no image " * 50)
    return archive


def test_any_executor_gives_the_same_index_and_stays_open(hospital: Path, tmp_path: Path) -> None:
    build_index([hospital], tmp_path / "one", workers=1)
    other = with_key_of(tmp_path / "one", "other")
    with ThreadPoolExecutor(1) as executor:
        build_index([hospital], other, executor=executor)
        assert executor.submit(int).result() == 0
    assert tables(other) == tables(tmp_path / "one")


def test_a_cluster_of_which_a_worker_is_killed_gives_what_one_process_gives(
    hospital: Path, tmp_path: Path, scheduler: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    build_index([hospital], tmp_path / "one", workers=1)
    other = with_key_of(tmp_path / "one", "other")
    address, workers = scheduler
    done: list[int] = []

    def kill(count: int, total: int | None) -> None:
        done.append(count)
        if len(done) == 4:
            os.kill(workers[0].pid, signal.SIGKILL)

    with cluster(address) as executor:
        executor._client.wait_for_workers(2, timeout=60)  # type: ignore[attr-defined]
        build_index([hospital], other, executor=executor, progress=kill)
    assert workers[0].wait(10) == -signal.SIGKILL and workers[1].poll() is None
    assert tables(other) == tables(tmp_path / "one")


def test_a_cluster_that_is_not_there_is_one_message() -> None:
    pytest.importorskip("distributed", reason="the package distributed is not installed (medssl[cluster])")
    with pytest.raises(ArchiveError, match="no Dask scheduler answers at tcp://127.0.0.1:9"), cluster("tcp://127.0.0.1:9", timeout=1):
        pass
