"""`medssl plugins list|show`: what is installed, from which package and version, with options, ranges, defaults and help."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medssl.cli.output import print_json, print_table, print_text, say
from medssl.errors import UsageError

if TYPE_CHECKING:
    from medssl.plugins import Provider

app = typer.Typer(no_args_is_help=True, help="What is installed, and how it is used.")


@app.command("list")
def list_plugins(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """Every pretext task and consistency loss, with its package and version."""
    from medssl.plugins import Plugins, installed

    found = installed()
    loaded = Plugins.load() if any(provider.package != "medssl" for _, provider in found) else None
    offered = loaded.offered() if loaded else {}
    rows = [
        _row(name, kind, cls, provider) for name, (kind, cls, provider) in sorted(offered.items(), key=lambda item: (item[1][0], item[0]))
    ]
    if as_json:
        packages = [{"plugin": p.plugin, "package": p.package, "version": p.version} for _, p in found]
        broken = [{"plugin": b.provider.plugin, "package": b.provider.package, "error": b.error} for b in (loaded.broken if loaded else [])]
        print_json({"plugins": rows, "packages": packages, "broken": broken})
        return
    print_table("Plugins", ("name", "kind", "package", "version", "what"), [tuple(row.values()) for row in rows])
    if not rows:
        say("No plugin is installed. Install some: pip install medssl-inpainting medssl-placement medssl-consistency")
    else:
        say("Options of one: medssl plugins show NAME")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A pretext task or consistency loss.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """What one task or loss does, what to cite, and its options with ranges, defaults and help."""
    from medssl.config import did_you_mean, options_table
    from medssl.plugins import Plugins

    offered = Plugins.load().offered()
    if name not in offered:
        raise UsageError(f"no plugin offers '{name}'{did_you_mean(name, offered) or '.'} See: medssl plugins list")
    kind, cls, provider = offered[name]
    options = options_table(cls.Options)
    if as_json:
        print_json({**_row(name, kind, cls, provider), "doc": inspect.getdoc(cls), "citation": cls.citation, "options": options})
        return
    print_text(f"{name}: {kind}, from {provider}\n")
    print_text(f"{inspect.getdoc(cls) or ''}\n")
    if cls.citation:
        print_text(f"Cite: {cls.citation}\n")
    print_table("Options", ("option", "type and range", "default", "help"), [tuple(row.values()) for row in options])


def _row(name: str, kind: str, cls: type[Any], provider: Provider) -> dict[str, str]:
    summary = (inspect.getdoc(cls) or "").split("\n", 1)[0]
    return {"name": name, "kind": kind, "package": provider.package, "version": provider.version, "what": summary}
