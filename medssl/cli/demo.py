"""`medssl demo`: the whole way on made-up scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medssl.cli.output import print_table, say


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Everything the demo makes goes here.")] = Path("medssl-demo"),
    steps: Annotated[int, typer.Option(min=1, help="Pretraining steps.")] = 400,
    finetune_steps: Annotated[int, typer.Option(min=1, help="Fine-tuning steps, the same for both networks.")] = 60,
    patients: Annotated[int, typer.Option(min=8, max=64, help="Made-up patients.")] = 12,
) -> None:
    """Make a small DICOM archive offline, and take it all the way: index, store, pretrain, fine-tune, predict, evaluate.

    It shows the pipeline and is no benchmark.
    """
    from medssl.demo import run_demo

    result = run_demo(out, steps=steps, finetune_steps=finetune_steps, patients=patients, say=say)
    print_table(result.title, result.columns, result.rows)
    say(f"picture: {result.picture}")
    say("This shows that the pipeline works from end to end. It is no benchmark: the scans are warped copies of one template.")
