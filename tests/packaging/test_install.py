"""The line of the README that installs medssl brings all that its demo and its tutorial use."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest

from medssl.demo import story
from medssl.plugins import KNOWN_PACKAGES

ROOT = Path(__file__).resolve().parents[2]
LINES = re.findall(r"^pip install (.*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)


def packages(line: str) -> list[str]:
    return [word for word in shlex.split(line) if word.startswith("medssl")]


def test_the_line_names_every_plugin_that_demo_and_tutorial_use() -> None:
    used = Path(story.__file__).read_text(encoding="utf-8") + (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    needed = {package for name, package in KNOWN_PACKAGES.items() if re.search(rf'name"?: "?{name}\b', used)}
    assert len(needed) > 1
    assert len(LINES) == 2, "as it is, and with torch's CPU build"
    for line in LINES:
        assert needed | {"medssl[demo]"} <= set(packages(line))


def test_plugins_and_the_page_on_writing_one_declare_what_their_tests_need() -> None:
    page = (ROOT / "docs" / "write-a-plugin.md").read_text(encoding="utf-8")
    projects = [*ROOT.glob("plugins/*/pyproject.toml"), ROOT / "medssl/testing/new_plugin/pyproject.toml.txt"]
    assert len(projects) >= 4
    for text in (page, *(project.read_text(encoding="utf-8") for project in projects)):
        assert re.search(r'^test = \["medssl\[testing\]', text, re.M)


def test_without_pytest_the_suites_say_what_to_install_and_all_else_works() -> None:
    code = (
        "import sys\nsys.modules['pytest'] = None\nimport medssl.testing.dicom\nfrom medssl.testing import make_crops\n"
        "from medssl.errors import MissingInput\ntry:\n    from medssl.testing import NAME\nexcept MissingInput as error:\n    print(error)"
    )
    for name in ("PretextTaskContract", "ConsistencyLossContract"):
        said = subprocess.run([sys.executable, "-c", code.replace("NAME", name)], capture_output=True, text=True, check=True).stdout
        assert said == f"medssl.testing.{name} needs pytest. Install it with: pip install 'medssl[testing]'\n"


@pytest.mark.slow
def test_after_it_demo_and_tutorial_run(wheels: Mapping[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet"]
    try:
        # The build of torch that is here: another may be gigabytes.
        (tmp_path / "torch.txt").write_text(f"torch=={metadata.version('torch').partition('+')[0]}\n")
        found = ["--find-links", str(wheels["medssl"].parent), "--constraint", str(tmp_path / "torch.txt")]
        subprocess.run([*pip, *found, *packages(LINES[0])], check=True, timeout=1800)
        demo = [
            str(folder / "bin" / "medssl"),
            "demo",
            "--steps",
            "2",
            "--finetune-steps",
            "2",
            "--patients",
            "8",
            "--out",
            str(tmp_path / "demo"),
        ]
        done = subprocess.run(demo, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=1800)
        assert done.returncode == 0, done.stderr
        # pytest runs the page's blocks; medssl itself must not need it. The program, not `python -m pytest`: the wheels, not the checkout.
        subprocess.run([*pip, "pytest", "pytest-socket"], check=True, timeout=600)
        command = [str(folder / "bin" / "pytest"), "-p", "no:cacheprovider", "-k", "tutorial", "tests/docs/test_docs.py"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=1800)
        assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-8000:]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
