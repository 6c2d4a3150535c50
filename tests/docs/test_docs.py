"""The docs are true: every `python` and `sh` block runs, in order, in a folder of its own; blocks with a file name are files.

```python          runs; the blocks of a page share their names, those of a page of scripts within each section alone
```sh              runs with `sh -e`
```yaml run.yaml   is written to run.yaml
```console         is for reading alone (installation, or minutes of work)
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forking import Forks

ROOT = Path(__file__).resolve().parents[2]
OF_SCRIPTS = {"for-monai-users.md"}
"""Pages of which every section is a script of its own."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*) ?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    file: str
    text: str
    line: int
    section: int


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        language, file, body = found.groups()
        line, section = (text.count(mark, 0, found.start()) for mark in ("\n", "\n## "))
        yield Block(language, file.strip(), body, line + 2, section)


def runs(page: Path) -> bool:
    return any(block.language in {"python", "sh"} and not block.file for block in blocks(page))


def prepare(folder: Path) -> None:
    """What pages may assume where they make nothing themselves: a store, an archive and labelled pairs."""
    from medssl.demo import make_scan, write_archive, write_pairs
    from medssl.volumes import make_store

    scans = [make_scan(patient, spacing=5.0) for patient in range(4)]
    write_archive(scans, folder / "archive")
    write_pairs(scans, folder / "labelled")
    make_store([folder / "labelled" / "images"], folder / "store")


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)], ids=lambda page: page.name)
def test_every_block_of_the_page_runs(page: Path, forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "write_archive(" not in page.read_text(encoding="utf-8"):
        prepare(tmp_path)
    names: dict[int, dict[str, Any]] = {}
    path = os.pathsep.join((str(forks.folder), str(Path(sys.executable).parent), os.environ["PATH"]))
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.file:
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            section = block.section if page.name in OF_SCRIPTS else 0
            exec(compile(block.text, where, "exec"), names.setdefault(section, {"__name__": "docs"}))
        elif block.language == "sh":
            done = subprocess.run(["sh", "-ec", block.text], capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False)
            assert done.returncode == 0, f"{where}: {done.stderr}"


def test_links_lead_to_files_that_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_that_the_docs_name_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"`((?:medssl|plugins|tests|docs)/[\w./-]+\.(?:py|md|yaml|toml))`", page.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{page.name}: {target}"


def test_every_dependency_is_justified() -> None:
    import tomllib

    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    for requirement in wanted:
        name = re.split(r"[<>=\[ ]", requirement)[0]
        assert name in text or name.rsplit("-", 1)[-1] in text, name


def test_the_picture_of_the_readme_is_an_image() -> None:
    from PIL import Image

    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+\.png)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert pictures
    for picture in pictures:
        assert np.asarray(Image.open(ROOT / picture)).std() > 10


def test_the_reference_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--reference"]
    made = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "MEDSSL_DISABLE": ""}).stdout
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == made, "run: make docs"


def test_what_the_monai_table_names_is_used_in_tests() -> None:
    page = (ROOT / "docs" / "for-monai-users.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|\n]+ \| ([^|\n]+) \|$", page.partition("## What was run")[2], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"\b(?:[A-Z]\w*[A-Z]\w*|resnet\d+|Dataset|Subset|Trainer)\b", row)} - {"MONAI"}
    places = ("tests/monai_bridge", "tests/networks", "tests/transfer", "tests/volumes", "docs/examples")
    used = "".join(file.read_text(encoding="utf-8") for place in places for file in (ROOT / place).rglob("*.py"))
    assert len(named) > 30
    assert sorted(name for name in named if not re.search(rf"\b{name}\b", used)) == []
