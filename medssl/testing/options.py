"""Checks that hold for the options of tasks and losses alike."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml

from medssl.config import check, did_you_mean, options_table
from medssl.contracts import ConsistencyLoss, PretextTask
from medssl.errors import ConfigError, PluginError
from medssl.learn.promises import check_class


def take_over(suite: type[Any], term: type[Any] | None) -> None:
    """Class attributes of a suite from what the task or loss that it tries says of itself, where the suite does not say otherwise."""
    said = getattr(term, "suite", {})
    unknown = sorted(key for key in said if not hasattr(suite, key) or key in ("task", "loss"))
    if unknown:
        known = sorted(key for key in vars(suite.__mro__[1]).get("__annotations__", {}) if key not in ("task", "loss"))
        raise PluginError(f"`suite` of {term} says {unknown}, which its contract suite does not have{did_you_mean(unknown[0], known)}")
    for key, value in said.items():
        if key not in vars(suite):
            setattr(suite, key, value)


@contextmanager
def promised() -> Iterator[None]:
    """What a run would refuse of a plugin, as a test that fails."""
    try:
        yield
    except PluginError as error:
        raise AssertionError(str(error)) from error


def check_name_and_docs(cls: type[Any], base: type[Any]) -> None:
    """Class attributes as a run takes them, a docstring, and help and a default for every option."""
    with promised():
        check_class(cls, base)
    name = cls.name
    assert name == name.lower() and " " not in name, f"'{name}': names are lower case, words joined by hyphens."
    assert cls.__doc__ and cls.__doc__ != cls.__mro__[1].__doc__, f"{cls.__name__} needs a docstring: what it asks, and from which paper."
    for row in options_table(cls.Options):
        assert row["help"], f"the option '{row['option']}' of '{name}' has no help. Put a docstring under the field."
        assert row["default"] != "required", f"the option '{row['option']}' of '{name}' has no default."


def check_momentum(term: PretextTask | ConsistencyLoss) -> None:
    """Modules that the teacher follows exist, and its momentum lies between 0 and 1 all along the run."""
    asked = [term.teacher_momentum(step / 10) for step in range(11)]
    assert all(0 <= momentum <= 1 for momentum in asked), f"teacher_momentum gives {asked} along the run; it lies between 0 and 1."
    own = dict(term.named_children())
    assert set(term.teacher_follows) <= own.keys(), f"teacher_follows names {term.teacher_follows}; there is {sorted(own)}."
    asks = {"teacher", "teacher_answer"} & set(term.needs)
    assert asks or not term.teacher_follows, "teacher_follows names modules, and `needs` asks for no teacher."


def check_options_round_trip(cls: type[Any], given: Mapping[str, Any]) -> None:
    """Options survive JSON and YAML, are frozen, and refuse unknown keys."""
    options = check(cls.Options, given, cls.name)
    document = options.model_dump(mode="json")
    for kind, text in (("JSON", json.dumps(document)), ("YAML", yaml.safe_dump(document))):
        again = check(cls.Options, json.loads(text) if kind == "JSON" else yaml.safe_load(text), cls.name)
        assert again == options, f"the options of '{cls.name}' change on their way through {kind}: {options!r} became {again!r}."
    assert cls.Options.model_config.get("frozen"), f"the options of '{cls.name}' must stay frozen."
    try:
        check(cls.Options, {**given, "no_such_option_": 1}, cls.name)
    except ConfigError:
        return
    raise AssertionError(f"the options of '{cls.name}' accept unknown keys, so a misspelt option would be silently ignored.")
