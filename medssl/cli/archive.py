"""`medssl index` and `medssl volumes`: what the archive holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medssl.cli.output import print_json, print_table, say, shape_text
from medssl.cli.sharing import Group, share
from medssl.train.progress import counting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from medssl.archive import VolumeRecord


def index(
    sources: Annotated[list[str], typer.Argument(metavar="PATH...", help="Folders of DICOM or NIfTI files, or zip files.")],
    index: Annotated[Path, typer.Option("--index", metavar="DIR", help="The index folder to write.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes that read headers.")] = 2,
    slice_location: Annotated[
        bool, typer.Option("--slice-location", help="Let SliceLocation stand in for positions that were removed; volumes may be mirrored.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    group: Group = False,
) -> None:
    """Read an archive into an index folder; nothing in the archive is changed.

    The index says which volumes there are, and why each other file is none.
    """
    from medssl.archive import build_index

    share(index, group)
    with counting("reading headers") as report:
        summary = build_index(sources, index, workers=workers, progress=report, slice_location=slice_location)
    if as_json:
        print_json(summary.document())
        return
    _print_volumes(f"Volumes in {index}", summary.volumes)
    if summary.rejected:
        print_table("Not volumes", ("reason", "files"), Counter(summary.rejected).most_common())
    say(f"{summary.files} files, {summary.instances} instances, {len(summary.volumes)} volumes.")
    if summary.volumes:
        say(f"Next: medssl store {index} --out STORE")


def volumes(
    index: Annotated[Path, typer.Argument(metavar="INDEX_DIR", help="An index folder.")],
    where: Annotated[str | None, typer.Option(metavar="SQL", help="Condition over the volume table, as in \"modality = 'CT'\".")] = None,
    nifti: Annotated[Path | None, typer.Option(metavar="DIR", help="Write each volume here as VOLUME.nii.gz with a JSON sidecar.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    group: Group = False,
) -> None:
    """List the volumes of an index, and write them as NIfTI."""
    from medssl.archive import Index, write_volumes

    opened = Index(index)
    records = opened.volumes(where)
    if nifti is not None:
        share(nifti, group)
    written = write_volumes(opened, nifti, where) if nifti is not None else []
    if as_json:
        print_json({"volumes": [record.document() for record in records], "written": [str(path) for path in written]})
        return
    _print_volumes(f"Volumes in {index}", records)
    if written:
        say(f"{len(written)} volumes written to {nifti}")


def _print_volumes(title: str, records: Iterable[VolumeRecord]) -> None:
    rows = [
        (
            r.volume,
            r.modality,
            shape_text(r.shape),
            shape_text(round(s, 3) for s in r.spacing),
            r.instances,
            r.split_by or "",
            "; ".join(r.warnings),
        )
        for r in records
    ]
    print_table(title, ("volume", "modality", "voxels", "spacing mm", "instances", "split by", "warnings"), rows)
