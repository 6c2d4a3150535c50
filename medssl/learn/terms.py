"""The terms of an objective: from mappings in a configuration to task and loss objects, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from medssl.config import BaseOptions, check, shown
from medssl.contracts import ConsistencyLoss, NetworkInfo, PretextTask
from medssl.errors import ConfigError
from medssl.learn.promises import NAME, check_built, check_class
from medssl.plugins import Plugins, blame

Kind = Literal["tasks", "consistency"]
TermClass = type[PretextTask] | type[ConsistencyLoss]
T = TypeVar("T", PretextTask, ConsistencyLoss)
MOST_TERMS = 64
"""Tasks, and losses, of a run: each costs a head and its share of every step, and thousands of them minutes before the first."""


class TermOptions(BaseModel):
    """One entry of `tasks:` or `consistency:`; every other key is an option of the task or loss itself."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True, allow_inf_nan=False)

    name: str
    """Which pretext task or consistency loss (`medssl plugins list`)."""
    weight: float = Field(default=1.0, gt=0)
    """What its loss is multiplied by in the sum; where terms take turns, how often it has one."""
    as_: str | None = Field(default=None, alias="as", pattern=NAME, max_length=64)
    """What it is called in this run (in metrics, pictures and checkpoints), where a name occurs twice; null: its name."""

    @property
    def options(self) -> dict[str, Any]:
        """The options of the term itself, unchecked."""
        return dict(self.model_extra or {})

    def document(self) -> dict[str, Any]:
        """The entry as a configuration has it."""
        renamed = {"as": self.as_} if self.as_ is not None else {}
        return {"name": self.name, "weight": self.weight, **renamed, **self.options}


@dataclass(frozen=True)
class BuiltTerm(Generic[T]):
    """A term of a run as a module."""

    key: str
    """What it is called in the run."""
    module: T
    weight: float


@dataclass(frozen=True)
class Term(Generic[T]):
    """A term that is known and checked, not yet built."""

    kind: Kind
    key: str
    """What it is called in the run: its name, or what `as:` says."""
    cls: type[T]
    options: BaseOptions
    weight: float
    built: T | None = None
    """Set where a task or loss object was handed over as it is."""

    def build(self, network: NetworkInfo) -> BuiltTerm[T]:
        """The module, for a network of which `network` is known."""
        if self.built is not None:
            return BuiltTerm(self.key, self.built, self.weight)
        with blame(self.cls, f"__init__ of '{self.key}'"):
            built = self.cls(self.options, network)
        check_built(built, self.key)
        return BuiltTerm(self.key, built, self.weight)

    def document(self) -> dict[str, Any]:
        """Name, weight and every option with its value, as a configuration has them."""
        renamed = {"as": self.key} if self.key != self.cls.name else {}
        return {"name": self.cls.name, "weight": self.weight, **renamed, **self.options.model_dump(mode="json")}


BASES: dict[Kind, type[nn.Module]] = {"tasks": PretextTask, "consistency": ConsistencyLoss}
"""What the classes of each kind derive from."""
COLUMNS = frozenset({"loss", "step", "learning_rate", "gradient_norm", "skipped", "dice"})
"""What a row of `metrics.jsonl` holds beside the terms."""


def check_keys(terms: Sequence[Term[Any]]) -> None:
    """Raise `ConfigError` where two terms of a run are called the same, or one as something else already is."""
    keys = [term.key for term in terms]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"'{key}' is the name of two terms of this run. Call one of them otherwise: `as: NAME` beside its name.")
        if key in COLUMNS or hasattr(nn.ModuleDict(), key):
            what = "a column of metrics.jsonl" if key in COLUMNS else "a word of PyTorch's"
            raise ConfigError(f"no term can be called '{key}': that is {what}. Call it otherwise: `as: NAME` beside its name.")


def resolve_tasks(terms: Sequence[Any], plugins: Plugins) -> list[Term[PretextTask]]:
    """The `tasks:` of a configuration; an item may also be a name, a class, an object, or a pair of one of these.

    The second of a pair is a weight, or, beside a name or class, a mapping with options, `weight` and `as`.
    """
    return _resolve_all(terms, "tasks", PretextTask, plugins)


def resolve_losses(terms: Sequence[Any], plugins: Plugins) -> list[Term[ConsistencyLoss]]:
    """The `consistency:` of a configuration, in the same forms as `resolve_tasks`."""
    return _resolve_all(terms, "consistency", ConsistencyLoss, plugins)


def _resolve_all(terms: Sequence[Any], kind: Kind, base: type[Any], plugins: Plugins) -> list[Term[Any]]:
    if len(terms) > MOST_TERMS:
        raise ConfigError(f"{kind} lists {len(terms)} terms, and a run has at most {MOST_TERMS}. Leave some out.")
    return [_resolve(item, f"{kind}.{place}", kind, base, plugins) for place, item in enumerate(terms)]


