"""`medssl pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medssl.cli.output import say
from medssl.cli.sharing import Group, share


def pretrain(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; `medssl schema` describes it.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The run folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value...]", help="Such as train.steps=100.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest good checkpoint in the run folder.")] = False,
    group: Group = False,
) -> None:
    """Pretrain a network on a store with pretext tasks and consistency losses."""
    from medssl.learn import citations
    from medssl.train import pretrain as run_pretraining

    share(out, group)
    run = run_pretraining(config=config, overrides=overrides or (), out=out, resume=resume)
    objective: Any = run.objective
    for paper in dict.fromkeys(citations(objective).values()):
        say(f"cite: {paper}")
    say(f"pretrained {run.state.step} steps, in {run.folder}. Next: medssl finetune CONFIG --out DIR --pretrained {run.folder}")
