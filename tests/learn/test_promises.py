"""What plugins give wrongly is one message that names them, at run time and not in their own suite alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from medssl.augment import ViewOptions
from medssl.config import BaseOptions
from medssl.contracts import (
    ConsistencyLoss,
    Crops,
    DenseHead,
    Draw,
    Head,
    ModuleHead,
    Needs,
    NetworkInfo,
    PooledHead,
    PretextBatch,
    PretextTask,
    TaskNeeds,
    Views,
)
from medssl.errors import ConfigError, NetworkError, PluginError
from medssl.learn import build_objective, freeze_unreached, pictures, trivial
from medssl.plugins import Plugins
from medssl.testing import make_crops

UNET = {"name": "UNet", "spatial_dims": 2, "options": {"channels": [4, 8, 8], "strides": [2, 2]}}
SIZE = (16, 20)


class Repeat(PretextTask):
    """Repeat the crop: sound, and the parent of those that are not."""

    name: ClassVar[str] = "repeat"
    answer: ClassVar[Literal["values", "logits"]] = "values"

    def head(self) -> Head:
        return DenseHead(1)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(crops.images.clone(), crops.images)

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        return (prediction - batch.target).square().flatten(1).mean(1)


class Bright(Repeat):
    """How bright is the brightest voxel?"""

    def head(self) -> Head:
        return PooledHead(1)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(None, crops.images.flatten(1).amax(1, keepdim=True))


class Apart(ConsistencyLoss):
    """Distance of two embeddings."""

    name: ClassVar[str] = "apart"
    needs: ClassVar[frozenset[Needs]] = frozenset({"embeddings"})

    def forward(self, views: Views) -> Tensor:
        return (views.embeddings[0] - views.embeddings[1]).square().mean(1)


def changed(base: type[Any], **attributes: Any) -> type[Any]:
    """`base` with other methods or class attributes."""
    return type("Broken", (base,), {"__module__": __name__, "__doc__": "Broken.", **attributes})


def gives(**fields: Callable[[Crops], Any]) -> Callable[..., PretextBatch]:
    """`make` of `Repeat` with other fields."""

    def make(self: Repeat, crops: Crops, draw: Draw) -> PretextBatch:
        return replace(Repeat.make(self, crops, draw), **{name: value(crops) for name, value in fields.items()})

    return make


def run(*tasks: type[PretextTask], losses: tuple[type[ConsistencyLoss], ...] = (), batch: int = 3) -> None:
    """What a run does with these before it takes its first step."""
    objective = build_objective(UNET, tasks, losses, ViewOptions(), seed=3, plugins=Plugins.load(), crop=SIZE)
    crops = make_crops(batch, SIZE)
    freeze_unreached(objective, crops)
    trivial(objective, crops, 0)
    pictures(objective, crops, 0)


def test_what_keeps_its_promises_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's name is for messages: reading every installed package's metadata takes milliseconds, in each step."""
    crops = make_crops(2, SIZE)
    objective = build_objective(UNET, [Repeat, changed(Bright, name="bright")], [Apart])
    objective.run(crops, 0)

    def looked_up(cls: type[Any]) -> Any:
        raise AssertionError(cls)

    monkeypatch.setattr("medssl.learn.promises.provider_of", looked_up)
    objective.run(crops, 1)


def test_sound_terms_pass() -> None:
    run(Repeat)
    run(changed(Bright, name="bright"), Repeat, losses=(Apart,))


def raising(*_: Any) -> Any:
    raise ZeroDivisionError("inside")


class Raises(nn.Module):
    def forward(self, *_: Any) -> Tensor:
        raise ZeroDivisionError("inside")


class GivesText(nn.Module):
    def forward(self, *_: Any) -> str:
        return "an answer"


