"""`medssl store`: volumes ready to be cropped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medssl.cli.output import print_json, print_table, progress_bar, say


def store(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="An index folder, a folder of DICOM, or a folder of NIfTI.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The store to write or to go on with.")],
    where: Annotated[str | None, typer.Option(metavar="SQL", help="Condition over the volume table.")] = None,
    spacing: Annotated[
        float | None, typer.Option(metavar="MM", min=0.01, help="Resample to this isotropic spacing; default: as it is.")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="Modality of NIfTI files that do not say theirs, such as CT.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Put volumes into a store: oriented to RAS+, compressed in blocks, checksummed. Run again to add what is new."""
    from medssl.volumes import make_store

    with progress_bar("storing volumes") as report:
        summary = make_store(sources, out, where=where, spacing=spacing, modality=modality, progress=report)
    if as_json:
        print_json(summary.document())
        return
    if summary.rejected:
        print_table("Left out", ("reason", "volumes"), sorted(summary.rejected.items()))
    say(f"{summary.volumes} volumes in {out} ({summary.added} new). Next: medssl pretrain CONFIG --out RUN data.store={out}")
