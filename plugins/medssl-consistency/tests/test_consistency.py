"""Consistency losses and iBOT keep the public contract, compare what they say they do, and SimSiam does not collapse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from medssl_consistency import (
    BYOL,
    DINO,
    IBOT,
    PIRL,
    UDA,
    Agreement,
    BarlowTwins,
    DenseAgreement,
    MoCo,
    MoCoV3,
    SimCLR,
    SimSiam,
    VICReg,
    VoxelContrast,
)  # fmt: skip
from medssl_consistency.points import corresponding
from torch import nn
from torch.nn import functional as F

from medssl.augment import ViewOptions, draw_affine
from medssl.contracts import Draw
from medssl.errors import ConfigError, DataError
from medssl.testing import ConsistencyLossContract, PretextTaskContract, make_crops, make_info, make_views


class TestAgreement(ConsistencyLossContract):
    loss = Agreement


class TestAgreementCosine(ConsistencyLossContract):
    loss = Agreement
    options: ClassVar = {"distance": "cosine"}


class TestAgreementKL(ConsistencyLossContract):
    loss = Agreement
    options: ClassVar = {"distance": "kl"}
    only = "pooled"


class TestSimSiam(ConsistencyLossContract):
    loss = SimSiam
    options: ClassVar = {"width": 32, "bottleneck": 8}


class TestUDA(ConsistencyLossContract):
    loss = UDA


class TestSimCLR(ConsistencyLossContract):
    loss = SimCLR


class TestSimCLRCold(ConsistencyLossContract):
    loss = SimCLR
    options: ClassVar = {"temperature": 0.01}


class TestSimCLRHot(ConsistencyLossContract):
    loss = SimCLR
    options: ClassVar = {"temperature": 100.0}


class TestMoCo(ConsistencyLossContract):
    loss = MoCo
    options: ClassVar = {"queue": 10, "hidden": 16, "width": 8}


class TestMoCoV3(ConsistencyLossContract):
    loss = MoCoV3
    options: ClassVar = {"hidden": 16, "width": 8}


class TestPIRL(ConsistencyLossContract):
    loss = PIRL
    options: ClassVar = {"bank": 37, "width": 8}


class TestBYOL(ConsistencyLossContract):
    loss = BYOL
    options: ClassVar = {"hidden": 16, "width": 8}


class TestVICReg(ConsistencyLossContract):
    loss = VICReg


class TestBarlowTwins(ConsistencyLossContract):
    loss = BarlowTwins
    options: ClassVar = {"width": 16}


class TestDINO(ConsistencyLossContract):
    loss = DINO
    options: ClassVar = {"prototypes": 24, "hidden": 16, "bottleneck": 8}


class TestIBOT(PretextTaskContract):
    task = IBOT
    options: ClassVar = {"prototypes": 24, "hidden": 16, "bottleneck": 8}


class TestDenseAgreement(ConsistencyLossContract):
    loss = DenseAgreement
    options: ClassVar = {"points": 64, "width": 8, "bottleneck": 4}


class TestVoxelContrast(ConsistencyLossContract):
    loss = VoxelContrast
    options: ClassVar = {"points": 27, "near": 2.0, "width": 8}


def views_of(one, other, kind, shown=None):
    crops = make_crops(one.shape[0], (6, 6))
    views = make_views(crops, make_info(2))
    return replace(views, answers={"task": (one, other)}, kinds={"task": kind}, shown=shown)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("classes", [2, 8])
def test_kl_is_torchs_own_both_ways(classes, scale):
    one, other = (torch.randn(5, classes) * scale for _ in range(2))
    value = Agreement(Agreement.Options(distance="kl"), make_info(2))(views_of(one, other, "logits"))
    p, q = one.log_softmax(1), other.log_softmax(1)
    both = [F.kl_div(a, b, log_target=True, reduction="none").sum(1) for a, b in ((p, q), (q, p))]
    torch.testing.assert_close(value, (both[0] + both[1]) / 2, atol=1e-5, rtol=1e-4)


def test_dense_kl_is_torchs_own_over_shown_voxels():
    one, other = torch.randn(3, 4, 6, 6), torch.randn(3, 4, 6, 6)
    shown = torch.rand(3, 1, 6, 6) > 0.4
    value = Agreement(Agreement.Options(distance="kl"), make_info(2))(views_of(one, other, "logits", shown))
    p, q = one.log_softmax(1), other.log_softmax(1)
    divergence = (F.kl_div(q, p, log_target=True, reduction="none") + F.kl_div(p, q, log_target=True, reduction="none")).sum(1) / 2
    for row in range(3):
        torch.testing.assert_close(value[row], divergence[row][shown[row, 0]].mean())


@pytest.mark.parametrize("kind", ["values", "logits"])
def test_l2_is_torchs_own_over_shown_voxels(kind):
    one, other = torch.randn(3, 4, 6, 6), torch.randn(3, 4, 6, 6)
    shown = torch.rand(3, 1, 6, 6) > 0.4
    value = Agreement(Agreement.Options(), make_info(2))(views_of(one, other, kind, shown))
    if kind == "logits":
        one, other = one.softmax(1), other.softmax(1)
    for row in range(3):
        kept = shown[row].expand(4, 6, 6)
        torch.testing.assert_close(value[row], F.mse_loss(one[row][kept], other[row][kept]))


def test_cosine_ignores_scale_and_sees_sign():
    one = torch.randn(3, 1, 6, 6)
    agreement = Agreement(Agreement.Options(distance="cosine"), make_info(2))
    torch.testing.assert_close(agreement(views_of(one, one * 7, "values")), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(agreement(views_of(one, -one, "values")), torch.full((3,), 2.0))


def test_a_sample_without_shared_voxels_counts_nothing():
    one, other = torch.randn(2, 1, 6, 6), torch.randn(2, 1, 6, 6)
    shown = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    shown[1] = False
    for distance in ("l2", "cosine"):
        value = Agreement(Agreement.Options(distance=distance), make_info(2))(views_of(one, other, "values", shown))
        assert value[0] > 0 and value[1] == 0


def test_kl_of_values_is_refused():
    with pytest.raises(ConfigError, match="answers with values"):
        Agreement(Agreement.Options(distance="kl"), make_info(2))(views_of(torch.randn(2, 1, 6, 6), torch.randn(2, 1, 6, 6), "values"))


def same_patient(views, rows):
    """The views with crops `rows` of one patient."""
    patient = views.crops.patient.clone()
    patient[rows] = int(patient[rows[0]])
    return replace(views, crops=replace(views.crops, patient=patient))


@pytest.mark.parametrize("cls", [MoCoV3, SimCLR, VoxelContrast])
def test_crops_of_one_patient_are_no_negatives_of_each_other(cls):
    views = make_views(make_crops(4, (8, 8)), make_info(2))
    loss = cls(cls.Options(), make_info(2))
    loss.projector, loss.predictor = nn.Identity(), nn.Identity()
    if views.teacher is not None:
        views = replace(views, teacher=replace(views.teacher, modules={"projector": nn.Identity()}))

    def moved(views):
        """The loss of sample 0, and what it is where its neighbour 1 is another."""
        other = views.mapped(lambda tensor: torch.cat([tensor[:1], tensor[1:2] * -3 + 1, tensor[2:]]))
        taught = replace(views.teacher.mapped(lambda tensor: torch.cat([tensor[:1], tensor[1:2] * -3 + 1, tensor[2:]])))
        return loss(views)[0], loss(replace(other, teacher=taught))[0]

    one, other = moved(views)
    assert not torch.isclose(one, other)
    torch.testing.assert_close(*moved(same_patient(views, [0, 1])))


@pytest.mark.parametrize("cls", [MoCo, PIRL])
def test_earlier_crops_of_the_same_patient_are_no_negatives(cls):
    options = {"queue": 8, "width": 4} if cls is MoCo else {"bank": 16, "width": 4, "temperature": 1.0}
    loss = cls(cls.Options(**options), make_info(2))
    views = make_views(make_crops(4, (8, 8)), make_info(2))
    views = replace(views, task_embeddings={"dense": views.task_embeddings["dense"]})
    if cls is MoCo:
        views = replace(views, teacher=replace(views.teacher, modules={"projector": loss.projector}))
    loss.commit(views.detach())
    before = loss(views)
    kept = loss.queue if cls is MoCo else loss.bank
    mine = loss.owner == views.crops.patient[0]
    assert mine.any()
    if cls is PIRL:  # its own entry is what is to be found; another of its patient's is not
        mine = torch.arange(len(kept)) == (~torch.isin(loss.owner, views.crops.patient)).nonzero()[0]
        loss.owner[mine] = views.crops.patient[0]
        before = loss(views)
    kept[mine] = F.normalize(torch.randn(int(mine.sum()), kept.shape[1]), dim=1)
    after = loss(views)
    assert torch.isclose(before[0], after[0]) and not torch.isclose(before[1], after[1])


def test_uda_teaches_only_what_is_sure_and_never_the_target():
    sure, unsure = torch.tensor([[8.0, 0.0]]), torch.tensor([[0.2, 0.0]])
    clean, changed = torch.cat([sure, unsure]).requires_grad_(), torch.zeros(2, 2).requires_grad_()
    loss = UDA(UDA.Options(sure=0.8, temperature=0.5), make_info(2))
    value = loss(views_of(clean, changed, "logits"))
    target = (sure / 0.5).softmax(1)
    torch.testing.assert_close(value[0], F.kl_div(changed[:1].log_softmax(1), target, reduction="sum"))
    assert value[1] == 0
    assert torch.autograd.grad(value.sum(), clean, allow_unused=True)[0] is None


def test_uda_comes_in_slowly_and_refuses_values():
    loss = UDA(UDA.Options(sure=0.0, ramp=0.5), make_info(2))
    views = views_of(torch.randn(2, 3), torch.randn(2, 3), "logits")
    early, late = (loss(replace(views, progress=progress)) for progress in (0.25, 1.0))
    torch.testing.assert_close(early * 2, late)
    with pytest.raises(ConfigError, match="answers with values"):
        loss(views_of(torch.randn(2, 1, 6, 6), torch.randn(2, 1, 6, 6), "values"))


def moved_views(size, options):
    """Views whose feature maps hold, at every voxel, where in the crop it lies."""
    crops = make_crops(3, size)
    axes = torch.meshgrid(*[torch.arange(float(side)) for side in size], indexing="ij")
    where = torch.stack([*axes, torch.ones_like(axes[0])]).flatten(1)
    affines = torch.stack([
        draw_affine(size, options, Draw(0, 0, crops.index, f"{view}")) for view in range(2)
    ])  # fmt: skip
    maps = tuple((affine @ where).unflatten(2, size) for affine in affines)
    return replace(make_views(crops, make_info(len(size))), feature_maps=maps, affines=affines)


@pytest.mark.parametrize("size", [(24, 30), (16, 20, 18)])
def test_points_are_the_same_voxels_in_every_view(size):
    found = corresponding(moved_views(size, ViewOptions(rotate=40, shift=0.3, scale=1.3)), 200)
    assert 0.2 < found.shown.float().mean() < 1
    one, other = (features[found.shown] for features in found.features)
    assert (one - other).abs().max() < 1  # at the border half a voxel is repeated
    assert (one - other).abs().mean() < 0.05


def test_voxels_nearby_are_no_negatives():
    views = make_views(make_crops(1, (8, 8)), make_info(2))
    far = VoxelContrast(VoxelContrast.Options(points=16, near=100.0), make_info(2))
    assert (far(views) == 0).all()  # nothing is left to be told from
    near = VoxelContrast(VoxelContrast.Options(points=16, near=0.5), make_info(2))
    assert (near(views) > 0).all()


def test_simsiam_is_the_papers_formula():
    loss = SimSiam(SimSiam.Options(width=16, bottleneck=4), make_info(2))
    views = make_views(make_crops(5, (8, 8)), make_info(2))
    z = [loss.projector(embedding) for embedding in views.embeddings]
    p = [loss.predictor(projection) for projection in z]
    # The paper's pseudocode, as its authors wrote it.
    expected = sum(-(F.normalize(a, dim=1) * F.normalize(b.detach(), dim=1)).sum(1) / 2 for a, b in ((p[0], z[1]), (p[1], z[0])))
    value = loss(views)
    torch.testing.assert_close(value, expected)
    mine, theirs = (torch.autograd.grad(v.sum(), list(loss.parameters()), retain_graph=True) for v in (value, expected))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("cls", [BYOL, BarlowTwins, MoCoV3, SimCLR, SimSiam, VICReg])
def test_losses_that_compare_crops_refuse_one(cls):
    loss = cls(cls.Options(), make_info(2))
    with pytest.raises(DataError, match=r"data\.batch"):
        loss(make_views(make_crops(1, (8, 8)), make_info(2)))


def train_simsiam(change: Callable[[SimSiam], None]) -> float:
    """Spread of normalised projections after training an encoder on noisy copies, 4 at a time; 1 is the most there is, 0 collapse."""
    torch.manual_seed(0)
    info = make_info(2)
    loss = SimSiam(SimSiam.Options(width=32, bottleneck=8), info)
    change(loss)
    encoder = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, info.embedding_width))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *loss.parameters()], lr=1e-3)
    base = make_views(make_crops(4, (4, 4)), info)
    items = torch.randn(64, 20)
    for _ in range(400):
        chosen = items[torch.randperm(64)[:4]]
        embeddings = tuple(encoder(chosen + 0.2 * torch.randn_like(chosen)) for _ in range(2))
        optimizer.zero_grad()
        loss(replace(base, embeddings=embeddings)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        return float(F.normalize(loss.projector(encoder(items)), dim=1).std(dim=0).mean()) * 32**0.5


def norm_over_features(loss: SimSiam) -> None:
    loss.projector[1], loss.projector[4], loss.predictor[1] = nn.LayerNorm(32), nn.LayerNorm(32), nn.LayerNorm(8)


def test_simsiam_does_not_collapse_and_would_without_its_norms():
    assert train_simsiam(lambda loss: None) > 0.8
    assert train_simsiam(norm_over_features) < 0.5
