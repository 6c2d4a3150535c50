"""Every piece alone: losses on plain tensors, a network with a task's head, deep supervision, a reader for series."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.networks.nets import DynUNet, SegResNet
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd
from torch import nn

from medssl.contracts import ConsistencyLoss, Views
from medssl.errors import ConfigError, DataError
from medssl.monai import (
    AgreementLoss,
    ConsistencyOnTensors,
    DeepSupervisionLoss,
    DenseAgreementLoss,
    EMATeacher,
    MedsslReader,
    PretextLoss,
    PretextNetwork,
    PretextTaskd,
    prepare_pretext_batch,
)
from medssl.plugins import Plugins
from medssl.testing.dicom import made_affine, made_volume, write_series

SMALL = partial(SegResNet, spatial_dims=2, in_channels=1, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))


def test_agreement_of_student_and_teacher() -> None:
    pytest.importorskip("medssl_consistency")
    student, teacher = torch.randn(2, 3, 4, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    for kind in ("l2", "kl", "cosine"):
        loss = AgreementLoss(kind=kind)
        assert float(loss(student, student)) == pytest.approx(0, abs=1e-5)
        loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None
    probability = torch.nn.functional.mse_loss(student.softmax(1), teacher.softmax(1))
    torch.testing.assert_close(AgreementLoss()(student, teacher), probability)
    half = torch.zeros(2, 1, 4, 4, 4, dtype=torch.bool)
    half[:, :, :2] = True
    torch.testing.assert_close(
        AgreementLoss()(student, teacher, half), torch.nn.functional.mse_loss(student.softmax(1)[:, :, :2], teacher.softmax(1)[:, :, :2])
    )


class Queue(ConsistencyLoss):
    """Pulls a projection to the teacher's, and remembers how many it saw."""

    name = "queue"
    needs = frozenset({"embeddings", "teacher"})
    teacher_follows = ("projector",)

    def __init__(self, options: Any, network: Any) -> None:
        super().__init__(options, network)
        self.projector = nn.Linear(network.embedding_width, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, views: Views) -> torch.Tensor:
        assert views.teacher is not None
        ours, theirs = self.projector(views.embeddings[0]), views.teacher.modules["projector"](views.teacher.embeddings[1])
        return (ours - theirs).square().mean(dim=1)

    def commit(self, views: Views) -> None:
        self.seen += len(views.crops)


def test_a_loss_with_a_teacher_and_a_queue_keeps_them_itself() -> None:
    loss = ConsistencyOnTensors(Queue, width=5)
    one, other = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    with pytest.raises(DataError, match="takes teacher="):
        loss(one, other)
    loss(one, other, teacher=(one, other)).backward()
    assert other.grad is None
    copy = loss.followed["projector"].module.weight.clone()
    with torch.no_grad():
        loss.loss.projector.weight.add_(1.0)
    loss.commit()
    assert float(loss.loss.seen) == 4
    assert (loss.followed["projector"].module.weight > copy).all()
    with pytest.raises(DataError, match="of one shape"):
        loss(one, one[:2], teacher=(one, one))


class Rescaled(Queue):
    """Reads the true values of crops, which plain tensors have none of."""

    def forward(self, views: Views) -> torch.Tensor:
        return super().forward(views) * views.crops.rescale[:, 0, 0]


def test_what_tensors_do_not_say_is_refused_and_not_made_up() -> None:
    one = torch.randn(4, 5)
    with pytest.raises(ConfigError, match=r"reads crops\.rescale, the true values"):
        ConsistencyOnTensors(Rescaled, width=5)(one, one, teacher=(one, one))
    loss = ConsistencyOnTensors(Queue, width=5)
    loss(one, one, teacher=(one, one))
    deepcopy(loss).commit()


def test_every_installed_loss_is_taken_or_refused_with_the_reason() -> None:
    pytest.importorskip("medssl_consistency")
    shapes = {"answers": (4, 3, 8, 8), "embeddings": (4, 16), "feature_maps": (4, 16, 8, 8)}
    taken = []
    for name, cls in Plugins.load().losses().items():
        if "task_embeddings" in cls.needs:
            with pytest.raises(ConfigError, match="which plain tensors do not say"):
                ConsistencyOnTensors(name)
            continue
        loss = ConsistencyOnTensors(name, width=16, spatial_dims=2)
        one, other = (torch.randn(shapes[loss.compares], requires_grad=True) for _ in range(2))
        loss(one, other, teacher=(one, other) if "teacher" in cls.needs else ()).backward()
        assert one.grad is not None or other.grad is not None, name
        loss.commit()
        taken.append(name)
    assert {"agreement", "simsiam"} <= set(taken)
    if "dense-agreement" in taken:
        assert DenseAgreementLoss(16, spatial_dims=2)(torch.randn(4, 16, 8, 8), torch.randn(4, 16, 8, 8)).shape == ()


