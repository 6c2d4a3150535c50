"""Pictures of tasks and losses: the same each time, of the network's own answer, and one in the README of each package."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from medssl.demo.questions import STEPS, slices, write_question
from medssl.errors import PluginError
from medssl.plugins import KNOWN_PACKAGES, Plugins

pytest.importorskip("nilearn", reason="the pictures show a template that ships with nilearn")
ROOT = Path(__file__).resolve().parents[1]
TASKS = sorted(name for name in KNOWN_PACKAGES if name in Plugins.load().tasks())


def test_nothing_but_the_steps_changes_a_picture(tmp_path: Path) -> None:
    first, again, later = (write_question("inpainting", tmp_path / f"{number}.png", steps) for number, steps in enumerate((2, 2, 3)))
    assert first.file.read_bytes() == again.file.read_bytes() != later.file.read_bytes()
    assert first.measures == again.measures and set(first.measures) == {"inpainting"}


def test_a_loss_is_drawn_by_its_views(tmp_path: Path) -> None:
    drawn = write_question("vicreg", tmp_path / "a.png", 1)
    with Image.open(drawn.file) as image:
        assert image.width > 2 * 128
    assert not drawn.measures
    with pytest.raises(PluginError, match="unknown"):
        write_question("vicregg", tmp_path / "b.png", 1)


def test_crops_know_where_they_lie_and_differ() -> None:
    crops = slices(3, 4, 5)
    assert crops.images.shape == (3, 4, 64, 64) and crops.axis == "time"
    assert crops.images.min() >= -1 and (crops.images[0] != crops.images[1]).any()
    assert (crops.affine[:, :2, 2] + 2 * 63 < crops.extent[:, :2]).all() and (crops.affine[:, 2, 2] >= 60).all()


@pytest.mark.parametrize("name", [*TASKS, "simclr"])
def test_the_readme_shows_a_small_picture_of_each_task(name: str) -> None:
    package = ROOT / "plugins" / KNOWN_PACKAGES[name]
    file = package / "pictures" / f"{name}.png"
    assert f"plugins/{package.name}/pictures/{name}.png)" in (package / "README.md").read_text(encoding="utf-8"), "make pictures"
    assert file.stat().st_size < 60_000
    with Image.open(file) as image:
        image.load()
        assert image.width > 128
    assert f"{STEPS} steps" in (package / "README.md").read_text(encoding="utf-8")
