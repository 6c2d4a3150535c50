"""Tasks side by side: one budget, one row a run, tables and plot, and no work done twice."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medssl.errors import UsageError
from medssl.transfer.comparing import SCRATCH, Compared, compare, latex_of, plot_of
from medssl.volumes import make_store

OPTIONS: dict[str, Any] = {
    "network": {"name": "UNet", "spatial_dims": 3, "in_channels": 1, "options": {"channels": [8, 16], "strides": [2]}},
    "size": [8, 8, 8],
    "batch": 2,
    "steps": 3,
    "labelled": 2,
    "finetune_steps": 2,
    "device": "cpu",
    "options": {"inpainting": {"block": 4}},
}
NAMES = ["inpainting", "inpainting+position", "masked-autoencoder", "vicreg"]


@pytest.fixture(scope="module")
def store(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison") / "store"
    make_store([cases / "images"], folder)
    return folder


def test_every_name_is_a_row_at_one_budget_and_a_second_call_goes_on(store: Path, cases: Path, tmp_path: Path) -> None:
    data = {"images": str(cases / "images"), "labels": str(cases / "labels")}
    rows = {row.name: row for row in compare(NAMES, store, tmp_path, data, OPTIONS, verbose=False)}
    assert list(rows) == [SCRATCH, *NAMES]
    assert all(0 <= rows[name].dice <= 1 for name in rows if name != "masked-autoencoder")
    assert rows["inpainting"].loss > 0 and rows["inpainting"].trivial > 0 and rows["vicreg"].trivial is None
    assert "ViT or UNETR" in rows["masked-autoencoder"].refused and rows["masked-autoencoder"].dice is None
    with (tmp_path / "comparison.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == list(rows)
    with Image.open(tmp_path / "comparison.png") as image:
        image.load()
    tables = [(tmp_path / f"comparison.{form}").read_bytes() for form in ("csv", "tex")]
    metrics = tmp_path / "runs/vicreg/seed-0/pretrained/metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == 3
    written = metrics.stat().st_mtime_ns
    compare(NAMES, store, tmp_path, data, OPTIONS, verbose=False)
    assert [(tmp_path / f"comparison.{form}").read_bytes() for form in ("csv", "tex")] == tables
    assert metrics.stat().st_mtime_ns == written


def test_each_seed_is_a_run_and_without_labels_there_is_no_dice(store: Path, tmp_path: Path) -> None:
    rows = compare(["inpainting"], store, tmp_path, options={**OPTIONS, "seeds": 2}, verbose=False)
    assert [(row.name, row.seed, row.dice) for row in rows] == [("inpainting", 0, None), ("inpainting", 1, None)]
    assert rows[0].loss != rows[1].loss


def test_names_that_nobody_offers_are_refused_before_anything_runs(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'inpainting'"):
        compare(["inpaintin"], store, tmp_path, verbose=False)
    with pytest.raises(UsageError, match="Did you mean 'inpainting'"):
        compare(["inpainting"], store, tmp_path, options={"options": {"inpaintin": {"block": 4}}}, verbose=False)
    with pytest.raises(UsageError, match="nothing to compare"):
        compare([], store, tmp_path, verbose=False)
    assert not list(tmp_path.iterdir())


def test_tables_and_plot_show_mean_and_spread() -> None:
    rows = [Compared("a_b", 0, 1.0, 2.0, 0.5), Compared("a_b", 1, 3.0, 2.0, 0.7), Compared("c", 0, refused="why")]
    table = latex_of(rows)
    assert r"a\_b & 2.000 $\pm$ 1.414 & 2.000 $\pm$ 0.000 & 0.600 $\pm$ 0.141 \\" in table
    assert r"c & -- & -- & -- \\" in table
    bars = plot_of(rows), plot_of([Compared("a_b", 0, dice=0.9), *rows[1:]])
    blue = [sum(count for count, color in image.getcolors(10**6) if color == (86, 180, 233)) for image in bars]
    assert 0 < blue[0] < blue[1]
    assert plot_of([Compared("a", 0, 1.0, 2.0)]).getcolors(10**6)
