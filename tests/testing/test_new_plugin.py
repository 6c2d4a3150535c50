"""`medssl plugins new` writes a package that keeps the contract as it is, and `medssl plugins check` says of any whether it does."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from medssl import hookimpl
from medssl.cli.app import main
from medssl.contracts import PretextBatch
from medssl.errors import PluginError, UsageError
from medssl.learn import build_objective
from medssl.plugins import Plugins
from medssl.testing import PretextTaskContract, make_crops
from medssl.testing.checking import Checked, check_plugin
from medssl.testing.writing import write_plugin

ROOT = Path(__file__).parents[2]


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plugin("some-noise", tmp_path_factory.mktemp("new"))


@pytest.fixture(scope="module")
def module(package: Path) -> ModuleType:
    return load(package / "medssl_some_noise.py")


@pytest.fixture
def offered(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were installed, and beside it tasks that are wrong or that the suite must be told of."""
    noise: Any = module.SomeNoise

    class Leaking(noise):  # type: ignore[misc]
        """Its loss is a mean over the batch."""

        name: ClassVar[str] = "leaking"

        def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
            return super().loss(prediction, batch).mean().expand(len(prediction))

    class Still(noise):  # type: ignore[misc]
        """Draws nothing, and says so."""

        name: ClassVar[str] = "still"
        suite: ClassVar[dict[str, Any]] = {"random": False}

        def make(self, crops: Any, draw: Any) -> PretextBatch:
            return PretextBatch(crops.images, crops.images)

        def trivial(self, batch: PretextBatch) -> Tensor | None:
            return None

    offers = SimpleNamespace(medssl_pretext_tasks=hookimpl(lambda: [noise, Leaking, Still]))
    load_all = Plugins.load
    monkeypatch.setattr("medssl.plugins.Plugins.load", lambda *_, **__: load_all({"mine": offers}))


def outcomes(checks: list[Checked]) -> dict[str, int]:
    return {outcome: sum(one.outcome == outcome for one in checks) for outcome in ("holds", "does not hold")}


def test_the_package_is_whole(package: Path) -> None:
    found = {str(file.relative_to(package)) for file in package.rglob("*") if file.is_file() and "__pycache__" not in str(file)}
    assert found == {"pyproject.toml", "README.md", "medssl_some_noise.py", "tests/test_some_noise.py"}
    assert not any("$" in file.read_text() for file in map(package.joinpath, found))
    assert 'some_noise = "medssl_some_noise"' in (package / "pyproject.toml").read_text()
    assert len([line for line in (package / "medssl_some_noise.py").read_text().splitlines() if line.strip()]) <= 45


@pytest.mark.usefixtures("offered")
def test_it_keeps_the_contract_as_it_is() -> None:
    checks = check_plugin("some-noise")
    assert outcomes(checks)["does not hold"] == 0
    assert outcomes(checks)["holds"] > 30
    assert "the draw alone decides (3D)" in {one.check for one in checks}


def test_its_own_test_is_the_contract(package: Path, module: ModuleType) -> None:
    assert issubclass(load(package / "tests" / "test_some_noise.py").TestSomeNoise, PretextTaskContract)


def test_the_page_on_writing_one_shows_it(package: Path) -> None:
    page = (ROOT / "docs" / "write-a-plugin.md").read_text()
    shown = next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class MyDenoising(" in block)
    written = (package / "medssl_some_noise.py").read_text().replace("SomeNoise", "MyDenoising").replace("some-noise", "my-denoising")
    assert set(filter(str.strip, shown.splitlines())) <= set(written.splitlines())


@pytest.mark.parametrize("dims", [2, 3])
def test_it_learns_from_a_configuration(dims: int, module: ModuleType) -> None:
    plugins = Plugins.load({"noise": module})
    network = {"name": "UNet", "spatial_dims": dims, "options": {"channels": [4, 8, 8], "strides": [2, 2]}}
    objective = build_objective(network, [{"name": "some-noise", "amount": 2.0}], plugins=plugins)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.01)
    losses = []
    for step in range(12):
        loss = objective.run(make_crops(3, (16,) * dims), step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < sum(losses[:3])


def test_ruff_has_nothing_to_say_of_it(package: Path) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--select", "E,F,B", "--line-length", "140", str(package / "medssl_some_noise.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=package)
    assert done.returncode == 0, done.stdout


@pytest.mark.usefixtures("offered")
def test_what_does_not_hold_is_named_and_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plugins", "check", "leaking", "--json"])
    assert ended.value.code == 1
    told = capsys.readouterr()
    checks = [Checked(**one) for one in json.loads(told.out)["plugins"]["leaking"]]
    broken = {one.check: one.why for one in checks if one.outcome == "does not hold"}
    assert "a sample does not depend on its neighbours (2D)" in broken
    assert "say so by `compares`" in broken["a sample does not depend on its neighbours (2D)"]
    assert "leaking:" in told.err


@pytest.mark.usefixtures("offered")
def test_what_the_suite_cannot_know_the_class_says() -> None:
    checks = {one.check: one for one in check_plugin("still")}
    assert checks["every sample gets its own question (2D)"].why == "this task draws nothing"
    assert all(one.outcome != "does not hold" for one in checks.values())


def test_a_class_that_says_what_the_suite_does_not_have_is_refused(module: ModuleType) -> None:
    noise: Any = module.SomeNoise
    wrong = type("Wrong", (noise,), {"suite": {"chanels": 3}})
    with pytest.raises(PluginError, match="Did you mean 'channels'"):
        type("TestWrong", (PretextTaskContract,), {"task": wrong})


@pytest.mark.parametrize("name", ["Noise", "two words", "-x", "a--b", "x" * 60, "inpainting", "../up"])
def test_a_name_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        write_plugin(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    write_plugin("once", tmp_path)
    with pytest.raises(UsageError, match="is there already"):
        write_plugin("once", tmp_path)


def test_a_name_that_nobody_offers_is_one_message() -> None:
    with pytest.raises(UsageError, match="Did you mean 'inpainting'"):
        check_plugin("inpaintng")
