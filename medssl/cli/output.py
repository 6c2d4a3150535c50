"""How results and progress reach a person or a program: data on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medssl.errors import MedsslError, printable
from medssl.faults import fault

_SUSPECT = re.compile(r"[^\x20-\x7e\n]")
"""Beside ASCII: to be looked at one by one."""
_ENDLESS = re.compile(r"(\S{300})\S{400,}(\S{100})")
"""A word that nobody reads to its end, such as a path longer than a system takes."""


class _Console(Console):
    """rich ends the process at a closed pipe unless told otherwise; what a command did is done, whoever reads."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


err = Console(stderr=True)
out = _Console()


def print_json(document: Any) -> None:
    """One JSON document on standard output; characters that a terminal would obey are escaped as JSON escapes them."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    with _while_somebody_reads():
        sys.stdout.write(_SUSPECT.sub(_as_json, text) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A titled table on standard output; as wide as its content where output is not a terminal, so that nothing is cut."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*(escape(printable(str(cell))) for cell in row))
    console = out if out.is_terminal else _Console(width=1000)
    with _while_somebody_reads():
        console.print(printable(title), markup=False, highlight=False)
        console.print(table)


def print_text(text: str) -> None:
    """Lines for a person, on standard output."""
    with _while_somebody_reads():
        out.print(printable(text), markup=False, highlight=False)


def _as_json(found: re.Match[str]) -> str:
    char = found[0]
    if char.isprintable():
        return char
    return json.dumps(char)[1:-1] if ord(char) > 0x7F else f"\\u{ord(char):04x}"


@contextmanager
def _while_somebody_reads() -> Iterator[None]:
    """A reader that went away, as `head` does, is no failure of the command; output that cannot be written is."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would fail again when Python ends.
        with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise MedsslError(fault(error, "the result cannot be written to standard output")) from error


def say(message: str) -> None:
    """One line for the person at the terminal, on standard error; where nobody reads any more, nothing."""
    with suppress(OSError):
        sys.stderr.write(_ENDLESS.sub(r"\1...\2", printable(message)) + "\n")
        sys.stderr.flush()


def shape_text(shape: Iterable[float]) -> str:
    """`256 x 256 x 180`."""
    return " x ".join(f"{side:g}" for side in shape)
