"""A mistake of the caller's is one message of the caller's: what was wrong, where, what to do, and no plugin is blamed for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import SegResNet
from torch import Tensor, nn

import medssl
from medssl.contracts import Crops, Draw, Head, PooledHead, PretextBatch, PretextTask
from medssl.errors import ConfigError, DataError, MedsslError, NetworkError, PluginError, UsageError
from medssl.monai import (
    AgreementLoss,
    ConsistencyOnTensors,
    DeepSupervisionLoss,
    DenseAgreementLoss,
    EMATeacher,
    MedsslReader,
    PrepareImage,
    PretextLoss,
    PretextNetwork,
    PretextTaskd,
    PretextTaskTransform,
    prepare_pretext_batch,
)
from medssl.train.checkpoint import save_checkpoint
from medssl.volumes import Preparation

SMALL = partial(SegResNet, spatial_dims=2, in_channels=1, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))
DENSE = (2, 1, 8, 8)
Call = Callable[[], Any]


def dense(target: Any = None, weight: Any = None, prediction: Any = None) -> Call:
    """The loss of inpainting, with one thing of three another."""
    given = [torch.zeros(DENSE) if one is None else one for one in (prediction, target, weight)]
    return lambda: PretextLoss("inpainting", spatial_dims=2)(given[0], (given[1], given[2]))


def classes(change: Callable[[Tensor], Tensor], **others: Any) -> Call:
    """The loss of relative-position, its class numbers changed."""

    def call() -> Any:
        batch = {"target": change(torch.tensor([1, 3])), "weight": torch.ones(2), **others}
        return PretextLoss("relative-position", spatial_dims=2)(torch.zeros(2, 8), batch)

    return call


def agree(one: Any, other: Any = None, shown: Any = None) -> Call:
    return lambda: AgreementLoss(spatial_dims=2)(one, one if other is None else other, shown)


def on_tensors(loss: str, *views: Any, **given: Any) -> Call:
    return lambda: ConsistencyOnTensors(loss, width=16)(*views, **given)


def shown_to_network(images: Any, task: str = "inpainting") -> Call:
    return lambda: PretextNetwork(SMALL, task, seed=0)(images)


def asked(image: Any) -> Call:
    return lambda: PretextTaskd("image", "inpainting")({"image": image})


def deep(predictions: Any, label: Any, **options: Any) -> Call:
    return lambda: DeepSupervisionLoss(PretextLoss("inpainting", spatial_dims=2), **options)(predictions, label)


MASK = torch.ones(4, 1, 8, 8, dtype=torch.bool)
MAPS, EMBEDDINGS, ANSWERS = torch.zeros(4, 16, 8, 8), torch.zeros(4, 16), torch.zeros(4, 3, 8, 8)
PAIR = (torch.zeros(DENSE), torch.ones(DENSE))
LINEAR = nn.Linear(2, 2)

WRONG: dict[str, tuple[Call, type[MedsslError], str]] = {
    # Losses of pretext tasks.
    "values for classes": (classes(Tensor.float), DataError, r"float32 \(B,\), the task's own int64"),
    "a class too high": (classes(lambda target: target + 1000), DataError, r"from 1001 to 1003, the task's own int64 \(B,\) from"),
    "a class below zero": (classes(lambda target: target - 1000), DataError, "Hand over what PretextTaskd put"),
    "target elsewhere": (dense(target=torch.zeros(DENSE, device="meta")), DataError, "`target` on meta"),
    "weight elsewhere": (dense(weight=torch.zeros(DENSE, device="meta")), DataError, "`weight` on meta"),
    "answer elsewhere": (dense(prediction=torch.zeros(DENSE, device="meta")), DataError, "the answer on meta"),
    "whole numbers": (dense(prediction=torch.zeros(DENSE, dtype=torch.int64)), DataError, "int64, through which no gradient passes"),
    "complex numbers": (dense(prediction=torch.zeros(DENSE, dtype=torch.complex64)), DataError, "complex64"),
    "no sample": (dense(*[torch.zeros(0, 1, 8, 8)] * 3), DataError, "holds no sample"),
    "another batch size": (dense(prediction=torch.zeros(3, 1, 8, 8)), DataError, r"it is \(2, 1, 8, 8\)"),
    "a single number": (dense(prediction=torch.zeros(())), DataError, "holds no sample"),
    "a target without channel": (dense(torch.zeros(2, 8, 8), torch.ones(2, 8, 8)), DataError, r"\(B, channels, \*grid\)"),
    "a target of more channels": (dense(torch.zeros(2, 4, 8, 8)), DataError, "has 4 channels"),
    "a target of one number": (dense(torch.zeros(()), torch.zeros(())), DataError, "'target' has shape"),
    "a volume for a slice": (dense(*[torch.zeros(2, 1, 8, 8, 8)] * 3), DataError, "it is"),
    "a label as array": (dense(np.zeros(DENSE)), DataError, "'target' is a ndarray, not a tensor.*the pair"),
    "no label": (lambda: PretextLoss("inpainting")(torch.zeros(DENSE), None), DataError, "'target' is None"),
    "other keys": (lambda: PretextLoss("inpainting")(torch.zeros(DENSE), {"label": 1}), DataError, "no 'target', but label"),
    "answerable of others": (classes(Tensor.clone, target_answerable=torch.ones(3)), DataError, "2 samples"),
    "answerable elsewhere": (classes(Tensor.clone, target_answerable=torch.ones(2, device="meta")), DataError, "on meta"),
    "no task": (lambda: PretextLoss(None), ConfigError, "null is neither"),  # type: ignore[arg-type]
    "a class that is no task": (lambda: PretextLoss(int), ConfigError, "int is neither"),  # type: ignore[arg-type]
    "a loss as task": (lambda: PretextTaskd("image", "simsiam"), ConfigError, "is a consistency loss.*ConsistencyOnTensors"),
    "four dimensions": (lambda: PretextLoss("inpainting", spatial_dims=4), ConfigError, "spatial_dims is 4; a whole number, from 2 to 3"),
    "no channels": (lambda: PretextLoss("inpainting", channels=0), ConfigError, "channels is 0"),
    "two networks": (lambda: PretextLoss("inpainting", network=SMALL, spatial_dims=3), ConfigError, "Leave spatial_dims out"),
    # Consistency losses.
    "maps of another width": (lambda: DenseAgreementLoss(16, 2)(*[torch.zeros(4, 8, 8, 8)] * 2), DataError, "Build it with width=8"),
    "embeddings of another width": (on_tensors("simsiam", *[torch.zeros(4, 8)] * 2), DataError, "Build it with width=8"),
    "a mask of another grid": (agree(ANSWERS, shown=MASK[..., :4]), DataError, r"need \(4, 1, 8, 8\)"),
    "a mask of other samples": (agree(ANSWERS, shown=MASK[:2]), DataError, r"need \(4, 1, 8, 8\)"),
    "a mask without channel": (agree(ANSWERS, shown=MASK[:, 0]), DataError, "`shown` has shape"),
    "a mask as array": (agree(ANSWERS, shown=MASK.numpy()), DataError, "`shown` is a ndarray"),
    "a mask elsewhere": (agree(ANSWERS, shown=MASK.to("meta")), DataError, "`shown` on meta"),
    "a mask of shares": (agree(ANSWERS, shown=MASK * 0.3), DataError, "not how much"),
    "a mask of no voxels": (agree(ANSWERS[:, :, 0, 0], shown=MASK), DataError, "have no voxels"),
    "answers as arrays": (agree(ANSWERS.numpy(), ANSWERS), DataError, "view 1 is a ndarray"),
    "a teacher's array": (agree(ANSWERS, ANSWERS.numpy()), DataError, "the teacher's answer is a ndarray"),
    "answers of one number": (agree(torch.zeros(4)), DataError, r"\(B, K, \*size\)"),
    "whole answers": (agree(ANSWERS.long()), DataError, "int64"),
    "answers elsewhere": (agree(ANSWERS, ANSWERS.to("meta")), DataError, "lies on different devices"),
    "no answers": (agree(ANSWERS[:0]), DataError, "holds no sample"),
    "another distance": (lambda: AgreementLoss("l1"), ConfigError, "kind is 'l1'. Known"),  # type: ignore[arg-type]
    "another answer": (lambda: AgreementLoss(answers="probability"), ConfigError, "answers is"),  # type: ignore[arg-type]
    "classes of values": (lambda: AgreementLoss("kl", "values"), ConfigError, 'kind="l2"'),
    "vectors for maps": (lambda: DenseAgreementLoss(16, 2)(EMBEDDINGS, EMBEDDINGS), DataError, r"\(B, 16, X, Y\)"),
    "slices for volumes": (lambda: DenseAgreementLoss(16)(MAPS, MAPS), DataError, "spatial_dims=2"),
    "maps for vectors": (on_tensors("simsiam", MAPS, MAPS), DataError, r"embeddings \(B, 16\)"),
    "another precision": (on_tensors("simsiam", *[EMBEDDINGS.double()] * 2), DataError, "weights are float32.*autocast"),
    "weights elsewhere": (on_tensors("simsiam", *[EMBEDDINGS.to("meta")] * 2), DataError, "whose weights are on cpu"),
    "another kind": (on_tensors("agreement", ANSWERS, ANSWERS, kind="classes"), ConfigError, "kind is 'classes'"),
    "no width": (lambda: ConsistencyOnTensors("simsiam", width=0), ConfigError, "width is 0"),
    "a task as loss": (lambda: ConsistencyOnTensors("inpainting"), ConfigError, "is a pretext task"),
    "a teacher of one view": (on_tensors("moco", EMBEDDINGS, EMBEDDINGS, teacher=(EMBEDDINGS,)), DataError, "the student's"),
    "a teacher as tensor": (on_tensors("moco", EMBEDDINGS, EMBEDDINGS, teacher=EMBEDDINGS), DataError, r"teacher=\(one, other\)"),
    "a teacher that is a number": (on_tensors("moco", EMBEDDINGS, EMBEDDINGS, teacher=3), DataError, "teacher is an int"),
    "a teacher of others": (on_tensors("moco", EMBEDDINGS, EMBEDDINGS, teacher=[EMBEDDINGS[:3]] * 2), DataError, "the student's"),
    "patients of others": (on_tensors("simclr", EMBEDDINGS, EMBEDDINGS, patient=torch.arange(3)), DataError, r"a sample, \(4,\)"),
    "patients by name": (on_tensors("simclr", EMBEDDINGS, EMBEDDINGS, patient=["a"] * 4), DataError, "`patient` is a list"),
    "too far": (lambda: ConsistencyOnTensors("moco", width=16).commit(5), ConfigError, "progress is 5"),
    # Networks, teachers and encoders.
    "an array for a network": (shown_to_network(np.zeros(DENSE)), DataError, "is a ndarray, not a tensor"),
    "a batch for a network": (shown_to_network({"image": torch.zeros(DENSE)}), DataError, "is a dict"),
    "other channels": (shown_to_network(torch.zeros(2, 3, 8, 8)), DataError, r"this task's are \(B, 1, \*size\)"),
    "other parts": (shown_to_network(torch.zeros(2, 3, 1, 8, 8), "relative-position"), DataError, r"\(B, 2, 1, \*size\)"),
    "double images": (shown_to_network(torch.zeros(DENSE).double()), DataError, "float64 is given to the network"),
    "an odd size": (shown_to_network(torch.zeros(2, 1, 15, 15)), NetworkError, "cannot take crops of"),
    "a seed in words": (lambda: PretextNetwork(SMALL, "inpainting", seed="a"), ConfigError, "seed is 'a'"),  # type: ignore[arg-type]
    "nobody to follow": (lambda: EMATeacher(None), ConfigError, "NoneType is none"),  # type: ignore[arg-type]
    "another to follow": (lambda: EMATeacher(LINEAR).update(nn.Linear(3, 2)), ConfigError, r"'weight' \(2, 2\) in the teacher"),
    "more to follow": (lambda: EMATeacher(LINEAR).update(nn.Sequential(LINEAR, LINEAR, nn.Linear(2, 2))), ConfigError, "'nothing'"),
    "too much momentum": (lambda: EMATeacher(LINEAR).update(LINEAR, 3), ConfigError, "between 0 and 1"),
    "momentum in words": (lambda: EMATeacher(LINEAR, "much"), ConfigError, "between 0 and 1"),  # type: ignore[arg-type]
    "no network": (lambda: medssl.encoder(SMALL), UsageError, "Build the network first"),  # type: ignore[arg-type]
    "an end by number": (lambda: medssl.encoder(SMALL(), 3), UsageError, "encoder_end is 3"),  # type: ignore[arg-type]
    "arrays to split by": (lambda: medssl.encoder_parameters(SMALL(), np.zeros(DENSE)), DataError, "images are ndarray"),  # type: ignore[arg-type]
    "an array for an encoder": (lambda: medssl.encoder(SMALL())(np.zeros(DENSE)), DataError, "ndarray, not a tensor"),
    "other channels for it": (lambda: medssl.encoder(SMALL())(torch.zeros(2, 3, 8, 8)), DataError, r"takes \(B, 1, \*size\)"),
    # Transforms, batches, deep supervision, readers.
    "an item that is none": (lambda: PretextTaskd("image", "inpainting")(torch.zeros(1, 8, 8)), DataError, "not a dictionary"),  # type: ignore[arg-type]
    "complex intensities": (asked(torch.zeros(1, 16, 16, dtype=torch.complex64)), DataError, "no intensities"),
    "words": (asked(np.array([["a"]])), DataError, "no intensities"),
    "objects": (asked(np.array([[[None]]], dtype=object)), DataError, "no intensities"),
    "an image of nothing": (asked(torch.zeros(1, 0, 0)), DataError, r"\(C, \*size\)"),
    "an image without values": (asked(torch.zeros(1, 16, 16, device="meta")), DataError, "'meta'"),
    "a batch for an image": (asked(torch.zeros(2, 1, 16, 16, 16)), DataError, r"\(C, \*size\)"),
    "an item for an image": (lambda: PretextTaskTransform("inpainting")({}), DataError, "'image' is a dict"),
    "one place for two": (lambda: PretextTaskd("image", "inpainting", target_keys="t", weight_keys="t"), ConfigError, "one place twice"),
    "no batch": (lambda: prepare_pretext_batch(None), DataError, "not a dictionary"),  # type: ignore[arg-type]
    "a batch of arrays": (lambda: prepare_pretext_batch({"image": np.zeros(DENSE)}), DataError, "is a ndarray"),
    "a list as batch": (lambda: prepare_pretext_batch([{}]), DataError, "is a list"),  # type: ignore[arg-type]
    "another loss": (lambda: DeepSupervisionLoss(nn.MSELoss()), ConfigError, "not MSELoss"),  # type: ignore[arg-type]
    "another mode": (deep([PAIR[0]], PAIR, weight_mode="half"), ConfigError, "weight_mode is 'half'"),
    "too few weights": (deep([PAIR[0], PAIR[0][..., :4, :4]], PAIR, weights=[1.0]), ConfigError, "1 weights were given for 2 outputs"),
    "no outputs": (deep([], PAIR), DataError, "Give its outputs"),
    "outputs by name": (deep({"out": PAIR[0]}, PAIR), DataError, "the network gave dict"),
    "a target alone": (deep([PAIR[0]], PAIR[0]), DataError, "that pair"),
    "a label of other keys": (deep([PAIR[0]], {"label": 1}), DataError, "a dictionary of label"),
    "an unreadable path": (lambda: MedsslReader().read(3), UsageError, "int is no path"),
    "a modality by number": (lambda: MedsslReader(3), UsageError, "modality is 3"),  # type: ignore[arg-type]
    "nothing to read": (lambda: MedsslReader().get_data([]), UsageError, "no path to read"),
}


WEIGHTS = SMALL().state_dict()
LOADS: dict[str, tuple[dict[str, Any], str]] = {
    "a share in words": ({"min_coverage": "much"}, "min_coverage is 'much'"),
    "one pattern for a list": ({"allow_missing": "conv*"}, r'a list of patterns .* such as \["decoder'),
    "no patterns": ({"allow_missing": None}, "allow_missing is None"),
    "names as a list": ({"rename": ["fc1"]}, "a dictionary from parts"),
    "another stem": ({"stem": "mean"}, "stem is 'mean'"),
}


@pytest.mark.parametrize("name", LOADS)
def test_what_loading_is_told_wrongly(name: str) -> None:
    options, says = LOADS[name]
    for load in (lambda: medssl.load_into(SMALL(), WEIGHTS, **options), lambda: medssl.load_pretrained(SMALL, WEIGHTS, **options)):
        with pytest.raises(UsageError, match=says):
            load()
    with pytest.raises(UsageError, match="out_channels is '2'"):
        medssl.load_pretrained(SMALL, WEIGHTS, "2")  # type: ignore[arg-type]


IMAGES: dict[str, tuple[Any, str]] = {
    "nothing": (None, "is None, no image"),
    "a path": ("a.nii.gz", "is a str, no image"),
    "objects": (np.array([[[None]]], dtype=object), "no intensities"),
    "without values": (torch.zeros(1, 4, 4, 4, device="meta"), "no values"),
    "no channel": (np.zeros((0, 4, 4)), r"\(C, \*size\)"),
    "no channels": (np.zeros((4, 4)), r"\(C, \*size\)"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_what_cannot_be_prepared(name: str, tmp_path: Path) -> None:
    state = {"preparation": Preparation().model_dump(mode="json")}
    prepare = PrepareImage(save_checkpoint(tmp_path, 1, {}, state), "MR")
    with pytest.raises(DataError, match=IMAGES[name][1]):
        prepare(IMAGES[name][0])
    assert prepare(torch.rand(1, 4, 4, 4, requires_grad=True)).requires_grad is False
    with pytest.raises(ConfigError, match="modality is 3"):
        PrepareImage(tmp_path, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", WRONG)
def test_a_callers_mistake_is_the_callers(name: str) -> None:
    for plugin in ("medssl_inpainting", "medssl_placement", "medssl_consistency"):
        pytest.importorskip(plugin)
    call, error, says = WRONG[name]
    with pytest.raises(error, match=says) as caught:
        call()
    assert not isinstance(caught.value, PluginError)
    assert str(caught.value).endswith((".", "?")) and "\n" not in str(caught.value)


class Failing(PretextTask):
    """Its loss fails whatever it is given."""

    name = "failing"
    answer = "values"

    def head(self) -> Head:
        return PooledHead(1)

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        return PretextBatch(crops.images, crops.images.flatten(1).mean(1, keepdim=True))

    def loss(self, prediction: Tensor, batch: PretextBatch) -> Tensor:
        raise KeyError("a mistake of the author's")


class Silent(Failing):
    """It cannot ask noise anything, so nobody knows what its labels look like."""

    name = "silent"

    def make(self, crops: Crops, draw: Draw) -> PretextBatch:
        raise ValueError("no question")


@pytest.mark.parametrize("task", [Failing, Silent])
def test_a_plugins_mistake_stays_the_plugins(task: type[PretextTask]) -> None:
    with pytest.raises(PluginError, match=f"failed in loss of task '{task.name}': KeyError"):
        PretextLoss(task, spatial_dims=2)(torch.zeros(2, 1), (torch.zeros(2, 1), torch.ones(2, 1)))


LISTED = """
from medssl.contracts import PretextTask
class Listed(PretextTask):
    name = "listed"
    answer = "values"
    needs = ["teacher"]