def resolved_terms(kind: Kind, terms: Sequence[Any], plugins: Plugins) -> list[dict[str, Any]]:
    """The terms with every option filled in, for the run's `config.yaml`; raises `ConfigError` or `PluginError`."""
    found: Sequence[Term[Any]] = resolve_tasks(terms, plugins) if kind == "tasks" else resolve_losses(terms, plugins)
    return [term.document() for term in found]


def term_schemas(plugins: Plugins) -> dict[Kind, dict[str, Any]]:
    """JSON schemas of the keys `tasks` and `consistency`: lists of the installed tasks and losses with their options."""
    offers: dict[Kind, Mapping[str, TermClass]] = {"tasks": plugins.tasks(), "consistency": plugins.losses()}
    for kind, base in BASES.items():
        for cls in offers[kind].values():
            check_class(cls, base)
    return {
        kind: {"type": "array", "items": {"anyOf": [_schema(name, cls) for name, cls in sorted(found.items())]} if found else {}}
        for kind, found in offers.items()
    }


def _resolve(item: Any, where: str, kind: Kind, base: type[Any], plugins: Plugins) -> Term[Any]:
    if isinstance(item, Term):
        return item
    if isinstance(item, tuple) and len(item) == 2:
        return _resolve_pair(item, where, kind, base, plugins)
    if isinstance(item, base):
        check_class(type(item), base)
        check_built(item, item.name)
        return Term(kind, item.name, type(item), item.options, 1.0, item)
    if isinstance(item, type) and issubclass(item, base):
        return _configured({}, where, kind, base, plugins, item)
    if isinstance(item, str):
        item = {"name": item}
    if not isinstance(item, Mapping):
        raise ConfigError(
            f"{where}: a name, a mapping with `name`, `weight` and options, or in Python a class, an object or a pair (class, options) is "
            f"needed, not {shown(item)}."
        )
    return _configured(item, where, kind, base, plugins)


def _resolve_pair(item: tuple[Any, Any], where: str, kind: Kind, base: type[Any], plugins: Plugins) -> Term[Any]:
    first, second = item
    if isinstance(second, int | float):
        term = _resolve(first, where, kind, base, plugins)
        return replace(term, weight=check(TermOptions, {"name": term.cls.name, "weight": second}, where).weight)
    if isinstance(second, Mapping) and isinstance(first, str):
        return _configured({"name": first, **second}, where, kind, base, plugins)
    if isinstance(second, Mapping) and isinstance(first, type) and issubclass(first, base):
        return _configured(second, where, kind, base, plugins, first)
    raise ConfigError(
        f"{where}: a pair is (name, class or object, weight) or (name or class, options), not ({shown(first)}, {shown(second)})."
    )


def _configured(item: Mapping[str, Any], where: str, kind: Kind, base: type[Any], plugins: Plugins, cls: Any = None) -> Term[Any]:
    """The term of a mapping; `cls` where it is known, and need not be installed."""
    if cls is not None:
        check_class(cls, base)
    entry = check(TermOptions, item if cls is None else {"name": cls.name, **item}, where)
    named: Any = cls or _named(entry.name, kind, plugins)
    check_class(named, base)
    options = check(named.Options, entry.options, f"{where} ({entry.name})")
    return Term(kind, entry.as_ or entry.name, named, options, entry.weight)


def _named(name: str, kind: Kind, plugins: Plugins) -> TermClass:
    here, there = (plugins.tasks(), plugins.losses()) if kind == "tasks" else (plugins.losses(), plugins.tasks())
    if name not in here and name in there:
        right, what = ("consistency", "a consistency loss") if kind == "tasks" else ("tasks", "a pretext task")
        raise ConfigError(f"'{name}' is {what}. Put it under `{right}:`.")
    return plugins.task(name) if kind == "tasks" else plugins.loss(name)


def _schema(name: str, cls: TermClass) -> dict[str, Any]:
    schema = cls.Options.model_json_schema()
    definitions = schema.pop("$defs", {})
    entry = TermOptions.model_json_schema()["properties"]
    own = {key: _inline(value, definitions) for key, value in schema.get("properties", {}).items()}
    return {
        "title": name,
        "description": " ".join((cls.__doc__ or "").split()),
        "type": "object",
        "properties": {"name": {**entry["name"], "const": name}, "weight": entry["weight"], "as": entry["as"], **own},
        "required": ["name", *schema.get("required", ())],
        "additionalProperties": False,
    }


def _inline(node: Any, definitions: Mapping[str, Any]) -> Any:
    """The schema without references, so that it can be put anywhere in another."""
    if isinstance(node, Mapping):
        if "$ref" in node:
            return _inline(definitions[str(node["$ref"]).rsplit("/", 1)[-1]], definitions)
        return {key: _inline(value, definitions) for key, value in node.items()}
    return [_inline(value, definitions) for value in node] if isinstance(node, list) else node
