"""The story and the MONAI scripts on the lowest versions that pyproject.toml allows, and on the newest, for each Python found.

`uv` asks the package registry. Elsewhere than on Linux, and with `UV_TORCH_BACKEND=cpu` everywhere, torch comes without CUDA.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from uv import find_uv_bin

ROOT = Path(__file__).resolve().parents[2]
MONAI_PAGE = "tests/docs/test_docs.py::test_every_block_of_the_page_runs[for-monai-users.md]"
RUN = ["tests/test_story.py", "tests/test_command_line.py", "tests/archive", "tests/monai_bridge", MONAI_PAGE]
"""All the way, the command line's own framework, everything that reads pixels, and the six scripts for MONAI users."""


def uv(*words: str | Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run uv; without downloads of Python itself."""
    done = subprocess.run(
        [find_uv_bin(), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
        env={**os.environ, "UV_PYTHON_DOWNLOADS": "never"},
    )
    assert code is None or done.returncode == code, done.stderr
    return done


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
    uv("pip", "install", "--quiet", "--resolution", resolution, "--python", folder / "bin" / "python", *packages)
    # The program, not `python -m pytest`: that would put the checkout before the wheels.
    command = [folder / "bin" / "pytest", "--no-header", "-p", "no:cacheprovider", *RUN]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=1800)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    medssl = subprocess.run(
        [folder / "bin" / "python", "-c", "import medssl; print(medssl.__file__)"], capture_output=True, text=True, cwd=folder
    )
    assert str(folder) in medssl.stdout
