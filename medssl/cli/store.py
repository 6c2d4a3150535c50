"""`medssl store` and `verify`: volumes ready to be cropped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medssl.cli.output import print_json, print_table, say
from medssl.cli.sharing import Group, share
from medssl.errors import StoreError

if TYPE_CHECKING:
    from medssl.volumes import StoreEstimate, StoreSummary

MANY = 20
"""Volumes left out that are listed one by one."""


def store(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="An index folder, or a folder of DICOM, NIfTI or pictures.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The store to write or to go on with.")],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A YAML file: channels, preparation and what these options say.")
    ] = None,
    where: Annotated[str | None, typer.Option(metavar="SQL", help="Condition over the volume table.")] = None,
    spacing: Annotated[
        float | None, typer.Option(metavar="MM", min=0.01, help="Resample to this isotropic spacing; default: as it is.")
    ] = None,
    max_deviation: Annotated[
        float | None, typer.Option(metavar="MM", min=0.0, help="Leave out volumes whose slices lie further off even distances.")
    ] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODE", help="Take only this, such as CT; give it again for more. NIfTI and pictures that say none count as it."
        ),
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(metavar="N", min=2, max=3, help="3: volumes; 2: 2D images; default: volumes where there are any.")
    ] = None,
    grey: Annotated[bool, typer.Option("--grey", help="Make 2D images in colour grey.")] = False,
    invert_monochrome1: Annotated[
        bool, typer.Option("--invert-monochrome1", help="Turn 2D images round of which low values are meant to be bright.")
    ] = False,
    patient: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Its group is the patient in names of NIfTI files and pictures, as in '(p[0-9]+)_'."),
    ] = None,
    patients: Annotated[Path | None, typer.Option(metavar="CSV", help="Or a table of them, with the columns case and patient.")] = None,
    min_slices: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Fewest slices of a volume; default: 30 for DICOM, any number for NIfTI.")
    ] = None,
    all_reconstructions: Annotated[
        bool,
        typer.Option("--all-reconstructions", help="Take every reconstruction of an acquisition, reformats and derived images."),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that read, resample and compress.")] = 2,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Do that on the Dask cluster of this scheduler (needs medssl[cluster])."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many volumes, how much disk and how long, and what is left out; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    group: Group = False,
) -> None:
    """Put volumes into a store: oriented to RAS+, compressed in blocks, checksummed. Run again to add what is new.

    Of DICOM it takes one reconstruction of each acquisition, with at least 30 slices, no reformats and no maps
    of images that are there, and says what it leaves out.
    """
    from contextlib import nullcontext

    from medssl.archive.executors import cluster
    from medssl.train.config import read_config
    from medssl.train.progress import counting
    from medssl.volumes import StoreOptions, estimate_store, store_as

    given: dict[str, Any] = {
        "where": where,
        "spacing": spacing,
        "modality": modality or None,
        "choice": _choice(min_slices, all_reconstructions),
    }
    given |= {"dimensions": dimensions, "grey": grey or None, "invert_monochrome1": invert_monochrome1 or None}
    given |= {"patient": patient, "patients": str(patients) if patients else None}
    options = read_config(StoreOptions, config, (), {key: value for key, value in given.items() if value not in (None, {})}, "store")
    options = options.model_copy(update={"where": _condition(options.where, max_deviation)})
    if dry_run:
        _print_estimate(estimate_store(sources, out, options, workers=workers), out, as_json)
        return
    share(out, group)
    with cluster(dask) if dask else nullcontext() as executor, counting("storing volumes") as report:
        summary = store_as(sources, out, options, workers=workers, progress=report, executor=executor)
    if as_json:
        print_json(summary.document())
        _refuse_nothing(summary)
        return
    _print_left_out(summary)
    _refuse_nothing(summary)
    say(f"{summary.volumes} volumes in {out} ({summary.added} new). Next: medssl pretrain CONFIG --out RUN data.store={out}")


def _choice(min_slices: int | None, all_reconstructions: bool) -> dict[str, Any]:
    given = {"min_slices": min_slices, "reconstructions": "all" if all_reconstructions else None}
    return {key: value for key, value in given.items() if value is not None}


def _print_left_out(done: StoreSummary | StoreEstimate) -> None:
    from medssl.volumes.ingest.choice import counted

    for reason, count in counted(done.not_chosen).items():
        say(f"left out: {count} {reason}")
    if done.left_out:
        shown = sorted(done.left_out.items())[:MANY]
        more = len(done.left_out) - len(shown)
        print_table(f"Left out{f' (and {more} more, see --json)' if more else ''}", ("volume", "reason"), shown)
    if done.unread:
        print_table("Files that are no volume", ("reason", "files"), sorted(done.unread.items()))


def _print_estimate(found: StoreEstimate, out: Path, as_json: bool) -> None:
    if as_json:
        print_json(found.document())
        return
    if found.not_chosen:
        shown = sorted(found.not_chosen.items())[:MANY]
        more = len(found.not_chosen) - len(shown)
        print_table(f"Not chosen{f' (and {more} more, see --json)' if more else ''}", ("volume", "reason"), shown)
    _print_left_out(found)
    there = f", {found.there} of them there already" if found.there else ""
    say(f"{found.volumes} volumes would be in {out}{there}: about {_size(found.bytes)} and {_duration(found.seconds)}.")
    say(f"Measured on {found.measured} of them; nothing was written.")


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _condition(where: str | None, max_deviation: float | None) -> str | None:
    if max_deviation is None:
        return where
    within = f"deviation <= {max_deviation!r}"
    return within if where is None else f"(\n{where}\n) AND {within}"


def _refuse_nothing(summary: StoreSummary) -> None:
    if not summary.volumes:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(summary.rejected.items()))
        raise StoreError(f"the store {summary.folder} holds none of these volumes: {reasons}. Nothing can be trained on it.")


def verify(
    folder: Annotated[Path, typer.Argument(metavar="STORE", help="A store.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Read a store whole and compare it with its checksums and its table; changes nothing. Ends with 1 where something is wrong."""
    from medssl.train.progress import counting
    from medssl.volumes import Store
    from medssl.volumes.store.verifying import verify as look

    with counting("verifying volumes") as report:
        found = look(Store(folder), progress=report)
    if as_json:
        print_json(found.document())
    elif found.bad:
        print_table("Damaged", ("volume", "what is wrong"), sorted(found.bad.items()))
    if found.strangers:
        say(f"{len(found.strangers)} files belong to no volume and are never read, such as {found.strangers[0]}.")
    if not found.sound:
        left = f", {found.unfinished} not stored yet" if found.unfinished else ""
        first = "Delete their files where they are there still, then run" if found.bad else "Run"
        raise StoreError(f"{folder}: {len(found.bad)} of {found.volumes} volumes are damaged{left}. {first} the same `medssl store` again.")
    say(f"{found.volumes} volumes in {folder}, all as they were written.")
