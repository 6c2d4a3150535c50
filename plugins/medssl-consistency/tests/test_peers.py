"""Losses are those of implementations we did not write (lightly, MONAI), or the formula of the paper, on a grid of sizes and temperatures.

lightly comes with the extra `test`; where it is absent, its comparisons skip.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import medssl_consistency
import pytest
import torch
from medssl_consistency import BYOL, UDA, Agreement, DenseAgreement, MoCo, MoCoV3, SimSiam, VoxelContrast
from medssl_consistency.distillation import distilled
from medssl_consistency.pirl import noise_contrastive
from medssl_consistency.points import corresponding
from medssl_consistency.redundancy import BarlowTwins, VICReg
from medssl_consistency.simclr import nt_xent
from monai.losses import ContrastiveLoss
from torch import nn
from torch.nn import functional as F

from medssl.testing import make_crops, make_info, make_views

SIZES = [(2, 4), (3, 16), (8, 128), (33, 64)]
"""Crops, width."""


def peer(name: str) -> Any:
    try:
        import lightly.loss as losses
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"lightly, which the loss is compared with, cannot be imported ({error}): pip install 'medssl-consistency[test]'")
    return getattr(losses, name)


def views_of(batch: int, width: int, seed: int = 0):
    """Views with teachers whose embeddings are (batch, width); a projector of them is the identity."""
    torch.manual_seed(seed)
    info = replace(make_info(2), embedding_width=width)
    views = make_views(make_crops(batch, (4, 4)), info)
    teacher = replace(views.teacher, modules={"projector": nn.Identity()})
    return replace(views, teacher=teacher), info


def bare(loss):
    """The loss itself, without the layers before it."""
    for name, _ in list(loss.named_children()):
        setattr(loss, name, nn.Identity())
    return loss


@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.0, 50.0])
@pytest.mark.parametrize(("batch", "width"), SIZES)
def test_simclr_is_lightlys(batch, width, temperature):
    torch.manual_seed(0)
    one, other = torch.randn(batch, width, requires_grad=True), torch.randn(batch, width, requires_grad=True)
    mine = nt_xent(torch.stack([one, other], dim=1), torch.arange(batch), temperature).mean()
    theirs = peer("NTXentLoss")(temperature=temperature)(one, other)
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    for left, right in zip(*(torch.autograd.grad(value, (one, other)) for value in (mine, theirs)), strict=True):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 50.0])  # MONAI's overflows below
@pytest.mark.parametrize(("batch", "width"), SIZES)
def test_simclr_is_monais(batch, width, temperature):
    torch.manual_seed(0)
    one, other = torch.randn(2, batch, width)
    mine = nt_xent(torch.stack([one, other], dim=1), torch.arange(batch), temperature).mean()
    torch.testing.assert_close(mine, ContrastiveLoss(temperature=temperature)(one, other), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize(("batch", "width"), SIZES)
def test_moco_is_lightlys_with_the_same_queue(batch, width, temperature):
    views, info = views_of(batch, width)
    loss = bare(MoCo(MoCo.Options(queue=50, width=width, temperature=temperature), info))
    values = []
    for query, key in ((0, 1), (1, 0)):
        theirs = peer("NTXentLoss")(temperature=temperature, memory_bank_size=(50, width))
        theirs.memory_bank.bank = loss.queue.clone()
        theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
        values.append(theirs(views.embeddings[query], views.teacher.embeddings[key]))
    torch.testing.assert_close(loss(views).mean(), torch.stack(values).mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize(("batch", "width"), SIZES)
def test_moco_v3_is_the_pseudocode_of_the_paper(batch, width, temperature):
    views, info = views_of(batch, width)
    loss = bare(MoCoV3(MoCoV3.Options(temperature=temperature), info))

    def ctr(query, key):
        logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temperature
        return 2 * temperature * F.cross_entropy(logits, torch.arange(batch))

    (q1, q2), (k1, k2) = views.embeddings, views.teacher.embeddings
    torch.testing.assert_close(loss(views).mean(), (ctr(q1, k2) + ctr(q2, k1)) / 2, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("batch", "width"), SIZES)
def test_byol_is_lightlys_negative_cosine(batch, width):
    views, info = views_of(batch, width)
    loss = bare(BYOL(BYOL.Options(), info))
    theirs = peer("NegativeCosineSimilarity")()
    (p1, p2), (z1, z2) = views.embeddings, views.teacher.embeddings
    torch.testing.assert_close(loss(views).mean(), 2 + theirs(p1, z2) + theirs(p2, z1))


@pytest.mark.parametrize("scale", [0.01, 1.0, 20.0])
@pytest.mark.parametrize(("batch", "width"), SIZES)
def test_vicreg_is_lightlys(batch, width, scale):
    views, info = views_of(batch, width)
    views = views.mapped(lambda tensor: tensor * scale)
    mine = bare(VICReg(VICReg.Options(), info))(views)
    theirs = peer("VICRegLoss")()(*views.embeddings)
    torch.testing.assert_close(mine.mean(), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("batch", "width"), [size for size in SIZES if size[0] > 2])
def test_barlow_is_lightlys(batch, width):
    views, info = views_of(batch, width)
    loss = BarlowTwins(BarlowTwins.Options(), info)
    loss.projector = nn.BatchNorm1d(width, affine=False)
    mine = loss(views)
    theirs = peer("BarlowTwinsLoss")()(*views.embeddings)
    torch.testing.assert_close(mine.mean(), theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("batch", "width"), SIZES)
def test_dino_is_lightlys(batch, width):
    torch.manual_seed(0)
    teacher, student = torch.randn(2, batch, width), torch.randn(2, batch, width)
    theirs = peer("DINOLoss")(output_dim=width, warmup_teacher_temp=0.04, teacher_temp=0.04, student_temp=0.1)
    centre = torch.zeros(width)
    for _ in range(2):
        pairs = [distilled(student[a], teacher[b], centre, 0.04).mean() for a, b in ((0, 1), (1, 0))]
        value = theirs(list(teacher), list(student), epoch=0)
        torch.testing.assert_close(torch.stack(pairs).mean(), value, atol=1e-4, rtol=1e-4)
        centre = centre.lerp(teacher.flatten(0, 1).mean(dim=0), 0.1)


@pytest.mark.parametrize(("batch", "width"), SIZES)
def test_ibots_cells_are_lightlys(batch, width):
    torch.manual_seed(0)
    teacher, student = torch.randn(batch, 9, width), torch.randn(batch, 9, width)
    hidden = torch.rand(batch, 3, 3) < 0.5
    hidden[:, 0, 0] = True
    theirs = peer("IBOTPatchLoss")(output_dim=width, teacher_temp=0.04, student_temp=0.1)
    flat = hidden.flatten(1)
    value = theirs(teacher[flat], student[flat], mask=hidden)
    mine = distilled(student, teacher, torch.zeros(width), 0.04)
    torch.testing.assert_close(((mine * flat).sum(dim=1) / flat.sum(dim=1)).mean(), value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_pirls_estimate_is_the_formula_of_the_paper_and_finite(temperature):
    torch.manual_seed(0)
    right, others = (torch.rand(5) * 2 - 1) / temperature, (torch.rand(5, 30) * 2 - 1) / temperature
    excluded = torch.rand(5, 30) < 0.3
    value = noise_contrastive(right, others, excluded)
    for row in range(5):
        kept = others[row][~excluded[row]].double()
        total = kept.exp().sum()

        def h(score, total=total):
            return score.exp() / (score.exp() + total)

        expected = -h(right[row].double()).log() - (1 - h(kept)).log().sum()
        torch.testing.assert_close(value[row].double(), expected, atol=1e-4, rtol=1e-4)
    everything = torch.ones_like(excluded)
    assert torch.isfinite(noise_contrastive(right * 1e4, others * 1e4, everything)).all()


GRIDS = [(2, (8, 8)), (3, (8, 12, 8)), (5, (16, 8))]
"""Crops, and their sides."""


def views_on_maps(batch, size, features=6):
    """Views whose feature maps have `features` channels."""
    info = replace(make_info(len(size)), feature_width=features)
    return make_views(make_crops(batch, size), info, shown=False), info


@pytest.mark.parametrize(("batch", "width"), SIZES)
def test_simsiam_is_lightlys_negative_cosine(batch, width):
    views, info = views_of(batch, width)
    theirs = peer("NegativeCosineSimilarity")()
    one, other = views.embeddings
    expected = (theirs(one, other) + theirs(other, one)) / 2
    torch.testing.assert_close(bare(SimSiam(SimSiam.Options(), info))(views).mean(), expected)


@pytest.mark.parametrize(("batch", "size"), GRIDS)
def test_dense_agreement_is_lightlys_negative_cosine_at_each_point(batch, size):
    views, info = views_on_maps(batch, size)
    theirs = peer("NegativeCosineSimilarity")()
    found = corresponding(views, 64)
    assert found.shown.all()
    mine = bare(DenseAgreement(DenseAgreement.Options(points=64), info))(views)
    for row in range(batch):
        torch.testing.assert_close(mine[row], theirs(found.features[0][row], found.features[1][row]))


@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
@pytest.mark.parametrize(("batch", "size"), GRIDS)
def test_voxel_contrast_is_lightlys_with_the_voxels_of_others_as_a_queue(batch, size, temperature):
    """With `near` beyond the crop a voxel's others are those of the other patients alone: one queue for all voxels of a crop."""
    views, info = views_on_maps(batch, size)
    found = corresponding(views, 27)
    mine = bare(VoxelContrast(VoxelContrast.Options(points=27, near=1000, temperature=temperature), info))(views)
    for row in range(batch):
        values = []
        for one, other in ((0, 1), (1, 0)):
            others = torch.cat([found.features[other][number] for number in range(batch) if number != row])
            theirs = peer("NTXentLoss")(temperature=temperature, memory_bank_size=(len(others), others.shape[1]))
            theirs.memory_bank.bank = F.normalize(others, dim=1).clone()
            theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
            values.append(theirs(found.features[one][row], found.features[other][row]))
        torch.testing.assert_close(mine[row], torch.stack(values).mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("batch", "size"), GRIDS)
