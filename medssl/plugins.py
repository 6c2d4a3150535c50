"""Finding, loading, naming, blaming and refusing plugins. Built per call from explicit arguments; there is no global.

`Plugins.load()` reads the entry points of the group `medssl`, imports what is wanted and registers it with pluggy. A plugin
that fails to import costs one warning that names its package, version and error; everything else goes on.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.util import module_from_spec, spec_from_file_location
from itertools import takewhile
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from medssl import hookspecs
from medssl.config import did_you_mean
from medssl.errors import MedsslError, MissingInput, PluginError, UsageError

if TYPE_CHECKING:
    from medssl.contracts import ConsistencyLoss, PretextTask
    from medssl.run import Run
    from medssl.source import ArchiveSource

Offered = TypeVar("Offered")

GROUP = "medssl"
CORE = "medssl"
KNOWN_PACKAGES = {
    "inpainting": "medssl-inpainting",
    "context-encoder": "medssl-inpainting",
    "restoration": "medssl-inpainting",
    "masked-autoencoder": "medssl-inpainting",
    "relative-position": "medssl-placement",
    "jigsaw": "medssl-placement",
    "position": "medssl-placement",
    "volume-contrast": "medssl-placement",
    "slice-order": "medssl-ordering",
    "order-verification": "medssl-ordering",
    "frame-order": "medssl-ordering",
    "next-slice": "medssl-ordering",
    "colorization": "medssl-colorization",
    "cross-modality": "medssl-colorization",
    "autoencoder": "medssl-corruption",
    "denoising": "medssl-corruption",
    "spot-artifacts": "medssl-corruption",
    "rotation": "medssl-rotation",
    "region-matching": "medssl-regions",
    "agreement": "medssl-consistency",
    "uda": "medssl-consistency",
    "simclr": "medssl-consistency",
    "moco": "medssl-consistency",
    "moco-v3": "medssl-consistency",
    "pirl": "medssl-consistency",
    "byol": "medssl-consistency",
    "simsiam": "medssl-consistency",
    "vicreg": "medssl-consistency",
    "barlow": "medssl-consistency",
    "dino": "medssl-consistency",
    "ibot": "medssl-consistency",
    "dense-agreement": "medssl-consistency",
    "voxel-contrast": "medssl-consistency",
}
"""Names that our own plugin packages bring: what an error tells a user to install. The core imports none of them."""

KNOWN_SCHEMES = {"dicomweb": "medssl-dicomweb"}
"""Likewise of archives."""


PLUGIN_FILES = "MEDSSL_PLUGIN_FILES"
"""The environment's variable with the paths of Python files that are plugins, separated as PATH is: worker processes read it too."""


class PluginWarning(UserWarning):
    """A plugin could not be used; the run goes on without it."""


@dataclass(frozen=True)
class Provider:
    """Where something comes from."""

    plugin: str
    """Name of the entry point."""
    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class Broken:
    """A plugin that was found and could not be loaded."""

    provider: Provider
    error: str


