"""The same store whoever makes it: this process, processes of this machine, or a cluster; and whichever of them is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from medssl.archive import Index, Volume, build_index
from medssl.archive.executors import cluster
from medssl.testing.dicom import made_affine, made_volume, write_series
from medssl.volumes import make_store
from medssl.volumes.ingest.writing import KILLED
from medssl.volumes.store.manifest import MANIFEST
from medssl.volumes.store.table import read_table

COUNT = 12


def contents(store: Path) -> dict[str, object]:
    """All that a store holds, but for how its table is cut into files."""
    files = {path.name: path.read_bytes() for path in (store / "volumes").iterdir()}
    assert not list((store / "rows").iterdir()) and not list((store / "unfinished").iterdir())
    return {"files": files, "rows": read_table(store).to_pylist(), "manifest": (store / MANIFEST).read_bytes()}


@pytest.fixture
def index(tmp_path: Path) -> Path:
    for number in range(COUNT):
        write_series(tmp_path / "archive" / str(number), made_volume((20, 18, 12), number), made_affine(), patient=str(number))
    build_index([tmp_path / "archive"], tmp_path / "index", workers=1)
    return tmp_path / "index"


@pytest.fixture
def alone(index: Path, tmp_path: Path) -> dict[str, object]:
    """What one process makes of the index."""
    assert make_store([index], tmp_path / "alone", spacing=1.5, workers=1).volumes == COUNT
    return contents(tmp_path / "alone")


def test_one_path_is_as_good_as_a_list_of_one(index: Path, tmp_path: Path) -> None:
    summary = build_index(tmp_path / "archive", tmp_path / "again", workers=1)
    assert len(summary.volumes) == COUNT
    assert make_store(str(index), tmp_path / "store", spacing=6.0, workers=1).volumes == COUNT


@pytest.mark.parametrize("given", ["processes", "executor"])
def test_any_workers_make_the_same_store(index: Path, alone: dict[str, object], tmp_path: Path, given: str) -> None:
    if given == "processes":
        make_store([index], tmp_path / "store", spacing=1.5, workers=3)
    else:
        with ThreadPoolExecutor(2) as executor:
            make_store([index], tmp_path / "store", spacing=1.5, executor=executor)
            assert executor.submit(int).result() == 0  # it stays open
    assert contents(tmp_path / "store") == alone


def test_volumes_are_made_in_other_processes_which_open_an_index_once(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "opened"

    def noted(*given: Any, real: Callable[..., None] = Index.__init__) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        real(*given)

    monkeypatch.setattr(Index, "__init__", noted)
    make_store([index], tmp_path / "store", workers=2)
    opened = log.read_text().split()
    assert len(opened) == len(set(opened)) and 2 <= len(opened) <= 3 and opened[0] == str(os.getpid())


@pytest.mark.parametrize("times", [1, 100])
def test_a_volume_that_kills_its_worker_costs_itself_alone(
    index: Path, alone: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """And not even that where it was an accident."""
    bad, read = Index(index).volumes()[5].volume, Index.read

    def deadly(self: Index, volume: str, frames: Any = None) -> Volume:
        if volume == bad and len(list(tmp_path.glob("death-*"))) < times:
            (tmp_path / f"death-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, volume, frames)

    monkeypatch.setattr(Index, "read", deadly)
    summary = make_store([index], tmp_path / "store", spacing=1.5, workers=2)
    if times > 1:
        assert summary.left_out == {bad: f"cannot be read: {KILLED}"} and summary.volumes == COUNT - 1
        monkeypatch.setattr(Index, "read", read)
        assert make_store([index], tmp_path / "store", spacing=1.5, workers=2).added == 1
    assert contents(tmp_path / "store") == alone


def test_a_cluster_of_which_a_worker_is_killed_makes_what_one_process_makes(
    index: Path,
    alone: dict[str, object],
    tmp_path: Path,
    scheduler: tuple[str, list[subprocess.Popen[bytes]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its workers stand in another folder, so that relative paths would lead them elsewhere."""
    address, workers = scheduler

    def kill(done: int, total: int | None) -> None:
        if done == 3:
            os.kill(workers[0].pid, signal.SIGKILL)

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with cluster(address) as executor:
        executor._client.wait_for_workers(2, timeout=60)  # type: ignore[attr-defined]
        summary = make_store(["../index"], "../store", spacing=1.5, executor=executor, progress=kill)
    assert workers[0].wait(10) == -signal.SIGKILL and workers[1].poll() is None
    assert (summary.volumes, summary.left_out) == (COUNT, {})
    assert contents(tmp_path / "store") == alone


def test_the_command_takes_a_cluster(index: Path, alone: dict[str, object], tmp_path: Path, scheduler: tuple[str, Any]) -> None:
    command = [
        sys.executable,
        "-m",
        "medssl",
        "store",
        str(index),
        "--out",
        str(tmp_path / "store"),
        "--min-slices",
        "1",
        "--spacing",
        "1.5",
    ]
    subprocess.run([*command, "--dask", scheduler[0]], check=True, capture_output=True, timeout=120)
    assert contents(tmp_path / "store") == alone


def of_this_ingest(store: Path) -> list[str]:
    """The processes that were started to make it."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [line.parent.name] if str(store).encode() in line.read_bytes() else []
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are found in /proc")
def test_an_ingest_that_is_killed_leaves_no_process_and_goes_on(index: Path, alone: dict[str, object], tmp_path: Path) -> None:
    store = tmp_path / "store"
    slow = (
        "import sys, time\nfrom medssl.archive import Index\nfrom medssl.volumes import make_store\nread = Index.read\n"
        "Index.read = lambda *given: time.sleep(0.3) or read(*given)\nmake_store([sys.argv[1]], sys.argv[2], spacing=1.5, workers=2)"
    )
    child = subprocess.Popen([sys.executable, "-c", slow, str(index), str(store)])
    try:
        _until(lambda: len(list(store.glob("rows/*.json"))) >= 3)
        assert len(of_this_ingest(store)) == 3
    finally:
        child.kill()
        child.wait()
    _until(lambda: not of_this_ingest(store))
    assert not of_this_ingest(store)
    assert 0 < make_store([index], store, spacing=1.5, workers=2).added < COUNT
    assert contents(store) == alone


def _until(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
