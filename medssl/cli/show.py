"""`medssl show`: what an index or a store holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from medssl.cli.output import print_json, print_table, say
from medssl.errors import MedsslError, MissingInput
from medssl.faults import faults_as
from medssl.files import holds_file

MANY = 20
"""Volumes left out that are listed one by one."""
_COUNTED = ("modality", "body_part", "manufacturer", "volumes", "patients", "files")


def show(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An index or a store.")],
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="Write slices as PNG; of a store with the box of the foreground, and histograms."),
    ] = None,
    rows: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Volumes in the picture.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what an index or a store holds: volumes, patients, sizes and spacings by kind, and why others were left out."""
    written = _of_kind(folder)(folder, picture, rows, as_json)
    if written is not None:
        say(f"wrote {written}")


def _of_kind(folder: Path) -> Callable[[Path, Path | None, int, bool], Path | None]:
    from medssl.archive.index.folder import MARK
    from medssl.volumes.store.manifest import MANIFEST

    with faults_as(MedsslError, f"{folder} cannot be read"):
        if holds_file(folder / MARK):
            return _index
        if holds_file(folder / MANIFEST):
            return _store
    raise MissingInput(f"{folder} is neither an index nor a store. Give the folder that medssl index or medssl store has made.")


def _index(folder: Path, picture: Path | None, rows: int, as_json: bool) -> Path | None:
    from medssl.archive import Index
    from medssl.volumes.overview import archive_kinds, warnings_of, write_overview

    opened = Index(folder)
    found, rejected, warnings = archive_kinds(opened), opened.rejected(), warnings_of(opened)
    if as_json:
        print_json({"index": str(folder), "kinds": [kind.document() for kind in found], "rejected": rejected, "warnings": warnings})
    else:
        columns = ("modality", "body part", "manufacturer", "volumes", "patients", "files", "sides", "spacing in mm")
        shown = [
            (
                one.modality,
                one.body_part,
                one.manufacturer,
                one.volumes,
                one.patients,
                one.files,
                " | ".join(one.shape),
                " | ".join(one.spacing),
            )
            for one in found
        ]
        print_table(f"{folder}: smallest, median and largest", columns, shown)
        for title, name, counts in (("Not volumes", "files", rejected), ("Warnings", "volumes", warnings)):
            if counts:
                print_table(title, ("reason" if name == "files" else "warning", name), list(counts.items()))
    return None if picture is None else write_overview(opened, picture, rows)


def _store(folder: Path, picture: Path | None, rows: int, as_json: bool) -> Path | None:
    from medssl.volumes import Store
    from medssl.volumes.showing import kinds, write_sheet

    opened = Store(folder)
    found, left_out = kinds(opened), opened.left_out()
    if as_json:
        print_json({"store": str(folder), "kinds": [kind.document() for kind in found], "left_out": left_out})
    else:
        columns = ("modality", "channels", "volumes", "patients", "sides", "spacing in mm", "low, mean, high, deviation")
        shown = [
            (kind.modality, ", ".join(kind.channels), kind.volumes, kind.patients, " | ".join(kind.shape), " | ".join(kind.spacing))
            for kind in found
        ]
        values = [", ".join(f"{value:.4g}" for value in kind.values) for kind in found]
        print_table(f"{folder}: smallest, median and largest", columns, [(*row, value) for row, value in zip(shown, values, strict=True)])
        if left_out:
            print_table("Left out", ("volume", "reason"), sorted(left_out.items())[:MANY])
    return None if picture is None else write_sheet(opened, picture, rows)
