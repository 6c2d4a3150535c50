"""A stranger's plugin, in a package of its own: found, used in a run, and blamed when it breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "acme-brighter"
version = "2.5"
dependencies = ["medssl"]
[project.entry-points.medssl]
brighter = "acme_brighter"
[tool.hatch.build.targets.wheel]
packages = ["acme_brighter"]
"""

TASK = '''
"""A stranger's task."""
from pydantic import Field
import medssl
from medssl.config import BaseOptions
from medssl.contracts import DenseHead, PretextBatch, PretextTask


class Brighter(PretextTask):
    """Undo a change of brightness."""

    name = "brighter"
    answer = "values"

    class Options(BaseOptions):
        """Knobs."""

        amount: float = Field(0.5, ge=0, description="Largest change.")

    options: Options

    def head(self):
        return DenseHead(self.network.channels)

    def make(self, crops, draw):
        shift = draw.uniform(*[1] * (crops.images.dim() - 1)) * self.options.amount
        return PretextBatch(crops.images + shift, crops.images)

    def loss(self, prediction, batch):
        BREAK
        return (prediction - batch.target).square().flatten(1).mean(1)


@medssl.hookimpl
def medssl_pretext_tasks():
    return [Brighter]
'''

RUN = """
import sys
import numpy as np, nibabel as nib
from pathlib import Path
import medssl
from medssl.volumes import make_store

folder = Path(sys.argv[1])
images = folder / "images"
images.mkdir()
random = np.random.default_rng(0)
for number in range(3):
    array = random.normal(100, 20, (20, 22, 24)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), images / f"p{number}.nii.gz")
make_store([images], folder / "store")
network = medssl.NetworkSpec(name="SegResNet", spatial_dims=3, in_channels=1, options={"init_filters": 8})
data = {"store": str(folder / "store"), "size": [16, 16, 16], "batch": 2}
run = medssl.pretrain(network, data, tasks=["brighter"], out=folder / "run", steps=2)
print(run.state.step)
"""


@pytest.fixture
def stranger(tmp_path: Path) -> Any:
    """Write the stranger's package, whole or with a line of its loss broken."""

    def write(line: str = "pass", head: str = "") -> Path:
        package = tmp_path / "acme"
        (package / "acme_brighter").mkdir(parents=True, exist_ok=True)
        (package / "pyproject.toml").write_text(PYPROJECT)
        (package / "acme_brighter" / "__init__.py").write_text(head + TASK.replace("BREAK", line))
        return package

    return write


def test_a_strangers_plugin_is_found_and_used_in_a_run(wheels: dict[str, Path], environment: Any, stranger: Any, tmp_path: Path) -> None:
    environment.install(wheels["medssl"], stranger())
    listed = json.loads(environment.run("medssl", "plugins", "list", "--json"))["plugins"]
    assert {
        "name": "brighter",
        "kind": "pretext task",
        "package": "acme-brighter",
        "version": "2.5",
        "what": "Undo a change of brightness.",
    } in listed
    shown = environment.run("medssl", "plugins", "show", "brighter")
    assert "Largest change." in shown
    assert environment.run("python", "-c", RUN, str(tmp_path)).strip().endswith("2")
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["step"] == 2
    assert "brighter" in metrics[-1]


def test_a_plugin_that_fails_in_a_run_is_blamed_by_package_and_version(
    wheels: dict[str, Path], environment: Any, stranger: Any, tmp_path: Path
) -> None:
    environment.install(wheels["medssl"], stranger("raise KeyError('table')"))
    said = environment.run("python", "-c", RUN, str(tmp_path), code=1)
    assert "acme-brighter 2.5" in said
    assert "KeyError: 'table'" in said


@pytest.mark.parametrize(
    ("head", "error"),
    [
        ("import no_such_module_anywhere\n", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("import sys; sys.exit('no licence found')\n", "SystemExit: no licence found"),
    ],
)
def test_a_plugin_that_cannot_be_imported_costs_one_warning_and_nothing_else(
    head: str, error: str, wheels: dict[str, Path], environment: Any, stranger: Any
) -> None:
    environment.install(*wheels.values(), stranger(head=head))
    listed = json.loads(environment.run("medssl", "plugins", "list", "--json"))
    assert "inpainting" in {row["name"] for row in listed["plugins"]}
    assert listed["broken"] == [{"plugin": "brighter", "package": "acme-brighter", "error": error}]
    quiet = json.loads(environment.run("medssl", "plugins", "list", "--json", MEDSSL_DISABLE="brighter"))
    assert quiet["broken"] == []
