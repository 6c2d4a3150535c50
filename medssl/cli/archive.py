"""`medssl index` and `medssl volumes`: what the archive holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medssl.cli.output import print_json, print_table, say, shape_text
from medssl.cli.sharing import Group, share
from medssl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from medssl.archive import LeftOut, VolumeRecord


def index(
    sources: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Folders of DICOM or NIfTI files, zip or tar files, a DICOM file.")
    ],
    index: Annotated[Path, typer.Option("--index", metavar="DIR", help="The index folder to write.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes that read headers.")] = 2,
    slice_location: Annotated[
        bool, typer.Option("--slice-location", help="Let SliceLocation stand in for positions that were removed; volumes may be mirrored.")
    ] = False,
    studies: Annotated[
        Path | None,
        typer.Option(metavar="LIST.csv", help="Take only these accession numbers, study UIDs or patient ids, one a line."),
    ] = None,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Read headers on the Dask cluster of this scheduler (needs medssl[cluster]).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    group: Group = False,
) -> None:
    """Read an archive into an index folder; nothing in the archive is changed.

    The index says which volumes there are, and why each other file is none. Of an index that is there already only what changed is
    read; one that was interrupted goes on.
    """
    from contextlib import nullcontext

    from medssl.archive import build_index
    from medssl.archive.executors import cluster
    from medssl.train.progress import counting

    share(index, group)
    with cluster(dask) if dask else nullcontext() as executor, counting("reading headers") as report:
        summary = build_index(
            sources, index, workers=workers, progress=report, slice_location=slice_location, executor=executor, studies=studies
        )
    if as_json:
        print_json(summary.document())
        return
    _print_volumes(f"Volumes in {index}", summary.volumes)
    for name, counts in summary.by.items():
        if len(summary.volumes) > 1 and counts:
            print_table(f"Volumes by {name.replace('_', ' ')}", (name.replace("_", " "), "volumes", "files"), _counted(counts))
    if summary.rejected:
        print_table("Not volumes", ("reason", "files"), list(summary.rejected.items()))
    say(f"{summary.files} files, {summary.instances} instances, {len(summary.volumes)} volumes.")
    if summary.volumes:
        say(f"Next: medssl store {index} --out STORE")


def _counted(counts: Mapping[str, Mapping[str, int]]) -> list[tuple[str, int, int]]:
    return [(value or "not stated", found["volumes"], found["files"]) for value, found in counts.items()]


def compact(
    index: Annotated[Path, typer.Argument(metavar="INDEX_DIR", help="An index folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Fold what many runs of `medssl index` added and changed into one set of tables; the archive is not read."""
    from medssl.archive import compact as fold

    done = fold(index)
    if as_json:
        print_json(vars(done))
        return
    say(f"{done.tables} sets of tables are one now: {done.before / 1e6:.1f} MB before, {done.after / 1e6:.1f} MB after.")


def forget(
    index: Annotated[Path, typer.Argument(metavar="INDEX_DIR", help="The index folder that names them.")],
    patients: Annotated[Path, typer.Option(metavar="FILE", help="PatientIDs, one a line.")],
    store: Annotated[list[Path] | None, typer.Option(metavar="STORE", help="A store made of the index; may be given again.")] = None,
    folder: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="A folder of files called VOLUME.*, as of --nifti; may be given again.")
    ] = None,
    run: Annotated[list[Path] | None, typer.Option(metavar="RUN", help="Say whether this run saw them; may be given again.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Remove patients who have withdrawn from an index, from stores and folders made of it, and list the runs that saw them.

    The archive itself is not changed. Later runs of `medssl index` pass over these patients.
    """
    from medssl.train.forgetting import forget as forget_patients

    done = forget_patients(patients, index, stores=store or (), folders=folder or (), runs=run or ())
    if as_json:
        print_json(done.document())
        return
    say(f"{done.patients} patients, {done.files} files and {len(done.volumes)} volumes left the index; of {done.unknown} it held nothing.")
    for name, count in done.stores.items():
        say(f"{count} volumes left {name}.")
    if folder:
        say(f"{done.removed} files left the folders.")
    for name, why in done.runs.items():
        say(f"{name} saw them: {why}. What its network learned of them stays in it.")


def volumes(
    index: Annotated[Path, typer.Argument(metavar="INDEX_DIR", help="An index folder.")],
    where: Annotated[str | None, typer.Option(metavar="SQL", help="Condition over the volume table, as in \"modality = 'CT'\".")] = None,
    nifti: Annotated[Path | None, typer.Option(metavar="DIR", help="Write each volume here as VOLUME.nii.gz with a JSON sidecar.")] = None,
    left_out: Annotated[
        bool, typer.Option("--left-out", help="List the series that are in no volume instead, with the reason and what would mend it.")
    ] = False,
    revealed: Annotated[
        str | None,
        typer.Option("--reveal", metavar="VOLUME", help="Show the files and real UIDs of this volume; who asked is written down."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    group: Group = False,
) -> None:
    """List the volumes of an index, and write them as NIfTI."""
    from medssl.archive import Index, write_volumes

    if revealed is not None:
        if where is not None or nifti is not None or left_out:
            raise UsageError("--reveal shows one volume; leave out --where, --nifti and --left-out.")
        _print_revealed(index, revealed, as_json)
        return
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


def _print_revealed(index: Path, volume: str, as_json: bool) -> None:
    from medssl.archive import reveal

    found = reveal(index, volume)
    if as_json:
        print_json(found.document())
        return
    named = [("PatientID", found.patient), ("AccessionNumber", found.accession), ("Study", found.study), ("Series", found.series)]
    print_table(f"Private: volume {volume}", ("what", "value"), [*named, *(("file", file) for file in found.files)])


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
