"""`medssl schema`: the JSON schema of a configuration, with every installed plugin."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from medssl.cli.output import print_json


class Kind(StrEnum):
    """Which configuration."""

    pretrain = "pretrain"
    finetune = "finetune"
    store = "store"


def schema(
    kind: Annotated[Kind | None, typer.Argument(help="Only this kind of configuration; default: either.")] = None,
) -> None:
    """Print the JSON schema of a configuration, so that an editor completes and checks it.

    For example: medssl schema > medssl.schema.json, and `# yaml-language-server: $schema=medssl.schema.json` in the YAML.
    """
    from medssl.plugins import Plugins
    from medssl.train import pretrain_schema
    from medssl.transfer import finetune_schema
    from medssl.volumes import StoreOptions

    plugins = Plugins.load()
    schemas: dict[Kind, Callable[[], dict[str, Any]]] = {
        Kind.pretrain: lambda: pretrain_schema(plugins),
        Kind.finetune: lambda: finetune_schema(plugins),
        Kind.store: StoreOptions.model_json_schema,
    }
    if kind is not None:
        print_json(schemas[kind]())
    else:
        print_json({"anyOf": [make() for make in schemas.values()]})