def medssl_pretext_tasks():
    return [Listed]
"""


def test_an_installed_class_is_checked_as_one_that_is_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "listed.py").write_text(LISTED)
    monkeypatch.setenv("MEDSSL_PLUGIN_FILES", str(tmp_path / "listed.py"))
    with pytest.raises(PluginError, match=r"'listed' of .* has the class attribute needs = \['teacher'\]"):
        PretextTaskd("image", "listed")


def test_right_calls_of_other_kinds_are_taken() -> None:
    pytest.importorskip("medssl_consistency")
    for dims in (2, 3):
        maps = torch.randn(2, 3, *[4] * dims)
        assert torch.isfinite(AgreementLoss()(maps.half(), maps, torch.ones(2, 1, *[4] * dims)))  # dimensions say themselves
    loss = ConsistencyOnTensors("simsiam", width=16).double()
    assert loss(torch.randn(4, 16).double(), torch.randn(4, 16).double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(ConsistencyOnTensors("simsiam", width=16)(*[torch.randn(4, 16).bfloat16()] * 2))
    student = nn.Linear(2, 2)
    EMATeacher(student).update(nn.Sequential(student))  # as a wrapper holds it


def test_nobody_is_taken_for_somebody_of_an_earlier_batch() -> None:
    pytest.importorskip("medssl_consistency")
    loss = ConsistencyOnTensors("moco", width=16)
    views = torch.randn(4, 16), torch.randn(4, 16)
    for _ in range(2):
        loss(*views, teacher=views)
        loss.commit()
    owners = loss.loss.owner[loss.loss.owner >= 0]
    assert sorted(owners.tolist()) == list(range(8))
    again = ConsistencyOnTensors("moco", width=16)
    again.load_state_dict(loss.state_dict())
    again(*views, teacher=views)
    again.commit()
    assert sorted(again.loss.owner[again.loss.owner >= 0].tolist()) == list(range(12))
