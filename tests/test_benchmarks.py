"""What benchmarks share: a row's ratio and bar, the JSON file, the cost of a command, runs in turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from benchmarks import archive
from benchmarks.measure import Spent, alternately, busy, call_cost, command_cost
from benchmarks.report import Row, publish

sys.path.pop(0)


def test_a_row_holds_where_the_ratio_is_at_most_the_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row("a step", 1.0, 2.0, "a loop", "ms", 0.5), Row("a run", 3.0, 2.0, "another run", "s", 1.1)]
    file = publish("some", rows, tmp_path / "bench")
    assert file == tmp_path / "bench/some.json"
    first, second = json.loads(file.read_text())
    assert first == {
        "what": "a step",
        "ours": 1.0,
        "peer": 2.0,
        "peer_name": "a loop",
        "unit": "ms",
        "ratio": 0.5,
        "bar": 0.5,
        "holds": True,
    }
    assert (second["ratio"], second["holds"]) == (1.5, False)
    printed = capsys.readouterr().out
    assert "another run" in printed
    assert "NO" in printed


def test_cost_of_a_command_is_that_of_its_process() -> None:
    code = "import time\nwhile time.process_time() < 0.3: pass"
    spent = command_cost([sys.executable, "-c", code], os.environ)
    assert spent.cpu >= 0.3
    assert spent.wall >= 0.3
    with pytest.raises(subprocess.CalledProcessError):
        command_cost([sys.executable, "-c", "raise SystemExit(3)"], os.environ)


def test_runs_are_taken_in_turns_and_their_median_counts() -> None:
    order: list[str] = []

    def run(name: str) -> Spent:
        order.append(name)
        return Spent(float(len(order)), float(len(order)))

    found = alternately({"ours": lambda: run("ours"), "peer": lambda: run("peer")}, 3)
    assert order == ["ours", "peer"] * 3
    assert (found["ours"].cpu, found["peer"].cpu) == (3.0, 4.0)
    assert call_cost(lambda: sum(range(10))).wall >= 0


def test_busy_loops_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1])
    with busy(2):
        assert [loop.poll() for loop in started] == [None, None]
    assert all(loop.poll() is not None for loop in started)


def test_archive_costs_no_more_than_twice_what_its_bars_allow(tmp_path: Path) -> None:
    """In little: a machine that does other things may halve a ratio, a way that is not taken any more loses more."""
    rows = [archive.header_row("a header", archive.made_archive(tmp_path / "full", 2, archive.as_scanner), 3)]
    sides = (512, 512, 24)
    rows += archive.read_rows(archive.written(tmp_path / "plain", archive.made_ct(sides)), tmp_path / "index", 3)
    assert [(row.what, row.peer_name, row.ratio) for row in rows if row.ratio > 2 * row.bar] == []
