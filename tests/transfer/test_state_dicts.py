"""A state dict, and a file that holds one, is a checkpoint wherever a checkpoint is taken."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from monai.networks.nets import SegResNet
from torch import Tensor

import medssl
from medssl.errors import CheckpointError, TransferError, UsageError
from medssl.run import Run
from medssl.train.checkpoint import checkpoint_path, find_checkpoint, load_checkpoint, save_checkpoint
from medssl.volumes import make_store

SMALL: Callable[..., Any] = partial(SegResNet, spatial_dims=3, in_channels=1, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))
BODY = "down_layers.1.1.conv1.conv.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """As a program without medssl saves a network: wrapped, under a prefix."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return {f"module.{name}": tensor for name, tensor in SMALL(out_channels=2).state_dict().items()}


def as_given(kind: str, weights: dict[str, Tensor], folder: Path) -> Any:
    """The same weights as a state dict, inside what a program saves, in torch's file and in that of safetensors."""
    if kind == "state dict":
        return weights
    if kind == "program's dict":
        return {"epoch": 3, "state_dict": weights}
    if kind == "torch file":
        torch.save({"state_dict": weights}, folder / "net.pt")
        return folder / "net.pt"
    safetensors.torch.save_file(weights, folder / "net.safetensors")
    return str(folder / "net.safetensors")


KINDS = ("state dict", "program's dict", "torch file", "safetensors file")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, cases: Path) -> Path:
    folder = tmp_path_factory.mktemp("store") / "store"
    make_store([cases / "images"], folder, modality="MR", workers=1)
    return folder


def finetuned(cases: Path, out: Path, pretrained: Any, network: Any = SMALL, **more: Any) -> Run:
    data = {"images": cases / "images", "labels": cases / "labels", "size": [8, 8, 8], "batch": 1}
    options = {"steps": 1, "learning_rate": 1e-12, "verbose": False, **more}
    return medssl.fine_tune(network, data, pretrained, out, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fine_tuning_starts_from_it(kind: str, weights: dict[str, Tensor], cases: Path, tmp_path: Path) -> None:
    run = finetuned(cases, tmp_path / "run", as_given(kind, weights, tmp_path))
    assert run.report.coverage == 1
    torch.testing.assert_close(run.network.state_dict()[BODY], weights[f"module.{BODY}"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_pretraining_goes_on_from_it(kind: str, weights: dict[str, Tensor], store: Path, tmp_path: Path) -> None:
    pytest.importorskip("medssl_inpainting")
    options: dict[str, Any] = {"size": [8, 8, 8], "batch": 1, "steps": 1, "learning_rate": 1e-12, "verbose": False}
    tasks = [{"name": "inpainting", "block": 4}]
    given = as_given(kind, weights, tmp_path)
    run = medssl.pretrain(SMALL, store, tasks, out=tmp_path / "run", from_=given, **options)
    torch.testing.assert_close(run.network.state_dict()[BODY], weights[f"module.{BODY}"])
    with pytest.raises(TransferError, match=r"does not say what network it holds. Name it.*network=partial\(SegResNet"):
        medssl.pretrain(None, store, tasks, out=tmp_path / "other", from_=given, **options)


def test_a_run_that_began_with_a_state_dict_goes_on_by_itself(weights: dict[str, Tensor], cases: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    finetuned(cases, out, weights)
    again = finetuned(cases, out, weights, steps=2, resume=True)
    assert again.state.step == 2
    other = {name: tensor + 1 for name, tensor in weights.items()}
    with pytest.raises(UsageError, match=r"began with other weights.*given.safetensors back"):
        finetuned(cases, out, other, steps=3, resume=True)
    from_its_own = medssl.fine_tune(config=out / "config.yaml", out=out, resume=True, steps=3, verbose=False)
    assert from_its_own.state.step == 3
    with pytest.raises(medssl.errors.TrainingError, match="already holds a run"):
        finetuned(cases, out, weights)


def test_objects_stand_in_a_configuration_made_in_python(weights: dict[str, Tensor], cases: Path, tmp_path: Path) -> None:
    first = finetuned(cases, tmp_path / "first", weights)
    data = {"images": cases / "images", "labels": cases / "labels", "size": [8, 8, 8], "batch": 1}
    for name, given in (("run", first), ("dict", weights), ("checkpoint", find_checkpoint(first))):
        config = {"network": None if name != "dict" else medssl.NetworkSpec.model_validate(first.config.network), "pretrained": given}  # type: ignore[attr-defined]
        run = medssl.fine_tune(config=config, data=data, out=tmp_path / name, steps=1, verbose=False)
        assert run.report.coverage == 1


def test_what_a_state_dict_lacks_is_one_message(weights: dict[str, Tensor], cases: Path, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"given.safetensors does not say what network it holds. Name it.*or the network itself"):
        finetuned(cases, tmp_path / "run", weights, network=None)
    with pytest.raises(TransferError, match="the state dict does not say what network it holds"):
        medssl.load_pretrained(None, weights)
    with pytest.raises(CheckpointError, match="holds no named tensors"):
        finetuned(cases, tmp_path / "other", {"epoch": 3})
    torch.save(weights, tmp_path / "net.pt")
    for given in (tmp_path / "net.pt", weights):
        with pytest.raises(UsageError, match="no run and no checkpoint of medssl. Tensors alone do not say"):
            medssl.predict(given, cases / "images", tmp_path / "maps")  # type: ignore[arg-type]
    for wrong in (3, None, SMALL(), [weights]):
        with pytest.raises(UsageError, match=f"not from {type(wrong).__name__}"):
            medssl.load_into(SMALL(), wrong)  # type: ignore[arg-type]


def test_a_network_that_exists_takes_part(weights: dict[str, Tensor], cases: Path, tmp_path: Path) -> None:
    network = SMALL(out_channels=3)
    medssl.load_into(network, weights, allow_missing=["conv_final.2.*"])
    run = finetuned(cases, tmp_path / "run", weights, network=network)
    torch.testing.assert_close(run.network.state_dict()[BODY], weights[f"module.{BODY}"])
    saved = save_checkpoint(tmp_path / "mine", 1, {"network": weights}, {})
    assert load_checkpoint(saved).path == checkpoint_path(tmp_path / "mine", 1)
    assert finetuned(cases, tmp_path / "from", load_checkpoint(saved)).report.coverage == 1
