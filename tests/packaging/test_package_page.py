"""What a package index shows and serves: the page made of the README, and the source distribution."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping
from email import message_from_bytes
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Source"]


def page(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as files:
        return message_from_bytes(files.read(next(name for name in files.namelist() if name.endswith("dist-info/METADATA"))))


def test_links_and_pictures_of_every_page_lead_somewhere(wheels: Mapping[str, Path]) -> None:
    for name, wheel in wheels.items():
        text = page(wheel).get_payload()
        targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
        assert targets and all(target.startswith("https://") for target in targets), name
        for target in targets:
            if target.startswith(SOURCE):
                kind, _, path = target.removeprefix(SOURCE + "/").partition("/v0.1.0/")
                assert (ROOT / path).exists() and kind == ("raw" if path.endswith(".png") else "blob"), target
    assert f"]({SOURCE}/raw/v0.1.0/docs/pictures/inpainting.png)" in page(wheels["medssl"]).get_payload()


def test_every_page_says_where_the_sources_are_and_which_pythons_it_is_for(wheels: Mapping[str, Path]) -> None:
    for wheel in wheels.values():
        shown = page(wheel)
        urls = dict(line.split(", ") for line in shown.get_all("Project-URL") or ())
        assert {"Source", "Documentation", "Changelog", "Issues"} == set(urls)
        assert all(url.startswith(SOURCE) for url in urls.values())
        pythons = [line for line in shown.get_all("Classifier") or () if re.search(r"Python :: 3\.\d+$", line)]
        assert [line.rpartition(" :: ")[2] for line in pythons] == ["3.11", "3.12", "3.13"]


def test_source_distributions_hold_tests_and_docs(tmp_path: Path) -> None:
    for project, wanted in ((ROOT, {"medssl", "tests", "docs", "plugins"}), (ROOT / "plugins" / "medssl-inpainting", {"tests"})):
        command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(project)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        (made,) = tmp_path.glob(f"{project.name.replace('-', '_')}-0*.tar.gz") if project != ROOT else tmp_path.glob("medssl-0*.tar.gz")
        with tarfile.open(made) as files:
            names = {name.split("/")[1] for name in files.getnames() if "/" in name}
        assert wanted | {"README.md", "LICENSE", "pyproject.toml"} <= names
        assert not names & {".venv", "build", "dist", ".git"}
