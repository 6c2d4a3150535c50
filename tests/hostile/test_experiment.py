"""The experiment on damaged files, with a small number of them."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "experiments" / "hostile.py"


def test_no_damaged_file_is_a_fault_slow_or_uncounted(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    kinds = ["zip", "tar", "NIfTI", "store", "configuration"]
    assert main(["--count", "40", "--seed", "1", "--only", *kinds]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "FAULT" not in said and "counted" in said and "refused: Damaged" in said


def test_no_checkpoint_that_says_something_else_is_a_fault_or_slow(capsys: pytest.CaptureFixture[str]) -> None:
    assert runpy.run_path(str(SCRIPT))["main"](["--count", "15", "--seed", "1", "--only", "checkpoint"]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "FAULT" not in said and "refused by all" in said and "whole" in said
