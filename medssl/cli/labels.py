"""`medssl labels`: which segments there are to name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medssl.cli.output import print_json, print_table, say


def labels(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="An index folder, a folder of label files, or a label file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the segments of DICOM segmentations, RTSTRUCT and NRRD files by name, to be named under data.classes.

    The names are free text of whoever drew the labels and may hold anything: they are shown here and kept nowhere.
    """
    from medssl.archive.labels.listing import list_labels

    found = list_labels(path)
    if as_json:
        print_json(found.document())
        return
    rows = [(_printable(one.name), ", ".join(one.kinds), _numbers(one.numbers), one.objects) for one in found.names]
    print_table("Segments", ("name", "kind", "numbers", "label objects"), rows)
    for note in found.notes:
        say(note)


def _printable(name: str) -> str:
    """Without what would steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _numbers(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:4])) + (" ..." if len(numbers) > 4 else "")
