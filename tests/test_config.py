"""Options and configurations: what is right passes, what is wrong names its path and the nearest right key."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from medssl.config import BaseOptions, check, did_you_mean, dump_config, load_config, options_table, with_overrides
from medssl.errors import ConfigError, MissingInput


class Inner(BaseOptions):
    """Options of a part."""

    ratio: float = Field(0.6, gt=0, lt=1)
    """Share of the crop that is masked."""
    fill: Literal["zero", "mean"] = "zero"
    """What masked voxels show."""


class Outer(BaseOptions):
    """A configuration."""

    part: Inner = Inner()
    steps: int = Field(10, ge=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"part": {"ratoi": 0.5}}, "unknown key 'part.ratoi'. Did you mean 'ratio'?"),
        ({"stesp": 5}, "Did you mean 'steps'?"),
        ({"part": {"ratio": 2}}, "'part.ratio': input should be less than 1 (given: 2)"),
        ({"part": {"fill": "black"}}, "'part.fill': input should be 'zero' or 'mean'"),
        ({"steps": "many"}, "'steps': input should be a valid integer"),
        ({"part": {"ratio": float("nan")}}, "'part.ratio'"),
    ],
)
def test_a_wrong_configuration_says_what_and_where(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(Outer, values, where="run.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("run.yaml: ")


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check(Outer, {"steps": 0, "part": {"ratio": 2}})
    assert "'steps'" in str(caught.value)
    assert "'part.ratio'" in str(caught.value)


def test_overrides_reach_into_mappings_and_lists_and_leave_the_original_alone() -> None:
    original = {"tasks": [{"name": "inpainting"}], "train": {"steps": 1}}
    changed = with_overrides(original, ["tasks.0.ratio=1e-1", "train.steps=20", "data.size=[8, 8]"])
    assert changed == {"tasks": [{"name": "inpainting", "ratio": 0.1}], "train": {"steps": 20}, "data": {"size": [8, 8]}}
    assert original == {"tasks": [{"name": "inpainting"}], "train": {"steps": 1}}


@pytest.mark.parametrize("override", ["steps", "=3", "tasks.7.ratio=1", "train.steps.deep=1", "x=[1"])
def test_an_override_that_cannot_be_applied_is_an_error(override: str) -> None:
    with pytest.raises(ConfigError, match=override.split("=")[0].replace("[", r"\[") or "="):
        with_overrides({"tasks": [{}], "train": {"steps": 1}}, [override])


def test_files_and_overrides_read_numbers_alike(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("a: 1e-3\nb: 1.0e-3\n")
    assert load_config(file, ["c=1e-3"]) == {"a": 0.001, "b": 0.001, "c": 0.001}


def test_a_missing_or_broken_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="no configuration at"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="not a mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "bad.yaml")


@given(st.floats(0.01, 0.99), st.sampled_from(["zero", "mean"]), st.integers(1, 10**6))
def test_a_dumped_configuration_is_the_same_configuration(ratio: float, fill: Literal["zero", "mean"], steps: int) -> None:
    import yaml

    config = Outer(part=Inner(ratio=ratio, fill=fill), steps=steps)
    assert check(Outer, yaml.safe_load(dump_config(config))) == config


def test_the_options_table_shows_range_default_and_help() -> None:
    ratio, fill = options_table(Inner)
    assert ratio == {"option": "ratio", "type": "number in (0, 1)", "default": "0.6", "help": "Share of the crop that is masked."}
    assert fill["type"] == "zero | mean"


def test_did_you_mean_names_the_nearest_or_all() -> None:
    assert did_you_mean("inpaintng", ["inpainting", "rotation"]) == ". Did you mean 'inpainting'?"
    assert did_you_mean("xyz", ["b", "a"]) == ". Known: a, b."
    assert did_you_mean("xyz", []) == ""
