"""medssl is right on every staged case: exactly the volumes that are there, or a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from staged.cases import CASES
from staged.readers import medssl, verdict


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 80


@pytest.mark.parametrize("name", CASES)
def test_it_comes_out_right(name: str, tmp_path: Path) -> None:
    wanted = CASES[name](tmp_path / "archive")
    assert verdict(medssl, tmp_path / "archive", tmp_path / "scratch", wanted) == "right"
