"""Agreement and SimSiam keep the public contract, agree with implementations we did not write, and do not collapse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from medssl_consistency import Agreement, SimSiam
from torch import nn
from torch.nn import functional as F

from medssl.errors import ConfigError, DataError
from medssl.testing import ConsistencyLossContract, make_crops, make_info, make_views


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


def test_simsiam_refuses_a_batch_of_one():
    loss = SimSiam(SimSiam.Options(), make_info(2))
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
    assert train_simsiam(norm_over_features) < 0.4
