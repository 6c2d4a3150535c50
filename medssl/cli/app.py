"""The program `medssl`: its commands, and how every failure ends in one message and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, TextIO

import typer

from medssl import __version__
from medssl.cli import archive, demo, doctor, labels, plugins, pretrain, schema, show, store, transfer
from medssl.cli.output import err, say
from medssl.cli.threads import wait_asleep
from medssl.errors import MedsslError
from medssl.faults import fault, is_fault

app = typer.Typer(
    name="medssl",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pretrain a MONAI network on your own unlabelled scans, then fine-tune it with few labels.",
    epilog="Start with: medssl demo",
)
app.command()(archive.index)
app.command()(archive.volumes)
app.command()(archive.compact)
app.command()(archive.forget)
app.command()(labels.labels)
app.command(name="store")(store.store)
app.command(name="verify")(store.verify)
app.command(name="show")(show.show)
app.command(name="pretrain")(pretrain.pretrain)
app.command()(transfer.finetune)
app.command()(transfer.predict)
app.command()(transfer.evaluate)
app.add_typer(plugins.app, name="plugins")
app.command(name="schema")(schema.schema)
app.command(name="doctor")(doctor.doctor)
app.command(name="demo")(demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medssl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    plugin: Annotated[
        list[Path] | None, typer.Option("--plugin", help="A Python file with tasks or losses of your own, which is run. May be repeated.")
    ] = None,
) -> None:
    if plugin:
        files = [os.environ.get("MEDSSL_PLUGIN_FILES"), *(str(file.absolute()) for file in plugin)]
        os.environ["MEDSSL_PLUGIN_FILES"] = os.pathsep.join(filter(None, files))


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 failure, 2 wrong use (typer says what), 130 interrupted."""
    wait_asleep()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    warnings.showwarning = _show_warning
    try:
        app(args=[word for word in words if word != "--debug"], prog_name="medssl")
    except MedsslError as error:
        sys.exit(_fail(str(error), error.exit_code, debug))
    except Exception as error:  # noqa: BLE001 - the last door: a bug ends in one message too
        if is_fault(error):
            place = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
            sys.exit(_fail(fault(error, f"medssl {' '.join(words[:1])} cannot go on{place}"), 1, debug))
        sys.exit(_fail(f"unexpected {type(error).__name__}: {error}. {_whose_fault(error)}", 1, debug))


def _whose_fault(error: Exception) -> str:
    from medssl.plugins import plugin_at_fault

    plugin = plugin_at_fault(error)
    who = "medssl" if plugin is None else f"the plugin '{plugin.plugin}' ({plugin})"
    return f"This is a fault in {who}: run again with --debug and report the traceback."


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        err.print_exception()
    say(f"medssl: error: {message}")
    return code


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    """Warnings are lines for a person; those of libraries about their own future are left to developers."""
    if not issubclass(category, DeprecationWarning | FutureWarning | PendingDeprecationWarning):
        say(f"medssl: warning: {message}")
