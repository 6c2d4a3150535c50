"""Terms from a configuration and back, and their JSON schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from medssl_inpainting.inpainting import Inpainting

from medssl.errors import ConfigError
from medssl.learn import resolved_terms, term_schemas
from medssl.plugins import Plugins


def test_resolved_terms_say_everything_and_resolve_to_themselves() -> None:
    plugins = Plugins.load()
    found = resolved_terms("tasks", ["inpainting", {"name": "relative-position", "weight": 0.5, "gap": 7}], plugins)
    assert found[0]["name"] == "inpainting" and found[0]["weight"] == 1.0 and found[0]["ratio"] == 0.6
    assert found[1]["gap"] == 7 and found[1]["jitter"] == 2
    assert resolved_terms("tasks", json.loads(json.dumps(found)), plugins) == found
    assert resolved_terms("consistency", [{"name": "agreement"}], plugins)[0]["distance"] == "l2"


def test_a_range_survives() -> None:
    plugins = Plugins.load()
    found = resolved_terms("tasks", [{"name": "inpainting", "ratio": [0.3, 0.7]}], plugins)
    assert found[0]["ratio"] == [0.3, 0.7] and resolved_terms("tasks", found, plugins) == found


def test_wrong_options_name_their_path() -> None:
    with pytest.raises(ConfigError, match=r"consistency\.1 \(agreement\).*distance"):
        resolved_terms("consistency", ["simsiam", {"name": "agreement", "distance": "l3"}], Plugins.load())


def test_thousands_of_terms_are_refused_before_they_are_looked_at() -> None:
    with pytest.raises(ConfigError, match="tasks lists 3000 terms, and a run has at most 64"):
        resolved_terms("tasks", [{"name": "no-such-task"}] * 3000, Plugins.load())


@pytest.mark.parametrize("first", ["inpainting", Inpainting])
def test_a_pair_is_a_term_and_its_options_or_its_weight(first: Any) -> None:
    plugins = Plugins.load()
    pair = resolved_terms("tasks", [(first, {"ratio": 0.3, "weight": 2, "as": "holes"})], plugins)
    assert pair == resolved_terms("tasks", [{"name": "inpainting", "ratio": 0.3, "weight": 2, "as": "holes"}], plugins)
    assert resolved_terms("tasks", [(first, 0.5)], plugins)[0]["weight"] == 0.5


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            (Inpainting, "x"),
            r"tasks\.0: a pair is \(name, class or object, weight\) or \(.*, options\), not \(Inpainting, 'x'\)",
        ),
        ((Inpainting, {"ratoi": 1}), "unknown key 'ratoi'. Did you mean 'ratio'"),
        (("inpainting", -1), "'weight' must be greater than 0"),
        ((3, {}), "a pair is"),
        (3, r"a pair \(class, options\) is needed, not 3"),
    ],
    ids=str,
)
def test_a_term_in_another_form_says_which_there_are(term: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved_terms("tasks", [term], Plugins.load())


def test_the_schema_completes_every_installed_term() -> None:
    schemas = term_schemas(Plugins.load())
    tasks = {entry["properties"]["name"]["const"]: entry for entry in schemas["tasks"]["items"]["anyOf"]}
    losses = {entry["properties"]["name"]["const"]: entry for entry in schemas["consistency"]["items"]["anyOf"]}
    assert {"inpainting", "relative-position"} <= set(tasks) and {"agreement", "simsiam"} <= set(losses)
    entry = tasks["inpainting"]
    assert entry["properties"]["block"]["minimum"] == 1 and "hidden" in entry["properties"]["ratio"]["description"]
    assert entry["required"] == ["name"] and entry["additionalProperties"] is False
    assert "$ref" not in json.dumps(schemas)


def test_without_plugins_the_schema_still_is_one() -> None:
    empty: dict[Any, Any] = term_schemas(Plugins())
    assert empty["tasks"] == {"type": "array", "items": {}}
