"""What a benchmark ends with: a table for a person and `build/bench/NAME.json` for a program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl.cli.output import print_table

FOLDER = Path("build/bench")


@dataclass(frozen=True)
class Row:
    """One cost of ours beside a peer's. Less is better, so rates are told as time or bytes for each piece."""

    what: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    bar: float
    """Largest `ratio` that holds."""

    @property
    def ratio(self) -> float:
        """Ours over the peer's."""
        return self.ours / self.peer

    @property
    def holds(self) -> bool:
        """Whether the ratio is at most the bar."""
        return self.ratio <= self.bar

    def document(self) -> dict[str, Any]:
        """As the JSON file has it."""
        return {**vars(self), "ratio": self.ratio, "holds": self.holds}


def publish(name: str, rows: Sequence[Row], folder: Path = FOLDER) -> Path:
    """Print the table of `rows` and write `NAME.json` into the folder: a list of one object a row. Returns the file's path."""
    columns = ("what", "ours", "peer", "unit", "ratio", "bar", "holds", "peer is")
    cells = [
        (row.what, f"{row.ours:.4g}", f"{row.peer:.4g}", row.unit, f"{row.ratio:.3f}", f"<= {row.bar:g}", _word(row.holds), row.peer_name)
        for row in rows
    ]
    print_table(name, columns, cells)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps([row.document() for row in rows], indent=1) + "\n", encoding="utf-8")
    return file


def _word(holds: bool) -> str:
    return "yes" if holds else "NO"
