"""The experiment on damaged files, with a small number of them."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from medssl.archive import Reason, build_index, limits

SCRIPT = Path(__file__).parents[2] / "docs" / "experiments" / "hostile.py"


@pytest.fixture(autouse=True)
def beside_its_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the script is started by its path."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))


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


def test_mutated_dicom_ends_the_same_by_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert runpy.run_path(str(SCRIPT))["main"](["--count", "2000", "--seed", "1", "--only", "DICOM"]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_20_000_mutated_dicom_files_end_the_same_by_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert runpy.run_path(str(SCRIPT))["main"](["--count", "20000", "--seed", "2", "--only", "DICOM"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_workers_that_read_mutated_files_stay_within_512_mb(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is accounted for, and none for having needed more."""
    mutated = runpy.run_path(str(SCRIPT))["mutated_dicom"]
    (tmp_path / "archive").mkdir()
    for number in range(count):
        (tmp_path / "archive" / f"{number:05d}").write_bytes(mutated(np.random.default_rng([3, number])))
    monkeypatch.setattr(limits, "MEMORY", 2**29)
    summary = build_index([tmp_path / "archive"], tmp_path / "index", workers=2)
    assert summary.files == count
    # A file of which only some slices are sound counts in both.
    assert count <= sum(one.instances for one in summary.volumes) + sum(summary.rejected.values()) <= count + 20
    assert not {Reason.KILLED, Reason.TOO_LARGE, Reason.TOO_LONG} & set(summary.rejected)
