"""The example of a task by somebody else: its blocks, what its encoder sees, and what it is compared with."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from medssl.contracts import Draw, PretextBatch, PretextTask, Taught
from medssl.errors import NetworkError
from medssl.plugins import PLUGIN_FILES, Plugins
from medssl.testing import make_crops, make_info
from probes.latent_targets import EXAMPLE, IJEPA


def asked(**options: object) -> tuple[PretextTask, PretextBatch]:
    task = IJEPA(IJEPA.Options(**{"width": 8, "depth": 1, **options}), make_info(3, crop=(24, 32, 16), tokens=True))
    crops = make_crops(3, (24, 32, 16))
    return task, task.make(crops, Draw(0, 0, crops.index, "i-jepa"))


def test_blocks_are_boxes_of_tokens_and_the_encoder_sees_none_of_them() -> None:
    _, batch = asked(blocks=3, share=0.1)
    grid = (6, 8, 4)
    assert batch.target.shape == (3, 3 * 3 * 4 * 2) and batch.visible is not None
    for numbers, seen in zip(batch.target, batch.visible, strict=True):
        assert not set(numbers.tolist()) & set(seen.tolist())
        for block in numbers.view(3, -1):
            places = torch.stack(torch.unravel_index(block, grid), dim=1)
            assert (places.amax(dim=0) - places.amin(dim=0) + 1).tolist() == [3, 4, 2] and len(set(block.tolist())) == 24
    assert batch.visible.shape == (3, 6 * 8 * 4 - 3 * 24)


def test_the_answer_is_what_the_teacher_makes_of_the_asked_tokens() -> None:
    task, batch = asked(blocks=2)
    told = torch.randn(3, 6 * 8 * 4, 16)
    batch = replace(batch, teacher=Taught({"tokens": told}))
    right = torch.stack([F.layer_norm(rows[numbers], (16,)) for rows, numbers in zip(told, batch.target, strict=True)])
    assert float(task.loss(right, batch).abs().max()) < 1e-6
    assert (task.loss(right + 1, batch) > 0.4).all()


def test_a_block_is_predicted_from_the_visible_tokens_and_its_own_place_alone() -> None:
    task, batch = asked(blocks=2)
    module = task.head().module  # type: ignore[union-attr]
    tokens = torch.randn(3, batch.visible.shape[1], 16)  # type: ignore[union-attr]
    cells = batch.target.shape[1] // 2
    elsewhere = torch.cat([batch.target[:, :cells], batch.target[:, cells:].flip(1)], dim=1)
    one, other = module(tokens, batch), module(tokens, replace(batch, target=elsewhere))
    torch.testing.assert_close(one[:, :cells], other[:, :cells])
    torch.testing.assert_close(one[:, cells:], other[:, cells:].flip(1), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(one, module(tokens + 1, batch))


def test_networks_without_tokens_and_blocks_that_hide_all_are_refused() -> None:
    with pytest.raises(NetworkError, match="ViT or UNETR"):
        IJEPA(IJEPA.Options(), make_info(2))
    with pytest.raises(NetworkError, match="Set blocks or share to less"):
        asked(blocks=8, share=0.3)


def test_the_file_is_a_plugin_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLUGIN_FILES, str(EXAMPLE))
    assert Plugins.load(environ=os.environ).task("i-jepa").citation.startswith("Assran")
