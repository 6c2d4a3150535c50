"""`medssl index` and `medssl volumes`: what the archive holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medssl.cli.output import print_json, print_table, say, shape_text
from medssl.cli.sharing import Group, share
from medssl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from medssl.archive import LeftOut, VolumeRecord


def index(
    sources: Annotated[list[str], typer.Argument(metavar="PATH...", help="Folders of DICOM or NIfTI files, zip or tar files.")],
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
    from medssl.train.progress import counting

    share(index, group)
    with counting("reading headers") as report:
        summary = build_index(sources, index, workers=workers, progress=report, slice_location=slice_location)
    if as_json:
        print_json(summary.document())
        return
    _print_volumes(f"Volumes in {index}", summary.volumes)
    if summary.rejected:
        print_table("Not volumes", ("reason", "files"), list(summary.rejected.items()))
    say(f"{summary.files} files, {summary.instances} instances, {len(summary.volumes)} volumes.")
    if summary.volumes:
        say(f"Next: medssl store {index} --out STORE")


def volumes(
    index: Annotated[Path, typer.Argument(metavar="INDEX_DIR", help="An index folder.")],
    where: Annotated[str | None, typer.Option(metavar="SQL", help="Condition over the volume table, as in \"modality = 'CT'\".")] = None,
    nifti: Annotated[Path | None, typer.Option(metavar="DIR", help="Write each volume here as VOLUME.nii.gz with a JSON sidecar.")] = None,
    left_out: Annotated[
        bool, typer.Option("--left-out", help="List the series that are in no volume instead, with the reason and what would mend it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    group: Group = False,
) -> None:
    """List the volumes of an index, and write them as NIfTI."""
    from medssl.archive import Index, write_volumes

    opened = Index(index)
    if left_out:
        if where is not None or nifti is not None:
            raise UsageError("--left-out lists what is in no volume; leave out --where and --nifti.")
        _print_left_out(opened.left_out(), as_json)
        return
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


def _print_left_out(found: Sequence[LeftOut], as_json: bool) -> None:
    if as_json:
        print_json({"left_out": [one.document() for one in found]})
        return
    columns = ("series", "modality", "matrix", "manufacturer", "files", "reason", "what would mend it")
    rows = [(one.series, one.modality, _matrix(one), one.manufacturer, one.files, one.reason, one.remedy) for one in found]
    print_table("In no volume", columns, rows)


def _matrix(one: LeftOut) -> str:
    return shape_text((one.columns, one.rows)) if one.rows and one.columns else ""


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