class Flat(nn.Module):
    def forward(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean(1).flatten(1)


def with_module(module: Any, reads: Any = "encoder_end", **more: Any) -> type[PretextTask]:
    return changed(Repeat, head=lambda self: ModuleHead(module, reads, **more))


SHAPES: dict[str, tuple[type[PretextTask], str]] = {
    "a target of one row": (changed(Repeat, make=gives(target=lambda crops: crops.images[:1])), r"target of shape \(1, 1, 16, 20\)"),
    "a weight of one row": (changed(Repeat, make=gives(weight=lambda crops: torch.ones(1, 1, *SIZE))), "weight of shape"),
    "a weight off grid": (changed(Repeat, make=gives(weight=lambda crops: torch.ones(len(crops), 1, 1, 1))), "Give it the target's shape"),
    "a weight a sample": (changed(Repeat, make=gives(weight=lambda crops: torch.ones(len(crops)))), "Give it the target's shape"),
    "extra of one row": (changed(Repeat, make=gives(extra=lambda crops: {"mask": crops.images[0]})), r"extra\['mask'\] of shape"),
    "extra that is a number": (changed(Repeat, make=gives(extra=lambda crops: {"n": torch.tensor(1.0)})), r"extra\['n'\] of shape \(\)"),
    "a target on another grid": (changed(Repeat, make=gives(target=lambda crops: crops.images[..., :1])), "the answer's grid is"),
    "a target without channels": (changed(Repeat, make=gives(target=lambda crops: crops.images[:, 0])), "the answer's grid is"),
    "no target": (changed(Repeat, make=gives(target=lambda crops: None)), "target is NoneType; a tensor"),
    "numbers for answerable": (changed(Repeat, make=gives(answerable=lambda crops: torch.ones(len(crops)))), "one bool a sample"),
    "a pooled target without its axis": (
        changed(Bright, make=lambda self, crops, draw: PretextBatch(None, crops.images.flatten(1).amax(1))),
        r"broadcast against each other \(prediction \(2, 1\), target \(2,\)\)",
    ),
    "an extra that meets the prediction": (
        changed(
            Bright,
            make=lambda self, crops, draw: PretextBatch(None, crops.images[:, :, 0, 0], extra={"scale": crops.images.flatten(1).amax(1)}),
            loss=lambda self, prediction, batch: (prediction * batch.extra["scale"] - batch.target).square().flatten(1).mean(1),
        ),
        r"broadcast against each other.*scale \(2,\)",
    ),
    "float64 inputs": (changed(Repeat, make=gives(inputs=lambda crops: crops.images.double())), "inputs are torch.float64"),
    "whole inputs": (changed(Repeat, make=gives(inputs=lambda crops: crops.images.long())), "inputs are torch.int64"),
    "inputs elsewhere": (changed(Repeat, make=gives(inputs=lambda crops: crops.images.to("meta"))), "inputs is on meta"),
    "inputs without channels": (changed(Repeat, make=gives(inputs=lambda crops: crops.images[:, 0])), "2 sides behind rows and channels"),
}  # fmt: skip
METHODS: dict[str, tuple[type[PretextTask], str]] = {
    "input_channels raises": (changed(Repeat, input_channels=raising), r"failed in input_channels of task 'repeat': ZeroDivision"),
    "input_channels is text": (changed(Repeat, input_channels=lambda self, channels: "two"), "input_channels.. gave 'two'"),
    "clean raises": (changed(Repeat, clean=raising), "failed in clean of task 'repeat': ZeroDivision"),
    "clean is of another type": (changed(Repeat, clean=lambda self, crops: crops.images.double()), r"clean\(\) gave torch.float64"),
    "clean is of another shape": (changed(Repeat, clean=lambda self, crops: crops.images[..., 1:]), r"clean\(\) gave shape"),
    "head raises": (changed(Repeat, head=raising), "failed in head of task 'repeat': ZeroDivision"),
    "trivial raises": (changed(Repeat, trivial=raising), "failed in trivial of task 'repeat': ZeroDivision"),
    "picture raises": (changed(Repeat, picture=raising), "failed in picture of task 'repeat': ZeroDivision"),
    "picture is a tensor": (changed(Repeat, picture=lambda self, prediction, batch: prediction), "picture.. gave Tensor"),
    "pictures are vectors": (changed(Repeat, picture=lambda self, prediction, batch: {"a": prediction.flatten(1)}), "the picture 'a' is"),
    "pictures are arrays": (changed(Repeat, picture=lambda self, prediction, batch: {"a": [1]}), "the picture 'a' is list"),
    "measure is one number": (changed(Repeat, measure=lambda self, p, batch: {"error": p.mean()}), r"measure\(\)\['error'\] gave \(\)"),
    "measure is no mapping": (changed(Repeat, measure=lambda self, p, batch: [p.mean()]), r"measure\(\) gave list"),
    "loss of whole numbers": (changed(Repeat, loss=lambda self, p, batch: (p > 0).flatten(1).sum(1)), "which has no gradient"),
    "loss of true and false": (changed(Repeat, loss=lambda self, p, batch: (p > 0).flatten(1).any(1)), "which has no gradient"),
    "loss elsewhere": (changed(Repeat, loss=lambda self, p, batch: p.flatten(1).mean(1).to("meta")), "is on meta"),
    "loss that is cut": (changed(Repeat, loss=lambda self, p, batch: Repeat.loss(self, p.detach(), batch)), "cut from the graph"),
    "loss by rounding": (changed(Repeat, loss=lambda self, p, batch: (p > 0).float().flatten(1).mean(1)), "cut from the graph"),
    "module raises": (with_module(Raises()), "failed in the module of head.. of task 'repeat': ZeroDivision"),
    "module gives text": (with_module(GivesText()), "the module of its head gave str"),
    "module is dense in word alone": (with_module(Flat(), "feature_map", dense=True), "the module of its dense head gave shape"),
    "module is a function": (with_module(raising), "module=function; a torch.nn.Module is needed"),
    "module reads nothing": (with_module(nn.Identity(), ()), r"reads=\(\); the name of a feature"),
    "no channels": (changed(Repeat, head=lambda self: DenseHead(0)), "DenseHead with channels=0; a whole number of 1 or more"),
    "no outputs": (changed(Bright, head=lambda self: PooledHead(0)), "PooledHead with outputs=0"),
    "half a part": (changed(Bright, head=lambda self: PooledHead(1, parts=0.5)), "PooledHead with parts=0.5"),  # type: ignore[arg-type]
    "another join": (changed(Bright, head=lambda self: PooledHead(1, join="sum")), "join='sum'"),  # type: ignore[arg-type]
    "no super": (changed(Repeat, __init__=lambda self, options, network: nn.Module.__init__(self)), r"must call super\(\).__init__"),
}  # fmt: skip


@pytest.mark.parametrize("case", [*SHAPES, *METHODS])
def test_what_a_task_gives_wrongly_names_it(case: str) -> None:
    task, says = {**SHAPES, **METHODS}[case]
    with pytest.raises(PluginError, match=says) as caught:
        run(task)
    assert "'repeat'" in str(caught.value) and "not installed as a package" in str(caught.value)


@pytest.mark.parametrize("where", ["make", "loss", "clean", "trivial", "picture"])
def test_crops_that_are_changed_in_place_are_noticed(where: str) -> None:
    def meddle(self: Repeat, *given: Any) -> Any:
        given[0].images.mul_(2) if where in ("make", "clean") else given[-1].target.mul_(2)
        usual = {"make": Repeat.make, "clean": Repeat.clean, "loss": Repeat.loss}
        return usual[where](self, *given) if where in usual else {} if where == "picture" else given[-1].target

    with pytest.raises(PluginError, match=rf"{where} changes crops.images in place"):
        run(changed(Repeat, **{where: meddle}))


def test_a_riders_answer_goes_through_a_restore_that_is_blamed() -> None:
    class Host(Repeat):
        name: ClassVar[str] = "host"
        back: ClassVar[Any] = None

        def make(self, crops: Crops, draw: Draw) -> PretextBatch:
            return replace(super().make(crops, draw), restore=self.back)

    class Rider(Repeat):
        name: ClassVar[str] = "rider"

        def make(self, crops: Crops, draw: Draw) -> PretextBatch:
            return PretextBatch(None, crops.images)

    for back, says in (
        (raising, "failed in restore of task 'host': ZeroDivision"),
        (lambda answer: answer[..., 1:], "the grid of the crops"),
    ):
        with pytest.raises(PluginError, match=says):
            run(changed(Host, back=staticmethod(back)), Rider)


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (raising, "failed in forward of consistency loss 'apart': ZeroDivision"),
        (lambda self, views: Apart.forward(self, views).mean(), r"forward\(\) gave \(\); one value a sample"),
        (lambda self, views: (views.embeddings[0] > 0).sum(1), "which has no gradient"),
        (lambda self, views: Apart.forward(self, views.detach()), "cut from the graph"),
        (lambda self, views: (views.crops.images.add_(1), Apart.forward(self, views))[1], "forward changes crops.images in place"),
    ],
)  # fmt: skip
def test_what_a_loss_gives_wrongly_names_it(forward: Any, says: str) -> None:
    with pytest.raises(PluginError, match=says):
        run(losses=(changed(Apart, forward=forward),))