def test_a_teacher_follows() -> None:
    student = nn.Linear(2, 1)
    teacher = EMATeacher(student, momentum=0.9)
    before = teacher.module.weight.clone()
    with torch.no_grad():
        student.weight.add_(1.0)
    teacher.update(student)
    torch.testing.assert_close(teacher.module.weight, before + 0.1)
    assert not teacher(torch.ones(1, 2, requires_grad=True)).requires_grad
    with pytest.raises(ConfigError, match="between 0 and 1"):
        EMATeacher(student, momentum=2)


@pytest.mark.parametrize("task", ["inpainting", "relative-position"])
def test_a_network_answers_what_the_transform_asks(task: str) -> None:
    pytest.importorskip({"inpainting": "medssl_inpainting", "relative-position": "medssl_placement"}[task])
    model = PretextNetwork(SMALL, task, seed=0)
    data = [{"image": MetaTensor(torch.randn(1, 48, 48))} for _ in range(2)]
    batch = next(iter(DataLoader(Dataset(data, PretextTaskd("image", task, network=SMALL)), batch_size=2)))
    image, label = prepare_pretext_batch(batch)
    PretextLoss(task, network=SMALL)(model(image), label).backward()
    assert any(parameter.grad is not None for parameter in model.network.parameters())
    assert model.network(torch.randn(1, 1, 16, 16)).shape[0] == 1
    with pytest.raises(DataError, match="this task's are"):
        model(torch.randn(1, 48, 48))


def test_deep_supervision_weighs_every_output() -> None:
    pytest.importorskip("medssl_inpainting")
    loss = PretextLoss("inpainting", spatial_dims=2)
    network = DynUNet(2, 1, 1, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[4, 8, 8, 8], deep_supervision=True, deep_supr_num=2)
    item = PretextTaskd("image", "inpainting")({"image": MetaTensor(torch.randn(1, 32, 32))})
    image, label = prepare_pretext_batch({key: value[None] for key, value in item.items()})
    outputs = network(image)
    deep = DeepSupervisionLoss(loss)
    deep(outputs, label).backward()
    torch.testing.assert_close(deep([outputs[:, 0]], label), loss(outputs[:, 0], label))
    coarse = torch.nn.functional.avg_pool2d(label["target"], 2)
    weight = torch.nn.functional.avg_pool2d(label["weight"], 2)
    guess = torch.zeros_like(coarse)
    expected = loss(outputs[:, 0], label) + 0.5 * loss(guess, (coarse, weight))
    torch.testing.assert_close(deep([outputs[:, 0], guess], label), expected)


def test_deep_supervision_holds_its_loss_once() -> None:
    pytest.importorskip("medssl_inpainting")
    deep = DeepSupervisionLoss(PretextLoss("inpainting", spatial_dims=2))
    assert [name for name, module in deep.named_modules(remove_duplicate=False) if module is deep.loss] == ["loss"]
    assert all(name.startswith("loss.") for name in deep.state_dict())


def test_what_the_caller_hands_over_wrongly_is_not_the_plugins_fault() -> None:
    pytest.importorskip("medssl_inpainting")
    loss, answer = PretextLoss("inpainting", spatial_dims=2), torch.zeros(2, 1, 8, 8)
    with pytest.raises(DataError, match=r"`weight` has shape \(2, 1, 4, 4\) and the target \(2, 1, 8, 8\)"):
        loss(answer, (torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 4, 4)))
    with pytest.raises(DataError, match="`weight` is a float"):
        loss(answer, (torch.zeros(2, 1, 8, 8), 1.0))
    with pytest.raises(DataError, match="'image' is a str, no image"):
        PretextTaskd("image", "inpainting")({"image": "image.nii.gz"})


def test_a_series_is_loaded_as_its_volume_or_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    array, affine = made_volume(), made_affine()
    write_series(tmp_path / "series", array, affine)
    load = Compose([LoadImaged("image", reader=MedsslReader()), EnsureChannelFirstd("image")])
    image = load({"image": tmp_path / "series"})["image"]
    back = Orientationd("image", axcodes="RAS")({"image": image})["image"]
    wanted = MetaTensor(torch.from_numpy(array.astype(np.float32))[None], affine=torch.from_numpy(affine))
    wanted = Orientationd("image", axcodes="RAS")({"image": wanted})["image"]
    torch.testing.assert_close(back.as_tensor(), wanted.as_tensor())
    torch.testing.assert_close(back.affine, wanted.affine, atol=1e-3, rtol=1e-3)
    loader = DataLoader(Dataset([{"image": tmp_path / "series"}] * 2, load), batch_size=1, num_workers=1)
    assert all(torch.equal(batch["image"][0], image) for batch in loader)
    missing = sorted((tmp_path / "series").iterdir())[len(array[0, 0]) // 2]
    (tmp_path / "gap").mkdir()
    for file in (tmp_path / "series").iterdir():
        if file != missing:
            (tmp_path / "gap" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(RuntimeError) as error:  # and is not stacked over the gap by the next reader
        load({"image": tmp_path / "gap"})
    assert "holds 2 volumes" in str(error.value.__cause__)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "note.txt").write_text("nothing")
    with pytest.raises(RuntimeError) as error:
        load({"image": tmp_path / "none"})
    assert "holds no volume" in str(error.value.__cause__)
