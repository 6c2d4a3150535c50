"""Options and configurations: one YAML file plus `key.path=value`, checked, with "did you mean".

Options are frozen pydantic models, so the same line gives the check, the help, the docs table and the JSON schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path, PurePath
from reprlib import Repr
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medssl.errors import ConfigError, MissingInput
from medssl.faults import faults_as
from medssl.yaml_text import FLOAT, parse_yaml, read_yaml

Model = TypeVar("Model", bound=BaseModel)

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A seed that every generator of random numbers takes."""
MOST_PROBLEMS = 8
"""Problems of a configuration that one message names."""
LONGEST = 60
"""Characters of a given value that a message shows."""


class BaseOptions(BaseModel):
    """Frozen, strict about unknown keys. Subclass it and give every field a range and a `description`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping of a YAML file with `key.path=value` overrides applied; raises `ConfigError` or `MissingInput`."""
    file = Path(path)
    with faults_as(ConfigError, f"the configuration {file} cannot be read"):
        if not file.is_file():
            raise MissingInput(f"no configuration at {file}. Give the path of a YAML file.")
        try:
            content = read_yaml(file)
        except ValueError as error:
            raise ConfigError(f"{file} cannot be read as YAML: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds {type(content).__name__}, not a mapping of keys. See `medssl schema`.")
    return with_overrides(content, overrides)


def with_overrides(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `config` with each `key.path=value` set; list items are addressed by number (`tasks.0.ratio=0.5`)."""
    result: dict[str, Any] = deepcopy(dict(config))
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise ConfigError(f"'{_cut(override)}' is not of the form key.path=value, for example train.steps=100.")
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise ConfigError(f"the value of '{_cut(override)}' cannot be read as YAML: {error}.") from error
        _assign(result, path.split("."), value, _cut(override))
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
        return model.model_validate(_with_texts(dict(values)))
    except ValidationError as error:
        found = _problems(model, error)
        more = f"; and {len(found) - MOST_PROBLEMS} more" if len(found) > MOST_PROBLEMS else ""
        raise ConfigError(f"{where}: " + "; ".join(found[:MOST_PROBLEMS]) + more) from error


def _with_texts(values: Any) -> Any:
    """`values` with the text of every path: a configuration made in Python has paths where a file has texts."""
    if isinstance(values, PurePath):
        return str(values)
    if type(values) is dict:
        return {key: _with_texts(value) for key, value in values.items()}
    return type(values)(map(_with_texts, values)) if type(values) in (list, tuple) else values


_OF_A_UNION = re.compile(r"(int|float|str|bool|none|\[key\]|constrained-\w+|[a-z-]+\[.*)", re.DOTALL)
"""What pydantic adds to a path where a value may be of several types."""
_NEEDED = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "none_required": "null",
    "string_pattern_mismatch": "of the form {pattern}",
    "string_too_short": "a text of at least {min_length} characters",
    "string_too_long": "a text of at most {max_length} characters",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "int_parsing_size": "a smaller number",
}
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "tuple": "a list",
    "list": "a list",
    "iterable": "a list",
    "set": "a list",
    "dict": "a mapping of keys",
    "mapping": "a mapping of keys",
    "model": "a mapping of keys",
}


def _problems(model: type[BaseModel], error: ValidationError) -> list[str]:
    """One line a place: where a value may be of several types, what each of them needs is one need."""
    places: dict[tuple[Any, ...], list[Any]] = {}
    for problem in error.errors(include_url=False):
        loc = tuple(part for part in problem["loc"] if not (isinstance(part, str) and _OF_A_UNION.fullmatch(part)))
        places.setdefault(loc, []).append(problem)
    parents = {loc[:end] for loc in places for end in range(len(loc))}
    return [_describe(model, loc, found) for loc, found in places.items() if not (loc in parents and len(places) > 1 and loc)]


def _describe(model: type[BaseModel], loc: tuple[Any, ...], problems: Sequence[Any]) -> str:
    path, first = _cut(".".join(str(part) for part in loc)), problems[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key '{path}'{did_you_mean(str(loc[-1])[:LONGEST], _keys_at(model, loc[:-1]))}"
    if first["type"] == "missing":
        return f"'{path}' is missing"
    needs = list(dict.fromkeys(filter(None, map(_needed, problems))))
    if not needs:
        message = first["msg"].removeprefix("Value error, ")
        text = f"{message[:1].lower()}{message[1:]}"[:500]
        return f"'{path}': {text}" if path else text
    return f"'{path or 'all of it'}' must be {' or '.join(needs)}, not {shown(first['input'])}"


def _needed(problem: Any) -> str | None:
    """What a value must be, in a few words; None where the problem says it itself."""
    kind, context = str(problem["type"]), problem.get("ctx", {})
    if kind in _NEEDED:
        values = {key: f"{value:g}" if isinstance(value, float) else str(value).strip("^$") for key, value in context.items()}
        return _NEEDED[kind].format(**values)
    return _TYPES.get(kind.partition("_")[0])


def shown(value: Any) -> str:
    """The beginning of a value, for a message; of mappings and objects the type."""
    if value is None:
        return "null"
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of very many digits"
    if not isinstance(value, str | int | float | bool | list | tuple):
        return value.__name__ if isinstance(value, type) else type(value).__name__
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = LONGEST
    short.maxlist = short.maxtuple = short.maxlevel = 4
    return _cut(short.repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST + 20 else f"{text[:LONGEST]}..."


def _keys_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Keys, as people write them, of the model that sits at `loc` inside `model`; empty where it cannot be told."""
    current: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        field = next((one for name, one in _fields(current).items() if part == name), None)
        current = _model_in(field.annotation) if field is not None else None
        if current is None:
            return []
    return list(_fields(current))


def _fields(model: Any) -> dict[str, Any]:
    """Key, as people write it -> field."""
    return {field.alias or name: field for name, field in getattr(model, "model_fields", {}).items()}


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
    names = sorted(str(one) for one in known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f". Did you mean '{near[0]}'?"
    return f". Known: {', '.join(names)}." if names else ""


class _Plain(yaml.SafeDumper):
    """Writes everything out, where YAML would have an alias for what occurs twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Plain.add_implicit_resolver(*FLOAT)


def dump_config(config: BaseModel) -> str:
    """The resolved configuration as YAML that can be run again as it stands."""
    return yaml.dump(config.model_dump(mode="json", by_alias=True, exclude_none=True), Dumper=_Plain, sort_keys=False, allow_unicode=True)


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