def test_a_loss_that_waits_until_it_is_filled_is_not_refused() -> None:
    def waiting(self: Any, views: Views) -> Tensor:
        return torch.zeros(len(views.crops))

    run(Repeat, losses=(changed(Apart, forward=waiting, commit=lambda self, views: None),))


def test_the_momentum_of_a_teacher_is_asked_for_with_blame() -> None:
    needs: frozenset[TaskNeeds] = frozenset({"teacher_answer"})
    with pytest.raises(PluginError, match="failed in teacher_momentum of task 'repeat': ZeroDivision"):
        run(changed(Repeat, needs=needs, teacher_momentum=raising))
    with pytest.raises(PluginError, match="failed in teacher_reads of task 'repeat': ZeroDivision"):
        run(changed(Repeat, needs=needs, teacher_reads=raising))


class Plain(BaseModel):
    """Of pydantic, and not of medssl."""


class Taken(BaseOptions):
    """Has a key of every term."""

    weight: float = 1.0


ATTRIBUTES: list[tuple[type[Any], dict[str, Any], str]] = [
    (Repeat, {"name": "re.peat"}, "named 're.peat'"),
    (Repeat, {"name": ""}, "named ''"),
    (Repeat, {"name": None}, "named None"),
    (Repeat, {"answer": "probabilities"}, "answer = 'probabilities', not 'values' or 'logits'"),
    (Repeat, {"needs": frozenset({"teachers"})}, "not a frozenset of some of"),
    (Repeat, {"needs": "teacher"}, "needs = 'teacher', not a frozenset"),
    (Repeat, {"compares": "groups"}, "compares = 'groups'"),
    (Repeat, {"same_for_views": "yes"}, "same_for_views = 'yes'"),
    (Repeat, {"teacher_follows": "projector"}, "teacher_follows = 'projector', not a tuple"),
    (Repeat, {"citation": None}, "citation = None, not a text"),
    (Repeat, {"Options": Plain}, "must be a class that derives from medssl.config.BaseOptions"),
    (Repeat, {"Options": Taken}, r"has an option \['weight'\]"),
    (Apart, {"needs": frozenset({"embedding"})}, "not a frozenset of some of"),
    (Apart, {"compares": None}, "compares = None"),
    (Apart, {"Options": dict}, "must be a class that derives from medssl.config.BaseOptions"),
]


