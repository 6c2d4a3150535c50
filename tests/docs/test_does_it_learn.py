"""The experiment that asks whether tasks and losses teach anything, with a budget of seconds."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "docs" / "experiments"


@pytest.fixture(autouse=True)
def beside_its_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the script is started by its path."""
    monkeypatch.syspath_prepend(str(FOLDER))


def script() -> Any:
    return runpy.run_path(str(FOLDER / "does_it_learn.py"))["main"]


def test_rows_are_made_once_and_become_tables(tmp_path: Path) -> None:
    rows, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    words = ["run", str(tmp_path / "no hippocampus"), "--work", str(tmp_path / "work"), "--rows", str(rows)]
    words += ["--voxels", "3e5", "--seeds", "0", "--tests", "2", "--batches", "2", "--only", "random weights: UNet, frames", "frame-order"]
    assert script()(words) == 0
    first = rows.read_text()
    random, trained = map(json.loads, first.splitlines())
    assert random["steps"] == 0 and trained["steps"] == 5
    assert trained["metrics"][0]["name"] == "accuracy" and trained["metrics"][0]["trivial"] == pytest.approx(1 / 24, abs=1e-4)
    assert trained["random"] == random["subject"] and set(trained["dice"]) == {"1", "4"}
    assert script()(words) == 0
    assert rows.read_text() == first
    page.write_text("before\n<!-- rows: begin -->\nold\n<!-- rows: end -->\nafter\n")
    assert script()(["table", str(rows), "--page", str(page)]) == 0
    text = page.read_text()
    assert "| frame-order | frames |" in text and "old" not in text and text.startswith("before") and text.endswith("after\n")


def test_every_installed_task_and_loss_is_tried() -> None:
    from subjects import random_of, subjects

    from medssl.plugins import Plugins

    plugins = Plugins.load()
    found = subjects(plugins)
    names = {one.name for one in found}
    assert {*plugins.tasks(), *plugins.losses()} <= names and len(names) == len(found)
    assert {random_of(one) for one in found} <= names


def test_a_linear_head_reads_what_is_there_and_nothing_else() -> None:
    from reading_out import linear_head

    draw = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 3, (4000,), generator=draw)
    told = torch.nn.functional.one_hot(classes, 3) + 0.1 * torch.randn(4000, 3, generator=draw)
    assert linear_head([(told, classes)], [(told, classes)], 0) > 0.99
    assert linear_head([(torch.randn(4000, 3, generator=draw), classes)], [(torch.randn(4000, 3, generator=draw), classes)], 0) < 0.5


def test_the_effective_rank_counts_directions() -> None:
    from reading_out import effective_rank

    draw = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(300, 8, generator=draw))[0]
    assert effective_rank(basis[:, :5] @ torch.randn(5, 5, generator=draw).svd()[0]) == pytest.approx(5, abs=0.1)
    assert effective_rank(basis[:, :1].expand(-1, 8)) == pytest.approx(1)


def test_the_same_voxel_and_crop_are_found_by_maps_that_tell_them_apart() -> None:
    """A network that shows each voxel the brightness of an image of places finds them, whatever the view did; a constant finds nothing."""
    from reading_out import crops_found_again, voxels_found_again

    from medssl.augment import ViewOptions
    from medssl.testing import make_crops

    crops = make_crops(4, (24, 24), channels=3)
    places = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 24)] * 2, indexing="ij"))
    shown = torch.cat([places, places.prod(dim=0, keepdim=True)]).expand(4, -1, -1, -1)
    still = ViewOptions(contrast=0, gamma=1, noise=0, blur=0)

    class Map:
        def __init__(self, told: bool) -> None:
            self.told = told

        def trunk(self, images: torch.Tensor, needs: Any) -> dict[str, torch.Tensor]:
            return {"feature_map": images if self.told else images * 0 + 1}

        def embeddings(self, batches: Any, inputs: Any) -> torch.Tensor:
            return torch.cat([inputs(one).mean(dim=(2, 3)) if self.told else torch.ones(4, 3) for one in batches])

    found: Any = voxels_found_again
    assert (
        found(Map(told=True), crops.with_images(shown.contiguous()), still, 0, 0) > 0.6 > 0.1 > found(Map(told=False), crops, still, 0, 0)
    )
    again: Any = crops_found_again
    assert again(Map(told=True), crops, ViewOptions(flip=0.5, rotate=0, scale=1, shift=0, contrast=0, gamma=1, noise=0, blur=0), 0, 0) == 1
