"""What users install: the wheels, not the checkout."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from medssl.plugins import KNOWN_PACKAGES


def test_wheels_install_into_a_fresh_environment_and_list_their_plugins(wheels: dict[str, Path], environment: Any) -> None:
    environment.install(*wheels.values())
    where = environment.run("python", "-c", "import medssl; print(medssl.__file__)")
    assert str(environment.folder) in where
    listed = json.loads(environment.run("medssl", "plugins", "list", "--json"))
    packages = {row["name"]: row["package"] for row in listed["plugins"]}
    assert packages == KNOWN_PACKAGES
    assert listed["broken"] == []


def test_every_wheel_carries_its_licence_and_types(wheels: dict[str, Path]) -> None:
    for name, wheel in wheels.items():
        files = zipfile.ZipFile(wheel).namelist()
        assert any(file.endswith("LICENSE") for file in files), name
        assert any(file.endswith("py.typed") for file in files), name
        assert not any("test" in Path(file).parts for file in files), name
