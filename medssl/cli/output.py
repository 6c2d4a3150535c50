"""How results and progress reach a person or a program: data on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

err = Console(stderr=True)
out = Console()


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A titled table on standard output; as wide as its content where output is not a terminal, so that nothing is cut."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    console = out if out.is_terminal else Console(width=1000)
    console.print(title, markup=False, highlight=False)
    console.print(table)


def say(message: str) -> None:
    """One line for the person at the terminal, on standard error; where nobody reads any more, nothing."""
    with suppress(OSError):
        sys.stderr.write(message + "\n")
        sys.stderr.flush()


def shape_text(shape: Iterable[float]) -> str:
    """`256 x 256 x 180`."""
    return " x ".join(f"{side:g}" for side in shape)
