"""`medssl schema`: the JSON schema of a configuration, with every installed plugin."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from medssl.cli.output import print_json


class Kind(StrEnum):
    """Which configuration."""

    pretrain = "pretrain"
    finetune = "finetune"


def schema(
    kind: Annotated[Kind | None, typer.Argument(help="Only this kind of configuration; default: either.")] = None,
) -> None:
    """Print the JSON schema of a configuration, so that an editor completes and checks it.

    For example: medssl schema > medssl.schema.json, and `# yaml-language-server: $schema=medssl.schema.json` in the YAML.
    """
    from medssl.plugins import Plugins
    from medssl.train import pretrain_schema
    from medssl.transfer import finetune_schema

    plugins = Plugins.load()
    schemas = {Kind.pretrain: pretrain_schema, Kind.finetune: finetune_schema}
    if kind is not None:
        print_json(schemas[kind](plugins))
    else:
        print_json({"anyOf": [make(plugins) for make in schemas.values()]})
