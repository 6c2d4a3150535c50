"""`medssl plugins`: what is installed, its options, whether it keeps the contract, how it looks, and a package to begin with."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medssl.cli.output import print_json, print_table, print_text, say

if TYPE_CHECKING:
    from medssl.plugins import Provider
    from medssl.testing.checking import Checked

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
    from medssl.config import options_table
    from medssl.plugins import Plugins

    kind, cls, provider = Plugins.load().offer(name)
    options = options_table(cls.Options)
    if as_json:
        print_json({**_row(name, kind, cls, provider), "doc": inspect.getdoc(cls), "citation": cls.citation, "options": options})
        return
    print_text(f"{name}: {kind}, from {provider}\n")
    print_text(f"{inspect.getdoc(cls) or ''}\n")
    if cls.citation:
        print_text(f"Cite: {cls.citation}\n")
    print_table("Options", ("option", "type and range", "default", "help"), [tuple(row.values()) for row in options])


@app.command("check")
def check(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Pretext tasks or consistency losses; none: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Try the public contract on installed tasks and losses: what holds, and what does not. Ends with 1 where something does not.

    Needs pytest: pip install 'medssl[testing]'.
    """
    from medssl.errors import MissingInput, PluginError
    from medssl.plugins import Plugins
    from medssl.train.progress import counting

    try:
        from medssl.testing.checking import check_plugin
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        raise MissingInput("the contract suite needs pytest. Install it with: pip install 'medssl[testing]'") from None
    wanted = list(dict.fromkeys(names or sorted(Plugins.load().offered())))
    found = {}
    with counting("checking") as report:
        for number, name in enumerate(wanted):
            report(number, len(wanted))
            found[name] = check_plugin(name)
    broken = {name: [one for one in checks if one.outcome == "does not hold"] for name, checks in found.items()}
    if as_json:
        print_json({"plugins": {name: [one.document() for one in checks] for name, checks in found.items()}})
    elif len(found) == 1:
        print_table(wanted[0], ("check", "outcome", "why"), [(one.check, one.outcome, one.why) for one in found[wanted[0]]])
    else:
        rows = [(name, sum(one.outcome == "holds" for one in checks), len(broken[name])) for name, checks in found.items()]
        print_table("Contract", ("name", "holds", "does not hold"), rows)
        if any(broken.values()):
            print_table("What does not hold", ("name", "check", "why"), list(_by_reason(broken)))
    bad = [name for name, some in broken.items() if some]
    if bad:
        raise PluginError(f"{', '.join(bad)}: {sum(map(len, broken.values()))} checks of the contract do not hold.")
    if not as_json:
        say(f"{sum(map(len, found.values()))} checks, none that does not hold.")


@app.command("picture")
def picture(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Pretext tasks or consistency losses.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where NAME.png of each is written.")] = Path(),
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="Steps for which a small network learns each task.")] = 150,
) -> None:
    """Draw what a task shows, asks for and is answered by a network that learned it for a moment, or the views that a loss compares.

    On 2D slices of the MNI152 template; needs nilearn: pip install 'medssl[demo]'. The same picture each time.
    """
    from medssl.demo.questions import write_question
    from medssl.plugins import Plugins

    plugins = Plugins.load()
    for name in names:
        plugins.offer(name)
    rows: list[tuple[object, ...]] = []
    for name in dict.fromkeys(names):
        drawn = write_question(name, out / f"{name}.png", steps, plugins)
        measured = [(drawn.file, what, f"{value:.4g}", f"{easy:.4g}") for what, (value, easy) in drawn.measures.items()]
        rows += measured or [(drawn.file, "", "", "")]
    print_table(f"After {steps} steps", ("picture", "measure", "of the network", "of the trivial answer"), rows)


@app.command("compare")
def compare(
    words: Annotated[
        list[str],
        typer.Argument(metavar="NAME... [key=value...]", help="Tasks or losses, A+B for a sum of several; and options such as steps=500."),
    ],
    store: Annotated[Path, typer.Option("--store", metavar="DIR", help="What all are pretrained on.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where tables, plot and runs go.")],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DATASET", help="A folder with dataset.json: each is fine-tuned on a few of its cases.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="A YAML file with the options of all runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Pretrain the same network with each task or loss at the same budget, and set them side by side: CSV, LaTeX table and plot.

    Run again it goes on where it was cut off.
    """
    from medssl.train.config import read_config
    from medssl.transfer.comparing import COLUMNS, CompareOptions, compare

    options = read_config(CompareOptions, config, [word for word in words if "=" in word], {}, "comparison")
    rows = compare([word for word in words if "=" not in word], store, out, data, options)
    if as_json:
        print_json({"rows": [vars(row) for row in rows]})
    else:
        print_table("Comparison", COLUMNS, [row.row() for row in rows])
    say(f"{out / 'comparison.csv'}, comparison.tex, comparison.png")


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="What the task is called in configurations, such as my-denoising.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the folder medssl-NAME is written.")] = Path(),
) -> None:
    """Write a package with a small whole pretext task, to be changed: module, pyproject.toml, test and README."""
    from medssl.testing.writing import write_plugin

    folder = write_plugin(name, out)
    say(f"wrote {folder}. Next: pip install -e '{folder}[test]'; medssl plugins check {name}")


def _by_reason(broken: Mapping[str, Sequence[Checked]]) -> Iterator[tuple[str, str, str]]:
    """A row a reason: most checks of a plugin fail for the same one."""
    for name, some in broken.items():
        reasons = Counter(one.why for one in some)
        for why, count in reasons.items():
            first = next(one.check for one in some if one.why == why)
            yield name, first if count == 1 else f"{first} and {count - 1} more", why


def _row(name: str, kind: str, cls: type[Any], provider: Provider) -> dict[str, str]:
    summary = (inspect.getdoc(cls) or "").split("\n", 1)[0]
    return {"name": name, "kind": kind, "package": provider.package, "version": provider.version, "what": summary}
