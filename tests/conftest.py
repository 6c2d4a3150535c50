"""Fixtures for all rooms: the real images beside the checkout, and no connection to anywhere but this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real images are not at {SHARED}; this test has a twin on made data")
    return SHARED


def pytest_runtest_setup() -> None:
    from pytest_socket import socket_allow_hosts

    socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)
