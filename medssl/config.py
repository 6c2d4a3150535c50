"""Options and configurations: one YAML file plus `key.path=value`, checked, with "did you mean".

Options are frozen pydantic models, so the same line gives the check, the help, the docs table and the JSON schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from medssl.errors import ConfigError, MissingInput
from medssl.faults import faults_as

Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-3` as text, people mean a number."""


_FLOAT = re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


class BaseOptions(BaseModel):
    """Frozen, strict about unknown keys. Subclass it and give every field a range and a `description`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping of a YAML file with `key.path=value` overrides applied; raises `ConfigError` or `MissingInput`."""
    file = Path(path)
    try:
        with faults_as(ConfigError, f"the configuration {file} cannot be read"):
            if not file.is_file():
                raise MissingInput(f"no configuration at {file}. Give the path of a YAML file.")
            content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds {type(content).__name__}, not a mapping of keys. See `medssl schema`.")
    return with_overrides(content, overrides)


def with_overrides(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `config` with each `key.path=value` set; list items are addressed by number (`tasks.0.ratio=0.5`)."""
    result: dict[str, Any] = deepcopy(dict(config))
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise ConfigError(f"'{override}' is not of the form key.path=value, for example train.steps=100.")
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"the value of '{override}' is not valid YAML: {error}") from error
        _assign(result, path.split("."), value, override)
    return result


def _assign(node: Any, keys: list[str], value: Any, override: str) -> None:
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        slot: Any = key
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise ConfigError(f"'{override}': {'.'.join(keys[:position])} is a list of {len(node)}, '{key}' is none of its items.")
            slot = int(key)
        elif not isinstance(node, dict):
            raise ConfigError(f"'{override}': {'.'.join(keys[:position])} is a single value and has no key '{key}'.")
        if last:
            node[slot] = value
        else:
            node = node[slot] if isinstance(node, list) else node.setdefault(slot, {})


def check(model: type[Model], values: Mapping[str, Any], where: str = "configuration") -> Model:
    """`model` filled with `values`; a `ConfigError` lists every problem with its path and, for unknown keys, the nearest right one."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        lines = [_describe(model, problem) for problem in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error


def _describe(model: type[BaseModel], problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _keys_at(model, problem["loc"][:-1])
        return f"unknown key '{path}'{did_you_mean(str(problem['loc'][-1]), known)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"'{path}' is missing"
    shown = problem["input"] if isinstance(problem["input"], str | int | float | bool | list) else type(problem["input"]).__name__
    return f"'{path}': {message[:1].lower()}{message[1:]} (given: {shown!r})" if path else message


def _keys_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Field names of the model that sits at `loc` inside `model`; empty where it cannot be told."""
    current: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            return []
        current = _model_in(fields[part].annotation)
        if current is None:
            return []
    return list(getattr(current, "model_fields", {}))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence naming the nearest known names, or all of them where none is near."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f". Did you mean '{near[0]}'?"
    return f". Known: {', '.join(names)}." if names else ""


def dump_config(config: BaseModel) -> str:
    """The resolved configuration as YAML that can be run again as it stands."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True, exclude_none=True), sort_keys=False, allow_unicode=True)


def options_table(model: type[BaseModel]) -> list[dict[str, str]]:
    """One row an option: name, type with range, default, help. The source of `plugins show` and of the docs."""
    schema = model.model_json_schema()
    required = set(schema.get("required", ()))
    return [
        {
            "option": name,
            "type": _type_text(prop, schema.get("$defs", {})),
            "default": "required" if name in required else _default_text(prop.get("default")),
            "help": " ".join(str(prop.get("description", "")).split()),
        }
        for name, prop in schema.get("properties", {}).items()
    ]


def _default_text(default: Any) -> str:
    return "its own defaults" if isinstance(default, Mapping) and default else str(default)


def _type_text(prop: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    if "$ref" in prop:
        return _type_text(defs[prop["$ref"].rsplit("/", 1)[-1]], defs)
    if "enum" in prop:
        return " | ".join(str(value) for value in prop["enum"])
    if "const" in prop:
        return str(prop["const"])
    if "anyOf" in prop:
        return " | ".join(_type_text(choice, defs) for choice in prop["anyOf"])
    text = str(prop.get("type", "any"))
    if text == "array":
        inner = prop.get("prefixItems", [prop.get("items", {})])
        return "[" + ", ".join(_type_text(item, defs) for item in inner) + "]"
    low, high = prop.get("minimum", prop.get("exclusiveMinimum")), prop.get("maximum", prop.get("exclusiveMaximum"))
    if low is None and high is None:
        return text
    left = "(" if "exclusiveMinimum" in prop or low is None else "["
    right = ")" if "exclusiveMaximum" in prop or high is None else "]"
    return f"{text} in {left}{'-inf' if low is None else low}, {'inf' if high is None else high}{right}"
