"""Tasks and losses side by side: each pretrains the same network on the same crops for as long, and is fine-tuned alike.

Every run has its folder and goes on where it was cut off; the tables are written anew after each.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from medssl.config import BaseOptions, Seed, check
from medssl.errors import ConfigError, DataError, NetworkError, UsageError
from medssl.files import make_folder, write_atomically
from medssl.learn import beside_trivial
from medssl.networks import NetworkSpec, as_spec
from medssl.plugins import Plugins
from medssl.run import Run
from medssl.train import pretrain
from medssl.train.config import Device
from medssl.transfer.finetune import fine_tune
from medssl.volumes import CropLoader, DataOptions, Store, channels_of_crops

SCRATCH = "scratch"
"""The row without any pretraining."""
DIGITS = 4


class CompareOptions(BaseOptions):
    """What all runs of a comparison share."""

    network: NetworkSpec | None = None
    """The network; null: a U-Net of three levels with the sides and channels of the crops."""
    size: tuple[int, ...] = (64, 64, 64)
    """Sides of the crops in voxels, in pretraining and in fine-tuning."""
    batch: int = Field(default=4, ge=1, le=4096)
    """Crops of a batch."""
    steps: int = Field(default=1000, ge=1)
    """Of each pretraining."""
    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    """Peak learning rate of the pretraining."""
    seeds: int = Field(default=1, ge=1, le=100)
    """Runs of each task, with the seeds `seed`, `seed` + 1, ..."""
    seed: Seed = 0
    """The first seed."""
    labelled: int | None = Field(default=4, ge=1)
    """Labelled cases of the fine-tuning; null: all."""
    finetune_steps: int = Field(default=300, ge=1)
    """Of each fine-tuning."""
    options: dict[str, dict[str, Any]] = Field(default={})
    """By name of a task or loss: its own options, and its weight in a sum."""
    device: Device = "auto"
    """auto: the first GPU, else the CPU."""


@dataclass(frozen=True)
class Compared:
    """One task (or a sum of several) with one seed."""

    name: str
    seed: int
    loss: float | None = None
    """On crops that it was not trained on."""
    trivial: float | None = None
    """Of the answer that needs no learning, where there is one."""
    dice: float | None = None
    """The best of the fine-tuning on its validation cases; None without labelled cases."""
    refused: str = ""
    """Why this network cannot learn it."""

    def row(self) -> list[str]:
        """As text, an empty one for what there is not."""
        return ["" if value is None else f"{value:.{DIGITS}f}" if isinstance(value, float) else str(value) for value in vars(self).values()]


COLUMNS = tuple(field.name for field in fields(Compared))


def compare(
    names: Sequence[str],
    store: str | Path,
    out: str | Path,
    data: str | Path | Mapping[str, Any] | None = None,
    options: CompareOptions | Mapping[str, Any] | None = None,
    *,
    plugins: Plugins | None = None,
    verbose: bool = True,
) -> list[Compared]:
    """Pretrain with each of `names` on `store` at the same budget; with `data` fine-tune each, and a network from scratch, on few labels.

    A name is that of an installed task or loss, or several joined by `+`, which train as one sum. `data` is a folder with `dataset.json`,
    or options as of `data:` in a fine-tuning. Into `out` go `comparison.csv`, `comparison.tex`, `comparison.png` and the runs. Called
    again it goes on; what this network cannot learn is a row with the reason.
    """
    own = options if isinstance(options, CompareOptions) else check(CompareOptions, options or {}, "options of the comparison")
    plugins = plugins if plugins is not None else Plugins.load()
    terms = {name: _terms(name, own.options, plugins) for name in dict.fromkeys(names)}
    if not terms:
        raise UsageError("nothing to compare: name tasks or losses (see: medssl plugins list).")
    for name in own.options:
        plugins.offer(name)
    folder = make_folder(Path(out))
    shared = _Shared(own, Store(store), folder, data, plugins, verbose)
    rows: list[Compared] = []
    wanted = [*([SCRATCH] if data is not None else []), *terms]
    for name, number in product(wanted, range(own.seeds)):
        rows.append(shared.compared(name, terms.get(name, {}), own.seed + number))
        write_comparison(rows, folder)
    return rows


def _terms(name: str, options: Mapping[str, Mapping[str, Any]], plugins: Plugins) -> dict[str, list[Any]]:
    """`tasks` and `consistency` of a name, or of several joined by `+`."""
    found: dict[str, list[Any]] = {"tasks": [], "consistency": []}
    for part in map(str.strip, name.split("+")):
        kind, _, _ = plugins.offer(part)
        found["tasks" if kind == "pretext task" else "consistency"].append({"name": part, **options.get(part, {})})
    return found


@dataclass(frozen=True)
class _Shared:
    """What every run of a comparison has in common."""

    options: CompareOptions
    store: Store
    folder: Path
    data: str | Path | Mapping[str, Any] | None
    plugins: Plugins
    verbose: bool

    def compared(self, name: str, terms: Mapping[str, list[Any]], seed: int) -> Compared:
        """One row; its runs go on where they were cut off."""
        folder = self.folder / "runs" / name / f"seed-{seed}"
        loss = trivial = run = None
        if terms:
            try:
                run = self._pretrained(terms, seed, folder / "pretrained")
            except (ConfigError, DataError, NetworkError) as error:
                return Compared(name, seed, refused=str(error))
            loss, trivial = self._losses(run, name)
        dice = None if self.data is None else self._finetuned(run, seed, folder / "finetuned").best.dice
        return Compared(name, seed, loss, trivial, dice)

    def _pretrained(self, terms: Mapping[str, list[Any]], seed: int, folder: Path) -> Run:
        own = self.options
        config = {
            "network": self._network(),
            "data": self._crops().model_dump(mode="json", exclude_unset=True),
            **terms,
            "train": {"steps": own.steps, "learning_rate": own.learning_rate, "picture_every": 0, "device": own.device},
            "seed": seed,
        }
        return pretrain(config=config, out=folder, resume=True, verbose=self.verbose, plugins=self.plugins)

    def _finetuned(self, run: Run | None, seed: int, folder: Path) -> Run:
        own = self.options
        data = dict(self.data) if isinstance(self.data, Mapping) else {"dataset": str(self.data)}
        config = {
            "network": self._network(),
            # A network from scratch sees the images that the pretrained ones see.
            "preparation": self.store.preparation.model_dump(mode="json"),
            "data": {"size": list(own.size), "labelled": own.labelled, "spacing": self.store.manifest.spacing, **data},
            "train": {"steps": own.finetune_steps, "device": own.device},
            "seed": seed,
        }
        return fine_tune(
            config=config,
            pretrained=run.folder if run is not None else None,
            out=folder,
            resume=True,
            verbose=self.verbose,
            plugins=self.plugins,
        )

    def _losses(self, run: Run, name: str) -> tuple[float, float | None]:
        """The run's loss, and the trivial one, on the crops that would have come next."""
        objective: Any = run.objective
        loader = CropLoader(self.store, self._crops(), run.config.seed, first_step=run.state.steps, body=objective.wants_body)  # type: ignore[attr-defined]
        _, _, crops = next(iter(loader))
        found = beside_trivial(objective, crops.to(next(objective.parameters()).device), run.state.steps)
        value, easy = found.get(name, found["loss"])
        return value, easy

    def _crops(self) -> DataOptions:
        return DataOptions(store=str(self.store.folder), size=self.options.size, batch=self.options.batch)

    def _network(self) -> NetworkSpec:
        if self.options.network is not None:
            return as_spec(self.options.network)
        channels = len(channels_of_crops(self.store, self._crops()))
        unet = {"channels": [16, 32, 64, 128], "strides": [2, 2, 2], "num_res_units": 1}
        return NetworkSpec(name="UNet", spatial_dims=len(self.options.size), in_channels=channels, options=unet)


