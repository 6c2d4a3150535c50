"""Rows of `does_it_learn.py` as tables of a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

BEGIN, END = "<!-- rows: begin -->", "<!-- rows: end -->"
Rows = Sequence[dict[str, Any]]
HEADINGS = {"task": "Pretext tasks", "loss": "Consistency losses", "several tasks": "Several tasks at once"}


def write_tables(rows: Rows, page: Path) -> None:
    """Put the tables between the marks of the page."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{tables(rows)}\n{END}{after}", encoding="utf-8")


def tables(rows: Rows) -> str:
    """One table a kind."""
    found = []
    for kind, heading in HEADINGS.items():
        names = list(dict.fromkeys(row["subject"] for row in rows if row["kind"] == kind))
        lines = [_line([row for row in rows if row["subject"] == name], rows) for name in names]
        head = ["with", "set", "steps, CPU s", "seeds", "its own metric", "reached", "without learning", "clearly better"]
        head += ["rank (random weights)", "Dice, 1 label (random weights)", "Dice, 4 labels (random weights)"]
        if lines:
            found.append("\n".join([f"### {heading}", "", _cells(head), _cells(["---"] * len(head)), *lines, ""]))
    return "\n".join(found)


def _line(own: Rows, rows: Rows) -> str:
    first = own[0]
    seeds = {row["seed"] for row in own}
    random = [row for row in rows if row["subject"] == first["random"] and row["seed"] in seeds]
    metrics = list(zip(*[row["metrics"] for row in own], strict=True))
    several = len(metrics) > 1
    names = [f"{one[0]['name']}{' of ' + one[0]['term'] if several else ''}" for one in metrics]
    trivial = [f"{_number([m['trivial'] for m in one])} ({one[0]['trivial_is']})" for one in metrics]
    beats = [f"{sum(m['beats'] for m in one)} of {len(one)}" for one in metrics]
    cells = [first["subject"], first["set"], f"{first['steps']}, {mean(row['cpu_seconds'] for row in own):.0f}", str(len(seeds))]
    cells += ["<br>".join(part) for part in (names, [_number([m["value"] for m in one]) for one in metrics], trivial, beats)]
    cells.append(_beside([row["rank"] for row in own], [row["rank"] for row in random], ".1f"))
    for labels in ("1", "4"):
        cells.append(_beside([row["dice"][labels] for row in own], [row["dice"][labels] for row in random], ".3f"))
    return _cells(cells)


def _number(values: Sequence[float]) -> str:
    return f"{mean(values):.3g}"


def _beside(own: Sequence[float], random: Sequence[float], shape: str) -> str:
    return f"{mean(own):{shape}} ({mean(random):{shape}})" if random else f"{mean(own):{shape}}"


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
