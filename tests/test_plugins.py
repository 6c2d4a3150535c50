"""The plugin host: what is found, refused and blamed."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from medssl import hookimpl
from medssl.archive import ArchiveSource
from medssl.cli import main
from medssl.config import BaseOptions
from medssl.contracts import Crops, DenseHead, Draw, PretextBatch, PretextTask
from medssl.errors import PluginError
from medssl.plugins import CORE, Plugins, Provider, blame, installed, plugin_at_fault, provider_of

ONLY_CORE = {"MEDSSL_ONLY": "none-of-these"}


class Copy(PretextTask):
    """Give back what was shown."""

    name = "copy"
    answer = "values"

    class Options(BaseOptions):
        """None."""

    def head(self) -> DenseHead:
        return DenseHead(1)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(crops.images, crops.images)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return (prediction - batch.target).flatten(1).mean(1)


def offering(*classes: type) -> SimpleNamespace:
    return SimpleNamespace(medssl_pretext_tasks=hookimpl(lambda: classes))


def test_the_core_comes_in_through_the_same_door() -> None:
    assert {provider.plugin for entry, provider in installed() if provider.package == CORE} == {"archive", "networks"}
    assert "folder" in Plugins.load(environ=ONLY_CORE).sources()


def test_a_registered_task_is_found_by_its_name() -> None:
    plugins = Plugins.load({"mine": offering(Copy)}, environ=ONLY_CORE)
    assert plugins.task("copy") is Copy
    assert plugins.offered()["copy"][0] == "pretext task"


def test_two_providers_of_one_name_are_refused_and_both_are_named() -> None:
    with pytest.raises(PluginError, match=r"'copy' is offered twice, by first .* and by second"):
        Plugins.load({"first": offering(Copy), "second": offering(Copy)}, environ=ONLY_CORE).tasks()


def source_class(name: str, schemes: object = ("pacs",)) -> type[ArchiveSource]:
    return type(name, (ArchiveSource,), {"name": name, "schemes": schemes})


def source(name: str, schemes: object) -> SimpleNamespace:
    return SimpleNamespace(medssl_archive_sources=hookimpl(lambda: [source_class(name, schemes)]))


def test_two_providers_of_one_archive_scheme_are_refused_and_both_are_named() -> None:
    offered = {"first": source("pacs", ("dicomweb", "qido")), "second": source("other", ("wado", "dicomweb"))}
    for name in ("first", "second"):
        assert "dicomweb" in Plugins.load({name: offered[name]}, environ=ONLY_CORE).sources()
    with pytest.raises(PluginError, match=r"'dicomweb:' .* by first .* and by second"):
        Plugins.load(offered, environ=ONLY_CORE).sources()
    with pytest.raises(PluginError, match=r"'zip:' .* by medssl .* and by mine"):
        Plugins.load({"mine": source("packed", ("zip",))}, environ=ONLY_CORE).sources()


@pytest.mark.parametrize("schemes", ["dicomweb", ("dicomweb", 3), None])
def test_schemes_that_are_no_tuple_of_texts_are_refused(schemes: object) -> None:
    with pytest.raises(PluginError, match="mine .*'pacs' needs a class attribute `schemes`"):
        Plugins.load({"mine": source("pacs", schemes)}, environ=ONLY_CORE).sources()


def test_an_unknown_hook_is_refused_with_the_nearest_right_name() -> None:
    wrong = SimpleNamespace(medssl_pretext_task=hookimpl(lambda: [Copy]))
    with pytest.raises(PluginError, match="Did you mean 'medssl_pretext_tasks'"):
        Plugins.load({"mine": wrong}, environ=ONLY_CORE)


def test_a_hook_with_a_wrong_signature_is_refused() -> None:
    wrong = SimpleNamespace(medssl_pretext_tasks=hookimpl(lambda surprise: [Copy]))
    with pytest.raises(PluginError, match="cannot be registered"):
        Plugins.load({"mine": wrong}, environ=ONLY_CORE)


def test_without_plugins_the_error_says_what_to_install() -> None:
    plugins = Plugins.load(environ=ONLY_CORE)
    with pytest.raises(PluginError, match="pip install medssl-inpainting"):
        plugins.task("inpainting")
    with pytest.raises(PluginError, match="no plugin with a pretext task is installed"):
        plugins.task("my-own")


def test_an_unknown_name_gets_the_nearest_known_one() -> None:
    with pytest.raises(PluginError, match="unknown pretext task 'coppy'. Did you mean 'copy'"):
        Plugins.load({"mine": offering(Copy)}, environ=ONLY_CORE).task("coppy")


def test_what_a_plugin_raises_is_blamed_on_its_package() -> None:
    def broken() -> list[type]:
        raise RuntimeError("no such table")

    plugins = Plugins.load({"mine": SimpleNamespace(medssl_pretext_tasks=hookimpl(broken))}, environ=ONLY_CORE)
    with pytest.raises(PluginError, match=r"plugin 'mine' .* failed in medssl_pretext_tasks: RuntimeError: no such table"):
        plugins.tasks()


def test_a_plugin_that_ends_the_process_is_blamed_too() -> None:
    with pytest.raises(PluginError, match="failed in loss: SystemExit: 3"), blame(Copy, "loss"):
        raise SystemExit(3)


def test_the_package_of_a_class_is_known_also_where_it_is_installed_from_a_checkout() -> None:
    offered = Plugins.load().offered()
    assert offered
    for name, (_, cls, provider) in offered.items():
        assert (provider_of(cls).package, provider_of(cls).version) == (provider.package, provider.version), name
    assert provider_of(type("Mine", (), {"__module__": "__main__"})).version == "not installed as a package"


@pytest.mark.parametrize(
    ("entries", "hint"),
    [
        ({"acme": "brighter", "other": "darker"}, "MEDSSL_DISABLE=darker"),
        ({"acme": "same", "other": "same"}, "MEDSSL_DISABLE=other"),
        ({CORE: "archive", "other": "darker"}, "MEDSSL_DISABLE=darker"),
        ({"other": "darker", CORE: "archive"}, "MEDSSL_DISABLE=darker"),
    ],
)
def test_the_hint_leaves_out_one_plugin_and_never_the_core(entries: dict[str, str], hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (Provider(plugin, package, "1") for package, plugin in entries.items())
    monkeypatch.setattr("medssl.plugins.installed", lambda: [(None, first), (None, second)])
    plugins = Plugins()
    monkeypatch.setattr(plugins, "_named", lambda _: {"a": (source_class("a"), first), "b": (source_class("b"), second)})
    with pytest.raises(PluginError, match=f"are opened by two packages.*{hint}\\."):
        plugins.sources()


def test_blame_lets_our_own_errors_through_and_names_the_class_otherwise() -> None:
    with pytest.raises(PluginError, match="copy"), blame(Copy, "loss of task 'copy'"):
        raise ValueError("shape")
    with pytest.raises(PluginError, match="already explained"), blame(Copy, "loss"):
        raise PluginError("already explained")


def test_a_class_without_a_name_is_refused() -> None:
    with pytest.raises(PluginError, match="class attribute `name`"):
        Plugins.load({"mine": offering(int)}, environ=ONLY_CORE).tasks()


def test_draws_depend_on_seed_step_index_and_term_alone() -> None:
    whole = Draw(0, 5, torch.tensor([0, 1, 2, 3]), "inpainting")
    part = Draw(0, 5, torch.tensor([2, 3]), "inpainting")
    assert torch.equal(whole.uniform(4)[2:], part.uniform(4))
    assert torch.equal(whole.permutation(9)[2:], part.permutation(9))
    others = [Draw(1, 5, [2, 3], "inpainting"), Draw(0, 6, [2, 3], "inpainting"), Draw(0, 5, [2, 3], "rotation")]
    reference = Draw(0, 5, [2, 3], "inpainting").uniform(4)
    assert not any(torch.equal(reference, other.uniform(4)) for other in others)


def test_a_fork_is_independent_of_what_was_drawn_before() -> None:
    used, fresh = Draw(0, 0, [0], "t"), Draw(0, 0, [0], "t")
    used.normal(3)
    assert torch.equal(used.fork("view 1").integers(0, 100, 5), fresh.fork("view 1").integers(0, 100, 5))
    assert not torch.equal(fresh.fork("view 1").uniform(3), fresh.fork("view 2").uniform(3))


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    Draw(0, 0, [0, 1], "t").normal(5)
    assert torch.equal(before, torch.get_rng_state())


def raised_in_a_plugin() -> None:
    from medssl_inpainting import Inpainting

    Inpainting.loss(object(), torch.zeros(1), object())  # type: ignore[arg-type]


def test_an_exception_that_nobody_caught_is_its_plugins_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AttributeError) as raised:
        raised_in_a_plugin()
    provider = plugin_at_fault(raised.value)
    assert provider is not None and provider.package == "medssl-inpainting"
    assert plugin_at_fault(ValueError("of nobody")) is None
    for fault, who in ((raised_in_a_plugin, r"the plugin 'inpainting' \(medssl-inpainting "), (lambda: 1 / 0, "medssl:")):
        monkeypatch.setattr("medssl.cli.app.app", lambda *_, fault=fault, **__: fault())
        with pytest.raises(SystemExit):
            main(["doctor"])
        assert re.search(f"This is a fault in {who}", capsys.readouterr().err)
