"""Servers on loopback: a real Orthanc where it is installed, and a small one whose misbehaviour is ordered."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

sys.path.append(str(Path(__file__).parent))
from fake_pacs import Fake

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def pytest_runtest_setup() -> None:
    from pytest_socket import socket_allow_hosts

    socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of whoever runs the tests, locks of the test's own, short waits."""
    for name in [name for name in os.environ if name.startswith("MEDSSL_DICOMWEB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "locks").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "locks"))
    monkeypatch.setenv("MEDSSL_DICOMWEB_BACKOFF", "0.05")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Orthanc:
    """One server with a folder of its own."""

    def __init__(self, folder: Path, users: dict[str, str] | None = None) -> None:
        self.port, self.folder = free_port(), folder
        self.url = f"http://127.0.0.1:{self.port}"
        self.location = f"dicomweb+{self.url}/dicom-web"
        self._auth = next(iter(users.items())) if users else None
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        config = {
            "Name": "TEST",
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": users is not None,
            "RegisteredUsers": users or {},
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(config))

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(["Orthanc", str(self.folder / "orthanc.json")], stdout=log, stderr=log)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                requests.get(f"{self.url}/system", timeout=5, auth=self._auth).raise_for_status()
                return
            except requests.RequestException:
                assert self._process.poll() is None, (self.folder / "log").read_text(errors="replace")
                time.sleep(0.1)
        raise AssertionError("Orthanc did not start within a minute")

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def upload(self, folder: Path) -> None:
        """Every file that Orthanc takes."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            requests.post(f"{self.url}/instances", data=file.read_bytes(), timeout=60, auth=self._auth)


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Callable[..., Orthanc]]:
    """Starts servers, which end with the test."""
    if shutil.which("Orthanc") is None or not PLUGIN.exists():
        pytest.skip("Orthanc is not installed (apt-get install orthanc orthanc-dicomweb); the small server has twins of these tests")
    started: list[Orthanc] = []

    def start(users: dict[str, str] | None = None) -> Orthanc:
        server = Orthanc(tmp_path / f"orthanc-{len(started)}", users)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.kill()


@pytest.fixture
def fake(archive: Path) -> Iterator[Callable[..., Fake]]:
    """Starts small servers over the files of `archive`, which end with the test."""
    started: list[Fake] = []

    def start(tls: ssl.SSLContext | None = None, **settings: Any) -> Fake:
        server = Fake(archive, **settings)
        server.start(tls)
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    return folder