def write_comparison(rows: Sequence[Compared], folder: Path) -> None:
    """`comparison.csv`, one row a run; `comparison.tex` and `comparison.png`, one a name."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *(row.row() for row in rows)])
    write_atomically(folder / "comparison.csv", text.getvalue().encode())
    write_atomically(folder / "comparison.tex", latex_of(rows).encode())
    picture = io.BytesIO()
    plot_of(rows).save(picture, format="PNG")
    write_atomically(folder / "comparison.png", picture.getvalue())


def latex_of(rows: Sequence[Compared]) -> str:
    """A table with the mean over the seeds, and their standard deviation where there are several; needs the package booktabs."""
    lines = [r"\begin{tabular}{lrrr}", r"\toprule", r"task & loss & trivial & Dice \\", r"\midrule"]
    for name, some in _by_name(rows):
        values = ([getattr(row, what) for row in some] for what in ("loss", "trivial", "dice"))
        lines.append(" & ".join([name.replace("_", r"\_"), *(_spread(found) for found in values)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _by_name(rows: Sequence[Compared]) -> Iterator[tuple[str, list[Compared]]]:
    for name in dict.fromkeys(row.name for row in rows):
        yield name, [row for row in rows if row.name == name]


def _spread(values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "--"
    return f"{mean(there):.3f}" + (rf" $\pm$ {stdev(there):.3f}" if len(there) > 1 else "")


def plot_of(rows: Sequence[Compared]) -> Image.Image:
    """A bar a name and a dot a seed: Dice, or without fine-tuning the loss as a share of the trivial answer's."""
    by_dice = any(row.dice is not None for row in rows)
    shares = {name: [value for row in some if (value := _bar(row, by_dice)) is not None] for name, some in _by_name(rows)}
    left, width, line = 240, 400, 26
    top = max([1.0, *(value for values in shares.values() for value in values)])
    image = Image.new("RGB", (left + width + 80, line * (len(shares) + 2)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    draw.text(
        (8, 5), "Dice, on validation cases" if by_dice else "loss / loss of the trivial answer (less is better)", fill="black", font=font
    )
    for place, (name, values) in enumerate(shares.items(), start=1):
        y = place * line + 8
        draw.text((8, y), name, fill="black", font=font)
        if not values:
            draw.text((left, y), "-", fill="black", font=font)
            continue
        draw.rectangle((left, y + 2, left + width * mean(values) / top, y + line - 10), fill=(86, 180, 233))
        for value in values:
            x = left + width * value / top
            draw.ellipse((x - 3, y + 5, x + 3, y + 11), fill="black")
        draw.text((left + width * max(values) / top + 10, y), f"{mean(values):.3f}", fill="black", font=font)
    return image


def _bar(row: Compared, by_dice: bool) -> float | None:
    if by_dice:
        return row.dice
    return row.loss / row.trivial if row.loss is not None and row.trivial else None