@pytest.mark.parametrize(("base", "attributes", "says"), ATTRIBUTES)
def test_class_attributes_are_checked_before_anything_is_built(base: type[Any], attributes: dict[str, Any], says: str) -> None:
    broken = changed(base, **attributes)
    with pytest.raises(PluginError, match=says):
        run(*([broken] if base is Repeat else []), losses=(broken,) if base is Apart else ())


def test_objects_are_checked_as_classes_are() -> None:
    info = NetworkInfo(2, 1, 8, 4, (4, 4))
    with pytest.raises(PluginError, match="answer = 'odd'"):
        run(changed(Repeat, answer="odd")(BaseOptions(), info))


@pytest.mark.parametrize(
    ("reads", "says"),
    [
        (
            "tokens",
            r"task 'repeat' reads tokens, and .*UNet.* has no tokens, since its encoder does not work on tokens\. Take ViT or UNETR\.$",
        ),
        ("levels 0", r"task 'repeat' reads levels 0, and .* has none\. Did you mean 'level 0'\?$"),
    ],
)
def test_features_that_the_network_does_not_have_name_who_reads_them(reads: str, says: str) -> None:
    with pytest.raises(NetworkError, match=says):
        run(with_module(nn.Identity(), reads))


def test_words_that_are_no_term_are_refused_as_before() -> None:
    with pytest.raises(ConfigError, match="a mapping with"):
        build_objective(UNET, [Apart])
