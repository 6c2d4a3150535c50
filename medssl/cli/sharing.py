"""`--group`: who may use what a command makes, beside the user who runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medssl.files import share_with_group

Group = Annotated[bool, typer.Option("--group", help="Let the folder's group read and write what is made; else it is yours alone.")]


def share(folder: Path, group: bool) -> None:
    """Prepare the folder that a command is about to fill."""
    if group:
        share_with_group(folder)
