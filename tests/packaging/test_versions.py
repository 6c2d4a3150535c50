"""The story and the MONAI scripts on the lowest versions that pyproject.toml allows, and on the newest, for each Python found.

`uv` asks the package registries that pip is told of. Elsewhere than on Linux torch comes without CUDA, and on Linux with
`UV_TORCH_BACKEND=cpu`, where PyTorch's own registry can be reached.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from uv import find_uv_bin

ROOT = Path(__file__).resolve().parents[2]
MONAI_PAGE = "tests/docs/test_docs.py::test_every_block_of_the_page_runs[for-monai-users.md]"
RUN = ["tests/test_story.py", "tests/test_command_line.py", "tests/archive", "tests/monai_bridge", MONAI_PAGE]
"""All the way, the command line's own framework, everything that reads pixels, and the six scripts for MONAI users."""
LOWEST_MONAI = re.findall(r'"monai>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[0]


EXTRAS = ("cluster", "demo", "labels", "testing")
"""What users install; the tests' own tools are the newest that fit."""
AS_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
}


def as_pip_is_told(listed: str) -> dict[str, str]:
    """What `pip config list` says of registries, mirrors, folders of wheels and limits, as uv's environment: uv reads no pip.conf."""
    found = {
        name: " ".join(ast.literal_eval(value).split()) for name, value in re.findall(r"^\S+\.([a-z-]+)=('.*')$", listed, re.MULTILINE)
    }
    told = {ours: found[name] for name, ours in AS_UV.items() if name in found}
    if "UV_FIND_LINKS" in told:
        told["UV_FIND_LINKS"] = told["UV_FIND_LINKS"].replace(" ", ",")
    return told | ({"UV_INDEX_STRATEGY": "unsafe-best-match"} if "UV_INDEX" in told else {})


def uv(*words: str | Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run uv, which asks where pip would; without downloads of Python itself."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    done = subprocess.run(
        [find_uv_bin(), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
        env={**as_pip_is_told(listed), **os.environ, "UV_PYTHON_DOWNLOADS": "never"},
    )
    assert code is None or done.returncode == code, done.stderr
    return done


def test_uv_asks_where_pip_asks() -> None:
    listed = ":env:.cert='/etc/ca.crt'\nglobal.extra-index-url='https://a/simple\\nhttps://b/simple'\nglobal.find-links='/wheels /more'\n"
    assert as_pip_is_told(listed + "global.index-url='https://mirror/simple'\nglobal.timeout='9'\n") == {
        "SSL_CERT_FILE": "/etc/ca.crt",
        "UV_DEFAULT_INDEX": "https://mirror/simple",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INDEX": "https://a/simple https://b/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert as_pip_is_told("") == {}


def direct() -> list[str]:
    """The requirements of core and plugins: the lowest versions are looked for of what is named directly, not of what a wheel needs."""
    projects = [ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/medssl-*/pyproject.toml"))]
    return [*(word for project in projects for word in ("-r", str(project))), *(word for extra in EXTRAS for word in ("--extra", extra))]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Removed at once: an environment with CUDA holds 6 GB, and pytest keeps the folders of three runs."""
    yield tmp_path / "environment"
    shutil.rmtree(tmp_path / "environment", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resolution", "python"), [("lowest-direct", "3.11"), ("highest", "3.11"), ("highest", "3.12"), ("highest", "3.13")]
)
def test_the_story_runs_on(resolution: str, python: str, folder: Path, wheels: Mapping[str, Path]) -> None:
    if uv("python", "find", python, code=None).returncode:
        pytest.skip(f"no Python {python} in PATH")
    uv("venv", "--quiet", "--python", python, folder)
    packages = [f"{name}{'[demo,test]' if name == 'medssl' else ''} @ {wheel.as_uri()}" for name, wheel in wheels.items()]
    uv("pip", "install", "--quiet", "--resolution", resolution, "--python", folder / "bin" / "python", *direct(), *packages)
    monai = uv("pip", "show", "--python", folder / "bin" / "python", "monai").stdout
    assert (f"Version: {LOWEST_MONAI}" in monai) == (resolution == "lowest-direct"), monai
    # The program, not `python -m pytest`: that would put the checkout before the wheels.
    command = [folder / "bin" / "pytest", "--no-header", "-p", "no:cacheprovider", *RUN]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=1800)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    medssl = subprocess.run(
        [folder / "bin" / "python", "-c", "import medssl; print(medssl.__file__)"], capture_output=True, text=True, cwd=folder
    )
    assert str(folder) in medssl.stdout