class Plugins:
    """The installed plugins of one call."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._providers: dict[str, Provider] = {}
        self.broken: list[Broken] = []

    @classmethod
    def load(cls, extra: Mapping[str, object] | None = None, environ: Mapping[str, str] = os.environ) -> Plugins:
        """All installed plugins, minus `MEDSSL_DISABLE=name,name`, or only `MEDSSL_ONLY=name,name` beside the core's own.

        `MEDSSL_PLUGIN_FILES` names Python files that count as plugins too; `extra` registers further objects with hook implementations
        by name, as tests and notebooks do.
        """
        plugins = cls()
        for entry, provider in _wanted(environ):
            plugins._load_entry(entry, provider)
        for path in dict.fromkeys(Path(path).absolute() for path in environ.get(PLUGIN_FILES, "").split(os.pathsep) if path):
            plugins.register(plugin_of_file(path), Provider(path.stem, str(path), "(a file)"))
        for name, module in (extra or {}).items():
            plugins.register(module, Provider(name, name, "in this process"))
        return plugins

    def register(self, module: object, provider: Provider) -> None:
        """Add one object with hook implementations; unknown hooks and wrong signatures raise `PluginError`."""
        known = {name for name in dir(hookspecs) if name.startswith("medssl_")}
        offered = {name for name in dir(module) if name.startswith("medssl_") and self._is_hook(module, name)}
        for name in sorted(offered - known):
            raise PluginError(f"plugin '{provider.plugin}' ({provider}) implements an unknown hook '{name}'{did_you_mean(name, known)}")
        try:
            self._manager.register(module, provider.plugin)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"plugin '{provider.plugin}' ({provider}) cannot be registered: {error}") from error
        self._providers[provider.plugin] = provider

    def _is_hook(self, module: object, name: str) -> bool:
        return self._manager.parse_hookimpl_opts(module, name) is not None

    def _load_entry(self, entry: metadata.EntryPoint, provider: Provider) -> None:
        try:
            module: ModuleType = entry.load()
            self.register(module, provider)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a stranger's package raises must not stop the others
            self.broken.append(Broken(provider, f"{type(error).__name__}: {error}"))
            warnings.warn(
                f"plugin '{provider.plugin}' of {provider} cannot be loaded and is left out: {type(error).__name__}: {error}. "
                f"Reinstall or remove the package, or set MEDSSL_DISABLE={_disabling(provider)}.",
                PluginWarning,
                stacklevel=3,
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Plugins:
        """What is installed is shared by everything that was built with it."""
        return self

    @property
    def hook(self) -> Any:
        """pluggy's relay: `plugins.hook.medssl_encoder_end(network=...)`."""
        return self._manager.hook

    def providers(self) -> list[Provider]:
        """Every loaded plugin."""
        return list(self._providers.values())

    def tasks(self) -> dict[str, type[PretextTask]]:
        """Pretext task classes by name; two providers of one name raise `PluginError`."""
        return {name: cls for name, (cls, _) in self._named("medssl_pretext_tasks").items()}

    def losses(self) -> dict[str, type[ConsistencyLoss]]:
        """Consistency loss classes by name; two providers of one name raise `PluginError`."""
        return {name: cls for name, (cls, _) in self._named("medssl_consistency_losses").items()}

    def sources(self) -> dict[str, type[ArchiveSource]]:
        """Archive source classes by the scheme they open (`folder`, `zip`, `dicomweb`); two providers of one scheme raise `PluginError`."""
        found: dict[str, tuple[type[ArchiveSource], Provider]] = {}
        for cls, provider in self._named("medssl_archive_sources").values():
            for scheme in _schemes(cls, provider):
                if scheme in found:
                    raise PluginError(
                        f"archives of the scheme '{scheme}:' are opened by two packages, by {found[scheme][1]} and by {provider}. "
                        f"{_leave_out(provider, found[scheme][1])}"
                    )
                found[scheme] = (cls, provider)
        return {scheme: cls for scheme, (cls, _) in found.items()}

    def offered(self) -> dict[str, tuple[str, type[Any], Provider]]:
        """Everything a configuration can name: name -> (kind, class, provider); kind is "pretext task" or "consistency loss"."""
        kinds = {"pretext task": "medssl_pretext_tasks", "consistency loss": "medssl_consistency_losses"}
        return {name: (kind, cls, provider) for kind, hook in kinds.items() for name, (cls, provider) in self._named(hook).items()}

    def offer(self, name: str) -> tuple[str, type[Any], Provider]:
        """That of `offered` with this name; raises `UsageError` where there is none."""
        offered = self.offered()
        if name not in offered:
            raise UsageError(f"no plugin offers '{name}'{did_you_mean(name, offered) or '.'} See: medssl plugins list")
        return offered[name]

    def task(self, name: str) -> type[PretextTask]:
        """The pretext task of that name, or a `PluginError` that says what to install."""
        return self._find(name, self.tasks(), "pretext task")

    def loss(self, name: str) -> type[ConsistencyLoss]:
        """The consistency loss of that name, or a `PluginError` that says what to install."""
        return self._find(name, self.losses(), "consistency loss")

    def handlers(self, run: Run) -> list[tuple[Provider, Any]]:
        """The ignite or MONAI handlers that plugins bring for a run, with their packages; one that raises gives a `PluginError`."""
        found: list[tuple[Provider, Any]] = []
        for implementation in self._manager.hook.medssl_handlers.get_hookimpls():
            provider = self._providers[implementation.plugin_name]
            given = {"run": run} if "run" in implementation.argnames else {}
            function: Callable[..., Any] = implementation.function
            with blame(provider, "medssl_handlers"):
                found += [(provider, handler) for handler in function(**given) or ()]
        return found

    def _find(self, name: str, known: Mapping[str, type[Offered]], kind: str) -> type[Offered]:
        if name in known:
            return known[name]
        if name in KNOWN_PACKAGES:
            raise PluginError(f"the {kind} '{name}' is not installed. Install it with: pip install {KNOWN_PACKAGES[name]}")
        if not known:
            raise PluginError(
                f"no plugin with a {kind} is installed. Install one, for example: pip install medssl-inpainting medssl-consistency"
            )
        broken = "".join(f" ({item.provider} could not be loaded: {item.error})" for item in self.broken)
        raise PluginError(f"unknown {kind} '{name}'{did_you_mean(name, known)}{broken}")

    def _named(self, hook: str) -> dict[str, tuple[type[Any], Provider]]:
        found: dict[str, tuple[type[Any], Provider]] = {}
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            provider = self._providers[implementation.plugin_name]
            for cls in self._classes(implementation, provider, hook):
                if cls.name in found:
                    raise PluginError(
                        f"'{cls.name}' is offered twice, by {found[cls.name][1]} and by {provider}. "
                        f"{_leave_out(provider, found[cls.name][1])}"
                    )
                found[cls.name] = (cls, provider)
        return found

    def _classes(self, implementation: Any, provider: Provider, hook: str) -> Iterable[type[Any]]:
        with blame(provider, hook):
            classes = list(implementation.function())
        for cls in classes:
            if not isinstance(getattr(cls, "name", None), str):
                raise PluginError(f"{provider}: {hook} returned {cls!r}, which needs a class attribute `name`.")
        return classes


