"""`medssl store`, `verify` and `show`: volumes ready to be cropped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medssl.cli.output import print_json, print_table, say
from medssl.cli.sharing import Group, share
from medssl.errors import StoreError

if TYPE_CHECKING:
    from medssl.volumes import StoreSummary

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
    modality: Annotated[str | None, typer.Option(help="Modality of NIfTI files and pictures that do not say theirs, such as CT.")] = None,
    dimensions: Annotated[
        int | None, typer.Option(metavar="N", min=2, max=3, help="3: volumes; 2: 2D images; default: volumes where there are any.")
    ] = None,
    grey: Annotated[bool, typer.Option("--grey", help="Make 2D images in colour grey.")] = False,
    invert_monochrome1: Annotated[
        bool, typer.Option("--invert-monochrome1", help="Turn 2D images round of which low values are meant to be bright.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    group: Group = False,
) -> None:
    """Put volumes into a store: oriented to RAS+, compressed in blocks, checksummed. Run again to add what is new."""
    from medssl.train.config import read_config
    from medssl.train.progress import counting
    from medssl.volumes import StoreOptions, make_store

    share(out, group)
    given = {"where": where, "spacing": spacing, "modality": modality, "dimensions": dimensions}
    given |= {"grey": grey or None, "invert_monochrome1": invert_monochrome1 or None}
    options = read_config(StoreOptions, config, (), {key: value for key, value in given.items() if value is not None}, "store")
    with counting("storing volumes") as report:
        summary = make_store(
            sources,
            out,
            where=_condition(options.where, max_deviation),
            spacing=options.spacing,
            modality=options.modality,
            channels=options.channels,
            dimensions=options.dimensions,
            grey=options.grey,
            invert_monochrome1=options.invert_monochrome1,
            preparation=options.preparation,
            progress=report,
        )
    if as_json:
        print_json(summary.document())
        _refuse_nothing(summary)
        return
    if summary.left_out:
        shown = sorted(summary.left_out.items())[:MANY]
        more = len(summary.left_out) - len(shown)
        print_table(f"Left out{f' (and {more} more, see --json)' if more else ''}", ("volume", "reason"), shown)
    if summary.unread:
        print_table("Files that are no volume", ("reason", "files"), sorted(summary.unread.items()))
    _refuse_nothing(summary)
    say(f"{summary.volumes} volumes in {out} ({summary.added} new). Next: medssl pretrain CONFIG --out RUN data.store={out}")


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


def show(
    folder: Annotated[Path, typer.Argument(metavar="STORE", help="A store.")],
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Write slices with the box of the foreground, and histograms, as PNG.")
    ] = None,
    rows: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Volumes in the picture.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what a store holds: volumes, patients, sizes, spacings and values by modality, and why others were left out."""
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
    if picture is not None:
        say(f"wrote {write_sheet(opened, picture, rows)}")
