"""Pretrained weights arrive or the user is told: coverage, heads, prefixes, mismatches, hostile files."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from monai.networks.nets import SegResNet
from torch import nn

from medssl.errors import CheckpointError, MissingInput, NetworkError, TransferError, UsageError
from medssl.networks import NetworkSpec, as_spec, head_tensors, unique_tensors
from medssl.train.checkpoint import save_checkpoint
from medssl.transfer.load import LoadReport, load_pretrained

OPTIONS = {"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}


def segresnet(dims: int = 2, **fields: object) -> NetworkSpec:
    return as_spec(NetworkSpec("SegResNet", **{"spatial_dims": dims, "options": OPTIONS, **fields}))


def save(folder: Path, spec: NetworkSpec, network: nn.Module, step: int = 5, **state: object) -> Path:
    described = {"network": spec.model_dump(mode="json", by_alias=True, exclude_none=True), "head": list(head_tensors(spec))}
    return save_checkpoint(folder, step, {"network": network.state_dict()}, {"kind": "pretrain", **described, **state})


@pytest.fixture
def spec() -> NetworkSpec:
    return segresnet()


@pytest.fixture
def pretrained(spec: NetworkSpec) -> nn.Module:
    return spec.build(2, seed=7)


@pytest.fixture
def run(tmp_path: Path, spec: NetworkSpec, pretrained: nn.Module) -> Path:
    save(tmp_path / "run", spec, pretrained)
    return tmp_path / "run"


def body_is_equal(spec: NetworkSpec, network: nn.Module, source: nn.Module) -> bool:
    ours, theirs, head = unique_tensors(network), unique_tensors(source), set(head_tensors(spec))
    return all(torch.equal(ours[name], theirs[name]) for name in ours if name not in head)


def test_everything_but_the_head(run: Path, spec: NetworkSpec, pretrained: nn.Module) -> None:
    network, report = load_pretrained(spec, run, out_channels=4)
    assert type(network) is SegResNet
    assert network(torch.randn(1, 1, 16, 16)).shape == (1, 4, 16, 16)
    assert body_is_equal(spec, network, pretrained)
    assert report.coverage == 1.0
    assert set(report.new) == set(report.head) == set(report.left) == set(head_tensors(spec))
    assert report.share(report.loaded) + report.share(report.new) == pytest.approx(1.0)


def test_a_head_of_the_same_shape_starts_anew(run: Path, spec: NetworkSpec, pretrained: nn.Module) -> None:
    network, report = load_pretrained(spec, run, out_channels=2)
    for name in head_tensors(spec):
        if name.endswith("weight"):
            assert not torch.equal(unique_tensors(network)[name], unique_tensors(pretrained)[name])
        assert report.left[name] == "belongs to a head"


def test_a_head_that_only_the_checkpoint_names_stays_out(tmp_path: Path, spec: NetworkSpec, pretrained: nn.Module) -> None:
    save(tmp_path, spec, pretrained, head=["convInit.conv.weight"])
    network, report = load_pretrained(spec, tmp_path, out_channels=2)
    assert "convInit.conv.weight" in report.head
    assert not torch.equal(network.convInit.conv.weight, pretrained.convInit.conv.weight)


def test_run_folder_checkpoint_folder_and_files_inside(run: Path, spec: NetworkSpec, pretrained: nn.Module) -> None:
    folder = run / "checkpoints" / "step-00000005"
    for place in (str(run), folder, folder / "network.safetensors", folder / "state.json"):
        assert body_is_equal(spec, load_pretrained(spec, place, out_channels=3)[0], pretrained)


def test_the_checkpoints_own_network(run: Path, spec: NetworkSpec, pretrained: nn.Module) -> None:
    network, report = load_pretrained(None, run, out_channels=3)
    assert body_is_equal(spec, network, pretrained)
    assert report.network == "SegResNet"


def test_a_partial_is_a_network_too(run: Path, spec: NetworkSpec, pretrained: nn.Module) -> None:
    made = partial(SegResNet, spatial_dims=2, in_channels=1, **OPTIONS)
    assert body_is_equal(spec, load_pretrained(made, run, out_channels=3)[0], pretrained)


def test_a_callable_that_the_checkpoint_cannot_hold(tmp_path: Path) -> None:
    own = lambda out_channels: SegResNet(spatial_dims=2, out_channels=out_channels, **OPTIONS)  # noqa: E731
    spec = as_spec(own)
    save(tmp_path, spec, spec.build(2))
    with pytest.raises(NetworkError, match="Pass the same Python callable"):
        load_pretrained(None, tmp_path, out_channels=2)
    assert load_pretrained(own, tmp_path, out_channels=3)[1].coverage == 1.0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("UNet", {"channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 1}),
        ("BasicUNet", {"features": [4, 4, 8, 8, 16, 4]}),
        ("DynUNet", {"filters": [4, 8, 16, 16], "deep_supervision": True}),
        ("ResNet", {"block_inplanes": [4, 8, 8, 16]}),
    ],
)
@pytest.mark.parametrize("dims", [2, 3])
def test_every_family(tmp_path: Path, name: str, options: dict, dims: int) -> None:
    spec = as_spec(NetworkSpec(name, spatial_dims=dims, options=options))
    source = spec.pretraining().build(2, seed=1)
    save(tmp_path, spec.pretraining(), source)
    network, report = load_pretrained(spec, tmp_path, out_channels=5)
    assert report.coverage == 1.0
    assert not set(report.new) - set(report.head)
    ours, theirs = unique_tensors(network), unique_tensors(source)
    assert all(torch.equal(ours[name], theirs[name]) for name in report.loaded)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "student.", "model.network."])
@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_files_of_other_programs_and_their_wrappers(
    tmp_path: Path, spec: NetworkSpec, pretrained: nn.Module, prefix: str, container: str | None
) -> None:
    state = {prefix + name: tensor for name, tensor in pretrained.state_dict().items()}
    torch.save({container: state, "epoch": 3} if container else state, tmp_path / "weights.pt")
    network, report = load_pretrained(spec, tmp_path / "weights.pt", out_channels=2)
    assert report.coverage == 1.0
    assert body_is_equal(spec, network, pretrained)
    assert set(report.new) == set(head_tensors(spec))


def test_a_wrapped_and_compiled_network(tmp_path: Path, spec: NetworkSpec, pretrained: nn.Module) -> None:
    wrapped = nn.DataParallel(pretrained)
    safetensors.torch.save_file(wrapped.state_dict(), tmp_path / "weights.safetensors")
    assert load_pretrained(spec, tmp_path / "weights.safetensors", out_channels=2)[1].coverage == 1.0


def test_two_networks_in_one_file_are_not_mixed(tmp_path: Path, spec: NetworkSpec, pretrained: nn.Module) -> None:
    state = {f"{who}.{name}": tensor for who in ("student", "module") for name, tensor in pretrained.state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(TransferError, match="two tensors for 'convInit.conv.weight': 'student.convInit.conv.weight'"):
        load_pretrained(spec, tmp_path / "weights.pt", out_channels=2)


def test_the_report_is_for_people_and_for_files(run: Path, spec: NetworkSpec) -> None:
    _, report = load_pretrained(spec, run, out_channels=4)
    text = str(report)
    assert "100.0% of the values outside the head" in text
    assert re.search(r"loaded +\d+ tensors", text)
    assert re.search(r"new +2 tensors .*the head: conv_final.2.conv.weight, conv_final.2.conv.bias", text)
    assert re.search(r"left +2 tensors of the checkpoint, belongs to a head", text)
    document = json.loads(json.dumps(report.document()))
    assert document["coverage"] == 1.0
    assert document["new"]["head"] == list(report.head)


def test_a_part_of_the_network(tmp_path: Path, spec: NetworkSpec, pretrained: nn.Module) -> None:
    encoder = {name: tensor for name, tensor in pretrained.state_dict().items() if name.startswith(("convInit", "down_layers"))}
    torch.save(encoder, tmp_path / "encoder.pt")
    network, report = load_pretrained(spec, tmp_path / "encoder.pt", out_channels=2, min_coverage=0.3)
    assert 0.3 < report.coverage < 1.0
    assert "not in the checkpoint: up_layers" in str(report)
    assert torch.equal(network.convInit.conv.weight, pretrained.convInit.conv.weight)
    with pytest.raises(TransferError, match=r"\d\d\.\d% of SegResNet .* at least 99% was asked for"):
        load_pretrained(spec, tmp_path / "encoder.pt", out_channels=2, min_coverage=0.99)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (segresnet(3), r"The checkpoint is in 2D, the network in 3D: give spatial_dims: 2"),
        (
            segresnet(2, options={**OPTIONS, "init_filters": 16}),
            r"options\.init_filters is 8 there and 16 here.*'convInit\.conv\.weight' is",
        ),
        (
            segresnet(2, in_channels=2),
            r"other input channels: 'convInit\.conv\.weight' has shape \(8, 1, 3, 3\).*that of the network with in_channels 2",
        ),
        (as_spec(NetworkSpec("BasicUNet", spatial_dims=2)), r"nothing of BasicUNet .* name is SegResNet there and BasicUNet here"),
    ],
)
def test_another_network_is_one_clear_message(run: Path, other: NetworkSpec, message: str) -> None:
    with pytest.raises(TransferError, match=message):
        load_pretrained(other, run, out_channels=2)


def test_renamed_modules_are_shown_with_the_nearest_name(tmp_path: Path, spec: NetworkSpec, pretrained: nn.Module) -> None:
    torch.save({name.replace("_layers", "_blocks"): tensor for name, tensor in pretrained.state_dict().items()}, tmp_path / "weights.pt")
    with pytest.raises(TransferError, match=r"'down_layers\.\S+' is not there, 'down_blocks\.\S+' is"):
        load_pretrained(spec, tmp_path / "weights.pt", out_channels=2)


def test_nothing_at_all_is_an_error_at_any_coverage(tmp_path: Path, spec: NetworkSpec) -> None:
    torch.save({"something": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(TransferError, match="nothing of SegResNet"):
        load_pretrained(spec, tmp_path / "weights.pt", out_channels=2, min_coverage=0.0)


def test_weights_that_diverged(tmp_path: Path, spec: NetworkSpec, pretrained: nn.Module) -> None:
    with torch.no_grad():
        pretrained.convInit.conv.weight[0, 0, 0, 0] = float("nan")
    save(tmp_path, spec, pretrained)
    with pytest.raises(TransferError, match=r"'convInit\.conv\.weight' holds NaN"):
        load_pretrained(spec, tmp_path, out_channels=2)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


def test_a_hostile_file_is_refused_and_not_run(tmp_path: Path, spec: NetworkSpec) -> None:
    torch.save({"state_dict": Hostile(tmp_path / "owned")}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="never executes"):
        load_pretrained(spec, tmp_path / "weights.pt", out_channels=2)
    assert not (tmp_path / "owned").exists()


def test_a_whole_pickled_network_is_refused(tmp_path: Path, spec: NetworkSpec, pretrained: nn.Module) -> None:
    torch.save(pretrained, tmp_path / "network.pt")
    with pytest.raises(CheckpointError, match=r"state_dict\(\) alone"):
        load_pretrained(spec, tmp_path / "network.pt", out_channels=2)


def test_files_cut_short_or_of_another_kind(tmp_path: Path, spec: NetworkSpec, pretrained: nn.Module) -> None:
    torch.save(pretrained.state_dict(), tmp_path / "weights.pt")
    content = (tmp_path / "weights.pt").read_bytes()
    safetensors.torch.save_file(pretrained.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:5000])
    bad = {
        "short.pt": content[: len(content) // 2],
        "empty.pt": b"",
        "text.pt": b"hello, this is no file of weights",
        "zip.pt": b"PK\x03\x04junk",
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    for name in (*bad, "short.safetensors"):
        with pytest.raises(CheckpointError, match=re.escape(name)):
            load_pretrained(spec, tmp_path / name, out_channels=2)
    torch.save({"epoch": 3, "numbers": [1, 2]}, tmp_path / "no_tensors.pt")
    with pytest.raises(CheckpointError, match="no named tensors"):
        load_pretrained(spec, tmp_path / "no_tensors.pt", out_channels=2)


def test_a_damaged_checkpoint(run: Path, spec: NetworkSpec) -> None:
    file = run / "checkpoints" / "step-00000005" / "network.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        load_pretrained(spec, run, out_channels=2)


def test_wrong_calls(tmp_path: Path, run: Path, spec: NetworkSpec, pretrained: nn.Module) -> None:
    with pytest.raises(MissingInput):
        load_pretrained(spec, tmp_path / "nowhere", out_channels=2)
    with pytest.raises(UsageError, match="min_coverage"):
        load_pretrained(spec, run, out_channels=2, min_coverage=50)
    assert load_pretrained(pretrained, run, out_channels=2)[0] is not pretrained
    torch.save(pretrained.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(TransferError, match="does not say what network"):
        load_pretrained(None, tmp_path / "weights.pt", out_channels=2)


def test_many_tensors_are_listed_in_short() -> None:
    names = tuple(f"layer.{i}" for i in range(20))
    report = LoadReport("run", "Net", (), names, (), {}, (), dict.fromkeys(names, 1), 0.0)
    assert "and 14 more" in str(report)
