"""`medssl finetune`, `predict` and `evaluate`: from pretrained weights to label maps and their Dice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medssl.cli.output import print_json, print_table, say
from medssl.cli.sharing import Group, share


def finetune(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; `medssl schema` describes it.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The run folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value...]", help="Such as data.labelled=8.")] = None,
    pretrained: Annotated[Path | None, typer.Option(metavar="PATH", help="A checkpoint or run folder; without: from scratch.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest good checkpoint in the run folder.")] = False,
    group: Group = False,
) -> None:
    """Fine-tune a segmentation network on labelled volumes."""
    from medssl.transfer import fine_tune

    share(out, group)
    run = fine_tune(config=config, overrides=overrides or (), out=out, pretrained=pretrained, resume=resume)
    say(f"fine-tuned {run.state.step} steps, in {run.folder}. Next: medssl predict {run.folder} INPUT --out DIR")


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A fine-tuning run, or one of its checkpoints.")],
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="NIfTI files or pictures, folders of them, an index, or DICOM.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the label maps go.")],
    precision: Annotated[
        str, typer.Option(metavar="auto|fp32|bf16", help="auto: bf16 on GPUs that have it, else fp32. Faster, may move borders by a voxel.")
    ] = "fp32",
    trust: Annotated[
        list[str] | None, typer.Option("--trust", metavar="MODULE", help="A Python module of yours that the run may name its network in.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A store's YAML file: its `channels` say which series of a study are the channels.")
    ] = None,
    form: Annotated[
        str,
        typer.Option("--format", metavar="nifti|dicom-seg", help="dicom-seg: refers to the images of DICOM inputs, and names the patient."),
    ] = "nifti",
    unseen_modality: Annotated[
        bool, typer.Option("--unseen-modality", help="Take DICOM images of a modality that the network never saw.")
    ] = False,
    group: Group = False,
) -> None:
    """Write a label map for each input volume, on the input's own grid. A volume that cannot be used costs no other."""
    from medssl.train.config import read_config
    from medssl.transfer import predict as predict_volumes
    from medssl.volumes import StoreOptions

    channels = read_config(StoreOptions, config, (), {}, "store").channels
    share(out, group)
    written = predict_volumes(
        run, inputs, out, precision=precision, trusted=trust or (), format=form, channels=channels, unseen_modality=unseen_modality
    )
    say(f"{len(written)} label maps written to {out}")


def evaluate(
    predictions: Annotated[Path, typer.Option("--predictions", metavar="DIR", help="Predicted label maps.")],
    labels: Annotated[Path, typer.Option("--labels", metavar="DIR", help="True label maps of the same names.")],
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN_DIR", help="The run that predicted, where its configuration merges, drops or ignores values."),
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the rows as CSV.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Dice per class and case."""
    from medssl.transfer import evaluate as evaluate_folders

    evaluation = evaluate_folders(predictions, labels, run)
    for note in evaluation.notes():
        say(f"medssl: warning: {note}")
    if csv is not None:
        evaluation.write(csv)
    if as_json:
        print_json(evaluation.document())
        return
    columns, rows = evaluation.table()
    print_table("Dice", columns, rows)