def test_agreement_is_torchs_distances(batch, size):
    views, info = views_on_maps(batch, size)
    one, other = views.answers["dense"]
    for distance, theirs in (("l2", F.mse_loss(one, other)), ("cosine", 1 - F.cosine_similarity(one.flatten(1), other.flatten(1)).mean())):
        only = replace(views, answers={"dense": (one, other)})
        torch.testing.assert_close(Agreement(Agreement.Options(distance=distance), info)(only).mean(), theirs)
    for kind in ("pooled", "dense"):
        left, right = (answer.log_softmax(dim=1).movedim(1, -1).flatten(0, -2) for answer in views.answers[kind])
        both = [F.kl_div(p, q, reduction="batchmean", log_target=True) for p, q in ((left, right), (right, left))]
        only = replace(views, answers={kind: views.answers[kind]}, kinds={kind: "logits"})
        torch.testing.assert_close(Agreement(Agreement.Options(distance="kl"), info)(only).mean(), torch.stack(both).mean())


@pytest.mark.parametrize("temperature", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("sure", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("batch", [2, 5, 33])
def test_uda_is_torchs_divergence_from_the_sharpened_answers_that_are_sure(batch, sure, temperature):
    views, info = views_on_maps(batch, (8, 8))
    clean, changed = (3 * answer for answer in views.answers["pooled"])
    only = replace(views, answers={"pooled": (clean, changed)}, kinds={"pooled": "logits"})
    counted = clean.softmax(dim=1).max(dim=1).values >= sure
    theirs = F.kl_div(changed.log_softmax(dim=1), (clean / temperature).softmax(dim=1), reduction="none").sum(dim=1)
    mine = UDA(UDA.Options(sure=sure, temperature=temperature), info)(only)
    torch.testing.assert_close(mine, torch.where(counted, theirs, torch.zeros_like(theirs)), atol=1e-5, rtol=1e-5)


def test_every_loss_is_compared_with_another_implementation():
    """Whoever adds a loss adds what it is compared with."""
    compared = {"agreement", "barlow", "byol", "dense-agreement", "dino", "moco", "moco-v3", "pirl", "simclr", "simsiam", "uda", "vicreg"}
    assert {loss.name for loss in medssl_consistency.medssl_consistency_losses()} == compared | {"voxel-contrast"}
