"""Plugin packages live on the public surface: no import of theirs reaches into a private module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import medssl

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted([*ROOT.glob("plugins/medssl-*/medssl_*"), ROOT / "medssl/testing/new_plugin/module.py.txt"])
MODULES = {f"medssl.{name}" for name in ("contracts", "config", "errors", "augment", "learn.ops", "run", "testing")}
"""Every public name of these may be used."""
NAMES = {
    "medssl": set(medssl.__all__),
    "medssl.archive": {"ArchiveSource", "Stat", "StatSource", "StartSource", "HeaderSource", "FrameSource", "wanted_elements"},
}
"""Of these, some names only."""


def forbidden(code: str) -> Iterator[str]:
    """What of medssl this code imports and may not, under type checking and within functions too."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if _ours(name.name) and name.name not in {"medssl", *MODULES})
        elif isinstance(node, ast.ImportFrom) and not node.level and _ours(node.module or ""):
            yield from (f"{node.module}.{name.name}" for name in node.names if not _public(node.module or "", name.name))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "medssl":
            inner = {module.split(".")[1] for module in MODULES}
            if node.attr not in NAMES["medssl"] | inner:
                yield f"medssl.{node.attr}"


def _ours(module: str) -> bool:
    return module.partition(".")[0] == "medssl"


def _public(module: str, name: str) -> bool:
    return (module in MODULES and name[0] not in "_*") or name in NAMES.get(module, ()) or f"{module}.{name}" in MODULES


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.stem)
def test_a_plugin_never_reaches_into_private_modules(package: Path) -> None:
    files = [package] if package.is_file() else sorted(package.rglob("*.py"))
    assert files
    codes = {file.name: file.read_text(encoding="utf-8").replace("$cls", "Task") for file in files}
    assert {name: found for name, code in codes.items() if (found := list(forbidden(code)))} == {}


def test_every_plugin_of_this_repository_is_looked_at() -> None:
    assert {path.parent for path in PACKAGES} >= {path.parent for path in ROOT.glob("plugins/*/pyproject.toml")}


@pytest.mark.parametrize(
    "line",
    [
        "import medssl.learn.objective",
        "from medssl.learn.objective import Objective",
        "from medssl.learn import objective",
        "from medssl import plugins",
        "from medssl.archive import Index",
        "from medssl.archive.sources import FolderSource",
        "from medssl.augment.intensity import add_noise",
        "from medssl.contracts import _private",
        "from medssl.contracts import *",
        "if TYPE_CHECKING:\n    from medssl.train.training import Training",
        "def late():\n    from medssl.train import loop",
        "import medssl\nmedssl.plugins.Plugins",
    ],
)
def test_a_private_import_is_found(line: str) -> None:
    assert list(forbidden(line))


def test_what_is_public_passes() -> None:
    assert not list(
        forbidden(
            "import medssl, torch, medssl.contracts\nfrom medssl import hookimpl, contracts\nfrom medssl.learn import ops\n"
            "from medssl.learn.ops import cut\nfrom medssl.archive import ArchiveSource\nfrom . import own\nmedssl.pretrain\n"
            "from medssl_inpainting.masks import x"
        )
    )
