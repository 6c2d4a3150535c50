"""Fixtures for all rooms: the real images beside the checkout, and no connection to anywhere but this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from forking import Forks

from medssl.cli.threads import wait_asleep

wait_asleep()  # before any test loads torch: beside other jobs the tests are several times faster

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real images are not at {SHARED}; this test has a twin on made data")
    return SHARED


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts programs that have imported medssl, torch and MONAI already."""
    with TemporaryDirectory() as folder:  # with a short name, as sockets need it
        started = Forks(Path(folder))
        yield started
        started.close()


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The address of a Dask scheduler on loopback, and its two workers."""
    pytest.importorskip("distributed", reason="the package distributed is not installed (medssl[cluster])")
    file = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    given = ["--host", "127.0.0.1", "--no-dashboard"]
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", *given, "--port", "0", "--scheduler-file", str(file)]
    started = [subprocess.Popen(command, **quiet)]  # type: ignore[call-overload]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), *given, "--no-nanny", "--nthreads", "1"]
    started += [subprocess.Popen(worker, **quiet) for _ in range(2)]  # type: ignore[call-overload]
    for _ in range(600):
        if file.exists() and file.stat().st_size:
            break
        time.sleep(0.1)
    yield json.loads(file.read_text())["address"], started[1:]
    for one in reversed(started):
        one.kill()
        one.wait()


@pytest.fixture(params=[True, False], ids=["bf16 units", "no bf16 units"])
def bf16_units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The test runs twice: on a processor that says that it has units for bf16, and on one that says that it has none."""
    has = bool(request.param)
    monkeypatch.setattr("medssl.train.device.native_bf16", lambda _: has)
    return has


def pytest_runtest_setup() -> None:
    from pytest_socket import socket_allow_hosts

    socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)