def _schemes(cls: type[Any], provider: Provider) -> tuple[str, ...]:
    schemes = getattr(cls, "schemes", None)
    if not isinstance(schemes, tuple) or not all(isinstance(scheme, str) for scheme in schemes):
        raise PluginError(
            f"{provider}: the archive source '{cls.name}' needs a class attribute `schemes`, a tuple of texts, not {schemes!r}."
        )
    return tuple(dict.fromkeys(schemes))


@contextmanager
def blame(provider: Provider | type[Any], doing: str) -> Iterator[None]:
    """Turn what a plugin raises into a `PluginError` that names its package and version; medssl's own errors pass through."""
    try:
        yield
    except MedsslError:
        raise
    except (Exception, SystemExit) as error:
        who = provider if isinstance(provider, Provider) else provider_of(provider)
        raise PluginError(f"plugin '{who.plugin}' ({who}) failed in {doing}: {type(error).__name__}: {error}") from error


def plugin_at_fault(error: BaseException) -> Provider | None:
    """The installed plugin whose code an exception came through last; None where it was raised without any."""
    modules = {entry.module.partition(".")[0]: provider for entry, provider in installed() if provider.package != CORE}
    found = None
    for frame, _ in walk_tb(error.__traceback__):
        found = modules.get(str(frame.f_globals.get("__name__", "")).partition(".")[0], found)
    return found


def provider_of(cls: type[Any]) -> Provider:
    """The installed package that a class comes from: that of the nearest entry point, else of its top-level module."""
    name = str(getattr(cls, "name", cls.__name__))
    parts = cls.__module__.split(".")
    # Editable installs list no modules of theirs, but their entry points name them.
    near = max(installed(), key=lambda pair: _shared(pair[0].module.split("."), parts), default=None)
    if near is not None and _shared(near[0].module.split("."), parts):
        return Provider(name, near[1].package, near[1].version)
    package = next(iter(_distributions().get(parts[0], ())), None)
    return Provider(name, package or parts[0], metadata.version(package) if package else "not installed as a package")


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two dotted names have in common from their start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@lru_cache(maxsize=1)
def _distributions() -> Mapping[str, Sequence[str]]:
    return metadata.packages_distributions()


