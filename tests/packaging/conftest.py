"""A fresh environment that holds our wheels and, behind them, the third-party packages of the running one."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Environment:
    """A virtual environment of its own."""

    folder: Path

    def run(self, *words: str, code: int = 0, **environ: str) -> str:
        """Run one of its programs; its standard output, and its standard error where `code` is not 0."""
        command = [str(self.folder / "bin" / words[0]), *words[1:]]
        clean = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "OMP_NUM_THREADS": "1", **environ}
        done = subprocess.run(command, capture_output=True, text=True, env=clean, cwd=self.folder, timeout=600, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    def install(self, *packages: Path | str) -> None:
        """pip install without asking any registry; what it depends on is there already."""
        self.run("python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", *map(str, packages))


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of the core and of each plugin, by project name."""
    out = tmp_path_factory.mktemp("wheels")
    for project in [ROOT, *sorted(ROOT.glob("plugins/medssl-*"))]:
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(project)]
        done = subprocess.run(build, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return {wheel.name.split("-")[0].replace("_", "-"): wheel for wheel in out.glob("*.whl")}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """An environment where torch, MONAI and the like can be imported, but not this checkout."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=True, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    # A path in a .pth file is searched, but the .pth files inside it, which is where the checkout is named, are not read.
    (site / "third-party.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return Environment(folder)
