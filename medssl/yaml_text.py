"""YAML into plain values, within limits: of size, depth and what aliases unfold to; a key that is there twice is an error.

Everything here raises `ValueError` with one line that says what is wrong and where.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from medssl.files import open_regular

MOST_BYTES = 2**18
MOST_VALUES = 10_000
"""Keys, items and values, each counted as often as an alias repeats it."""
MOST_LEVELS = 50
LONGEST_NUMBER = 40
"""Characters; the largest whole number that anything takes has 19."""

FLOAT = ("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))
"""A number that YAML 1.1 takes for a text: `1e-3`."""
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_DATE = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with two differences: `1e-3` is a number, which it reads as text, and 2024-01-31 is a text, which it reads as a date."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(*FLOAT)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; raises `OSError` too."""
    with open_regular(path) as file:
        content = file.read(MOST_BYTES + 1)
    try:
        return parse_yaml(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8 text") from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML text."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} characters")
    try:
        loader = _Loader(text)
        _measure(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"{error.problem or error.context}{_line(mark) if mark else ''}") from error
    except (yaml.YAMLError, ArithmeticError, TypeError, AttributeError) as error:
        # The last two: what PyYAML raises for values that are not what their tag says.
        raise ValueError(" ".join(str(error).split())[:200]) from error


def _measure(text: str) -> None:
    """Walk through the text without building anything: how deep it is, and how much it is once every alias is unfolded."""
    total, depth = 0, 0
    opened: list[tuple[str | None, int]] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(
                    f"the alias '*{str(event.anchor)[:40]}' stands for something that holds it, or for nothing{_line(event.start_mark)}"
                )
            total += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, total))
            total += 1
            if event.anchor is not None:
                sizes.pop(event.anchor, None)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        depth = len(opened)
        if depth > MOST_LEVELS:
            raise ValueError(f"it is nested in more than {MOST_LEVELS} levels{_line(event.start_mark)}")
        if total > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES} values, counting what aliases repeat{_line(event.start_mark)}")


def _check(node: yaml.Node) -> None:
    """Keys that are there twice, and numbers that nobody means."""
    if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(node.value)} characters{_line(node.start_mark)}")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item)
    if isinstance(node, yaml.MappingNode):
        seen: dict[tuple[str, str], yaml.Node] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                first = seen.setdefault((key.tag, key.value), key)
                if first is not key:
                    lines = f"lines {first.start_mark.line + 1} and {key.start_mark.line + 1}"
                    raise ValueError(f"the key '{key.value[:40]}' is there twice, in {lines}; keep one of them")
            _check(key)
            _check(value)


def _line(mark: Any) -> str:
    return f" (line {mark.line + 1})"
