"""Options and configurations: what is right passes, what is wrong names its path and the nearest right key."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from medssl.config import BaseOptions, Seed, check, did_you_mean, dump_config, load_config, options_table, with_overrides
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
        ({"part": {"ratio": 2}}, "'part.ratio' must be less than 1, not 2"),
        ({"part": {"fill": "black"}}, "'part.fill' must be 'zero' or 'mean', not 'black'"),
        ({"steps": "many"}, "'steps' must be a whole number, not 'many'"),
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
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
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


def unfolding() -> str:
    """Ten lines that are a thousand million values."""
    lines = [f"{name}: &{name} [{', '.join(['*' + before] * 10)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join(["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]", *lines])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (unfolding(), "more than 10000 values, counting what aliases repeat (line 4)"),
        ("a: &a [*a]", "the alias '*a' stands for something that holds it"),
        ("a: *b", "the alias '*b'"),
        ("a: [" + "{name: x}, " * 20_000 + "]", "more than 10000 values"),
        ("a: " + "y" * 23_000_000, "more than 262144 characters"),
        ("train: {steps: 1}\nseed: 3\ntrain: {steps: 2}", "the key 'train' is there twice, in lines 1 and 3"),
        ("a:\n  - {b: 1, c: 2, b: 3}", "the key 'b' is there twice, in lines 2 and 2"),
        ("a: " + "9" * 5_000, "a number of 5000 characters (line 1)"),
        ("a: 0x" + "f" * 5_000, "a number of 5002 characters"),
        ("a: " + "[" * 20_000 + "]" * 20_000, "nested in more than 50 levels (line 1)"),
        ("a: " + "{b: " * 20_000, "nested in more than 50 levels"),
        ("- " * 20_000, "nested in more than 50 levels"),
        ("a: [1\n", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: !!timestamp x", "cannot be read as YAML"),
        ("a: !!int x", "cannot be read as YAML"),
        ("? [1, 2]\n: 3", "unhashable key (line 1)"),
        ("a: \0", "special characters are not allowed"),
        ("---\na: 1\n---\nb: 2", "another document"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_file_that_nobody_would_write_is_one_line_at_once(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    said = str(caught.value)
    assert message in said and said.count("\n") == 0 and len(said) < 300 + len(str(file))
    with pytest.raises(ConfigError):
        with_overrides({}, ["x=" + text])
    assert time.process_time() - started < 5


def test_an_alias_may_repeat_a_little_and_merge(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("a: &size [96, 96]\nb: *size\nc: &c {d: 1}\ne: {<<: *c, f: 2}\n")
    assert load_config(tmp_path / "run.yaml") == {"a": [96, 96], "b": [96, 96], "c": {"d": 1}, "e": {"d": 1, "f": 2}}


def test_a_date_is_the_text_that_was_written(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("from: 2024-01-31\n")
    assert load_config(tmp_path / "run.yaml") == {"from": "2024-01-31"}


def test_a_file_that_is_no_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="byte 3 is no UTF-8 text"):
        load_config(tmp_path / "run.yaml")


class Seeded(BaseOptions):
    """Values of several types."""

    seed: Seed = 0
    spacing: float | tuple[float, float, float] | None = None
    values: dict[int, int | Literal["ignore"]] = Field(default_factory=dict)
    origin: str | None = Field(None, alias="from")
    parts: tuple[Inner, ...] = ()
    place: str = Field("auto", pattern="^(auto|cpu)$")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": 2**70}, "'seed' must be less than 9223372036854775808, not 1180591620717411303424"),
        ({"seed": 16**5000}, "not a number of very many digits"),
        ({"seed": -1}, "'seed' must be at least 0, not -1"),
        ({"spacing": "x"}, "'spacing' must be a number or a list, not 'x'"),
        ({"spacing": [1, "x", 2]}, "'spacing.1' must be a number, not 'x'"),
        ({"values": {1: "ignored"}}, "'values.1' must be a whole number or 'ignore', not 'ignored'"),
        ({"parts": [3]}, "'parts.0' must be a mapping of keys, not 3"),
        ({"parts": 3}, "'parts' must be a list, not 3"),
        ({"place": "gpu"}, "'place' must be of the form (auto|cpu), not 'gpu'"),
        ({"origin": 7}, "unknown key 'origin'"),
        ({"zzz": 1}, "Known: from, parts, place, seed, spacing, values."),
        ({"from": ["x" * 10**6] * 1000}, "'from' must be a text, not ["),
        ({"y" * 10**6: 1}, "unknown key 'yyy"),
        ({"parts": [{"ratio": 2}] * 100_000}, "; and 99992 more"),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, str) else None,
)
def test_what_is_needed_is_said_in_plain_words_and_the_value_in_a_few(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(Seeded, values)
    said = str(caught.value)
    assert message in said and len(said) < 1000
    assert not [word for word in ("nput should", "valid", "parse", "instance", "Value error", "extra") if word in said]


def test_a_text_that_looks_like_a_number_stays_a_text(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(dump_config(Seeded.model_validate({"from": "1e-3"})))
    assert load_config(tmp_path / "run.yaml")["from"] == "1e-3"
