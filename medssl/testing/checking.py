"""The contract suite on an installed plugin: what holds, and what does not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from uuid import uuid4

import pytest

from medssl.plugins import Plugins
from medssl.testing.losses import ConsistencyLossContract
from medssl.testing.tasks import PretextTaskContract

_FILE = """
from medssl.testing.checking import contract_of

TestContract = contract_of({name!r})
"""


@dataclass(frozen=True)
class Checked:
    """One check of the contract."""

    check: str
    """What it looks at, in the words of its name: "crops are left as they were (3D)"."""
    outcome: Literal["holds", "does not hold", "left out"]
    why: str = ""
    """Where it does not hold or is left out."""

    def document(self) -> dict[str, str]:
        """As JSON."""
        return {"check": self.check, "outcome": self.outcome, "why": self.why}


def contract_of(name: str) -> type[Any]:
    """The suite of the installed task or loss `name`, as a test class; raises `UsageError` where there is none."""
    kind, cls, _ = Plugins.load().offer(name)
    if kind == "pretext task":
        return type("Contract", (PretextTaskContract,), {"task": cls})
    return type("Contract", (ConsistencyLossContract,), {"loss": cls})


def check_plugin(name: str) -> list[Checked]:
    """Every check of the contract on the installed task or loss `name`, as `PretextTaskContract` and `ConsistencyLossContract` make it."""
    contract_of(name)
    results = _Results()
    with TemporaryDirectory() as folder:
        # A module is imported once by its name, whatever folder it lies in.
        file = Path(folder) / f"test_contract_{uuid4().hex}.py"
        file.write_text(_FILE.format(name=name))
        apart = ["-p", "no:terminal", "-p", "no:cacheprovider", "--noconftest", "-c", os.devnull, "--rootdir", folder]
        pytest.main([*apart, "--override-ini", "addopts=", "--import-mode=importlib", str(file)], plugins=[results])
    return results.found


class _Results:
    """A pytest plugin that keeps how each test ended."""

    def __init__(self) -> None:
        self.found: list[Checked] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        outcome: dict[str, Literal["holds", "does not hold", "left out"]] = {"passed": "holds", "skipped": "left out"}
        self.found.append(Checked(_words(report.nodeid), outcome.get(report.outcome, "does not hold"), _why(report)))


def _words(node: str) -> str:
    """`...::test_the_draw_alone_decides[3]` -> "the draw alone decides (3D)"."""
    name, _, case = node.rpartition("::")[2].removeprefix("test_").partition("[")
    case = case.removesuffix("]")
    return name.replace("_", " ") + (f" ({case}D)" if case in ("2", "3") else f" ({case})" if case else "")


def _why(report: pytest.TestReport) -> str:
    if report.passed:
        return ""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    message = str(crash.message if crash is not None else report.longrepr)
    return message.partition("\n")[0].removeprefix("AssertionError: ")