def installed() -> list[tuple[metadata.EntryPoint, Provider]]:
    """Every entry point of the group with its package, the core's own first; nothing is imported."""
    found = []
    for entry in metadata.entry_points(group=GROUP):
        package, version = (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "0")
        found.append((entry, Provider(entry.name, package, version)))
    return sorted(found, key=lambda pair: (pair[1].package != CORE, pair[1].package, pair[1].plugin))


def plugin_of_file(path: Path) -> object:
    """A Python file as a plugin: its hook implementations, or without any the tasks and losses that it defines.

    Whoever names a file trusts it: it is run, once a process, and what it raises is an error and no warning.
    """
    module = sys.modules.get(path.stem)
    if module is None:
        spec = spec_from_file_location(path.stem, path) if path.is_file() and path.suffix == ".py" else None
        if spec is None or spec.loader is None:
            raise MissingInput(f"there is no Python file {path} to take as a plugin.")
        module = sys.modules[path.stem] = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[path.stem]
            raise PluginError(f"the plugin {path} cannot be loaded: {type(error).__name__}: {error}") from error
    if Path(getattr(module, "__file__", None) or "").resolve() != path.resolve():
        raise PluginError(f"the plugin {path} has the name of another module, {module.__name__}. Give the file another name.")
    if any(hasattr(value, f"{GROUP}_impl") for value in vars(module).values()):  # pluggy's mark
        return module
    return _of_classes(module, path)


def _of_classes(module: ModuleType, path: Path) -> object:
    from medssl.contracts import ConsistencyLoss, PretextTask

    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    tasks = [cls for cls in own if issubclass(cls, PretextTask)]
    losses = [cls for cls in own if issubclass(cls, ConsistencyLoss)]
    if not tasks and not losses:
        raise PluginError(f"the plugin {path} defines no PretextTask, no ConsistencyLoss and no hook. See docs/write-a-plugin.md.")

    class FromFile:
        @staticmethod
        @hookspecs.hookimpl
        def medssl_pretext_tasks() -> list[type[PretextTask]]:
            return tasks

        @staticmethod
        @hookspecs.hookimpl
        def medssl_consistency_losses() -> list[type[ConsistencyLoss]]:
            return losses

    return FromFile()


def _wanted(environ: Mapping[str, str]) -> Iterator[tuple[metadata.EntryPoint, Provider]]:
    """What is installed, minus `MEDSSL_DISABLE`, or only `MEDSSL_ONLY` beside the core's own."""
    disabled, only = _names(environ.get("MEDSSL_DISABLE")), _names(environ.get("MEDSSL_ONLY"))
    for entry, provider in installed():
        names = {provider.plugin, provider.package}
        if not names & disabled and (not only or provider.package == CORE or names & only):
            yield entry, provider


def plugin_modules(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The top-level modules of the installed plugins, the core's own aside; nothing is imported."""
    return frozenset(entry.module.partition(".")[0] for entry, provider in _wanted(environ) if provider.package != CORE)


def _disabling(provider: Provider) -> str:
    """What `MEDSSL_DISABLE` must be to leave out this plugin and no other."""
    same = [other for _, other in installed() if other.plugin == provider.plugin]
    return provider.plugin if len(same) < 2 else provider.package


def _leave_out(*doubled: Provider) -> str:
    """What to do about two of them: the core's own stay, and what was handed over in this process has no name outside it."""
    known = [provider for _, provider in installed() if provider.package != CORE]
    answer = next((_disabling(provider) for provider in doubled if provider in known), None)
    return f"Leave one out with MEDSSL_DISABLE={answer}." if answer else "Leave one out."


def _names(value: str | None) -> frozenset[str]:
    return frozenset(name.strip() for name in (value or "").split(",") if name.strip())
