"""Files as public checkpoints are: more than tensors in them, prefixes too many or too few, and some that would run code."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medssl.errors import CheckpointError, TransferError, UsageError
from medssl.networks import NetworkSpec, as_spec, head_tensors, unique_tensors
from medssl.networks.names import Renaming, best_renaming
from medssl.train.inert import Inert, read_torch_file
from medssl.transfer.load import load_pretrained

SWIN = {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 4}


def segresnet() -> NetworkSpec:
    return as_spec(NetworkSpec("SegResNet", spatial_dims=2, options={"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}))


def states_of(spec: NetworkSpec) -> dict[str, Tensor]:
    return dict(spec.build(2, seed=7).state_dict())


class Plans:
    """As a training program's own configuration object."""

    def __init__(self) -> None:
        self.steps, self.where = [1, 2], Path("/data/JOHN")


def prefixed(state: dict[str, Tensor], prefix: str) -> OrderedDict[str, Tensor]:
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def optimizer_of(state: dict[str, Tensor]) -> dict[str, Any]:
    network = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict() | {"more": defaultdict(list, {"a": [np.float64(1.0)]})}


LAYOUTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], bool]] = {
    "nnU-Net": (
        lambda state: {
            "network_weights": state,
            "optimizer_state": optimizer_of(state),
            "grad_scaler_state": {"scale": 65536.0, "growth_factor": 2.0},
            "logging": {"mean_fg_dice": [np.float32(0.5)], "dice_per_class_or_region": [[np.float64(0.1)]], "lrs": [0.01]},
            "_best_ema": np.float64(0.8),
            "current_epoch": 1000,
            "init_args": {"plans": {"a": (1, 2)}, "configuration": "3d_fullres", "fold": 0, "device": torch.device("cuda")},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": (0, 1, 2),
        },
        True,
    ),
    "nnssl": (
        lambda state: {
            "network_weights": prefixed(state, "_orig_mod."),
            "nnssl_adaptation_plan": {"architecture_plans": Plans(), "key_to_encoder": "encoder.stages", "recommended": np.int64(160)},
            "citations": ["..."],
        },
        True,
    ),
    "VoCo": (
        lambda state: {
            "state_dict": {**prefixed(state, "backbone."), "proj_head.weight": torch.ones(3, 3), "teacher.a": torch.ones(1)},
            "args": argparse.Namespace(lr=1e-3, logdir="/data/JOHN"),
            "optimizer": optimizer_of(state),
            "epoch": np.int64(3),
        },
        True,
    ),
    "Models Genesis": (
        lambda state: {"epoch": 10, "state_dict": prefixed(state, "module."), "optimizer_state_dict": optimizer_of(state)},
        False,
    ),
    "MedicalNet": (
        lambda state: {"ecpoch": 1, "batch_id": 5, "state_dict": prefixed(state, "module."), "optimizer": optimizer_of(state)},
        False,
    ),
    "parameters": (lambda state: {name: nn.Parameter(tensor) for name, tensor in state.items()}, True),
}  # fmt: skip


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_tensors_are_read_and_the_rest_is_left(layout: str, tmp_path: Path) -> None:
    make, modern = LAYOUTS[layout]
    spec, state = segresnet(), states_of(segresnet())
    torch.save(make(state), tmp_path / "weights.pt", _use_new_zipfile_serialization=modern)
    network, report = load_pretrained(spec, tmp_path / "weights.pt", out_channels=2)
    assert report.coverage == 1.0 and not report.missing
    loaded = unique_tensors(network)
    assert all(torch.equal(loaded[name], state[name]) for name in loaded if name not in head_tensors(spec))
    assert "JOHN" not in str(report) + str(report.document())


def test_what_became_a_stand_in_is_named_and_does_nothing(tmp_path: Path) -> None:
    torch.save({"args": Plans(), "w": torch.arange(4.0).reshape(2, 2).T}, tmp_path / "a.pt")
    content, left = read_torch_file(tmp_path / "a.pt")
    assert isinstance(content["args"], Inert) and not hasattr(content["args"], "steps")
    assert any(name.endswith("Plans") for name in left)
    assert torch.equal(content["w"], torch.arange(4.0).reshape(2, 2).T)


class Calls:
    """Pickled, it says: call this with that."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.function, self.given = function, given

    def __reduce__(self) -> Any:
        return self.function, self.given


def attacks(mark: Path) -> dict[str, Any]:
    touch = f"import pathlib; pathlib.Path({str(mark)!r}).touch()"
    return {
        "os.mkdir": Calls(os.mkdir, str(mark)),
        "os.system": Calls(os.system, f"touch {mark}"),
        "exec": Calls(exec, touch),
        "eval": Calls(eval, f"__import__('os').mkdir({str(mark)!r})"),
        "getattr": Calls(getattr, Calls(__import__, "os"), "mkdir"),
        "pickle": Calls(pickle.loads, pickle.dumps(Calls(os.mkdir, str(mark)))),
        "torch.load": Calls(torch.load, str(mark)),
        "numpy": Calls(np.save, str(mark), 1),
        "hub": Calls(torch.hub.load_state_dict_from_url, f"file://{mark}"),
        "a state": _with_state(mark),
    }


class Stateful:
    mark: Path

    def __setstate__(self, state: Any) -> None:
        Path(state["mark"]).mkdir()

    def __getstate__(self) -> Any:
        return {"mark": str(self.mark)}


def _with_state(mark: Path) -> Stateful:
    found = Stateful()
    found.mark = mark
    return found


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("attack", list(attacks(Path("x"))))
def test_nothing_is_executed(attack: str, modern: bool, tmp_path: Path) -> None:
    spec, state = segresnet(), states_of(segresnet())
    mark = tmp_path / "owned"
    hostile = {"args": attacks(mark)[attack], "state_dict": {**state, "more": attacks(mark)[attack]}}
    torch.save(hostile, tmp_path / "weights.pt", _use_new_zipfile_serialization=modern)
    assert load_pretrained(spec, tmp_path / "weights.pt", out_channels=2)[1].coverage == 1.0
    assert not list(tmp_path.glob("owned*"))


def test_protocol_4_and_objects_that_are_called_stay_inert(tmp_path: Path) -> None:
    """Dotted names and stack globals, as newer protocols have them, written by hand."""
    mark = str(tmp_path / "owned")
    program = b"\x80\x04" + b"\x8c\x02os" + b"\x8c\x05mkdir" + b"\x93" + b"\x8c" + bytes([len(mark)]) + mark.encode() + b"\x85R."
    pickle.loads(program)
    assert Path(mark).is_dir(), "the attack itself must work"
    Path(mark).rmdir()
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/version", "3\n")
    with pytest.raises(CheckpointError, match="no named tensors"):
        load_pretrained(segresnet(), tmp_path / "weights.pt", out_channels=2)
    assert not Path(mark).exists()


def test_a_pickle_cannot_change_what_it_is_given() -> None:
    from medssl.train import inert

    before = dict(inert._KNOWN)
    call = inert._KNOWN["torch._utils", "_rebuild_tensor_v2"]
    call.__setstate__({"_function": print})
    assert call._function is inert._tensor and before == inert._KNOWN
    assert isinstance(call("no storage", 0, (), ()), Inert)


def test_programs_and_other_files_are_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "program.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"w": 1}))
    (tmp_path / "tar.pt").write_bytes(b"storages" + b"\0" * 504)
    with pytest.raises(CheckpointError, match="TorchScript program"):
        load_pretrained(segresnet(), tmp_path / "program.pt", out_channels=2)
    for name in ("plain.pkl", "tar.pt"):
        with pytest.raises(CheckpointError, match=re.escape(name)):
            load_pretrained(segresnet(), tmp_path / name, out_channels=2)


def test_a_tensor_beyond_its_storage_is_damage(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(4)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in parts if name.endswith("data.pkl"))
    # Its size (4,) becomes (255,): more than the 16 bytes of its storage.
    parts[name] = parts[name].replace(b"K\x00K\x04\x85", b"K\x00K\xff\x85", 1)
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    with pytest.raises(CheckpointError, match=r"b\.pt"):
        read_torch_file(tmp_path / "b.pt")


@pytest.mark.parametrize(("off", "on"), [("", "swinViT."), ("module.", "swinViT."), ("module.backbone.", ""), ("a.b.", ""), ("", "")])
def test_prefixes_are_found_in_both_directions(off: str, on: str) -> None:
    targets = {f"swinViT.{name}": tensor for name, tensor in states_of(segresnet()).items()} | {"decoder.weight": torch.ones(2, 2)}
    given = {off + name.removeprefix(on): tensor for name, tensor in targets.items() if name.startswith(on)}
    assert best_renaming(given, targets, Path("w.pt")) == Renaming(off, on)


def test_an_encoder_without_its_prefix_loads_and_the_report_says_so(tmp_path: Path) -> None:
    """As `model_swinvit.pt`: no `swinViT.`, a `module.`, heads of its own, and layers called fc1 and fc2."""
    spec = as_spec(NetworkSpec("SwinUNETR", spatial_dims=3, options=SWIN))
    source = spec.build(2, seed=3).state_dict()
    encoder = {name.removeprefix("swinViT."): tensor for name, tensor in source.items() if name.startswith("swinViT.")}
    named = {name.replace(".linear", ".fc"): tensor for name, tensor in encoder.items()}
    torch.save({"epoch": 1, "state_dict": prefixed({**named, "rotation_head.weight": torch.ones(4, 8)}, "module.")}, tmp_path / "swin.pt")
    with pytest.raises(TransferError, match=r"everything was asked for. Missing: .*swinViT\.layers1\.0\.blocks\.0\.mlp\.\*.*fc1"):
        load_pretrained(spec, tmp_path / "swin.pt", out_channels=2)
    rest = ["encoder*", "decoder*"]
    with pytest.raises(TransferError, match="mlp"):
        load_pretrained(spec, tmp_path / "swin.pt", out_channels=2, allow_missing=rest)
    rename = {"fc1": "linear1", "fc2": "linear2"}
    network, report = load_pretrained(spec, tmp_path / "swin.pt", out_channels=2, allow_missing=rest, rename=rename)
    assert "names with 'module.' taken off and 'swinViT.' put in front" in str(report)
    assert report.document()["names"] == "'module.' taken off and 'swinViT.' put in front"
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], source[name]) for name in loaded if name.startswith("swinViT."))
    assert all(name.startswith(("encoder", "decoder")) for name in report.missing)


def test_a_partial_load_is_an_error_unless_the_parts_are_named(tmp_path: Path) -> None:
    spec, state = segresnet(), states_of(segresnet())
    some = {name: tensor for name, tensor in state.items() if not name.startswith("up_layers")}
    torch.save(some, tmp_path / "weights.pt")
    with pytest.raises(TransferError, match=r"everything was asked for. Missing: up_layers\.\*\. .*allow_missing: \['up_layers\.\*'\]"):
        load_pretrained(spec, tmp_path / "weights.pt", out_channels=2)
    report = load_pretrained(spec, tmp_path / "weights.pt", out_channels=2, allow_missing=["up_layers.*"])[1]
    assert report.missing and all(name.startswith("up_layers") for name in report.missing)
    assert load_pretrained(spec, tmp_path / "weights.pt", out_channels=2, min_coverage=0.5)[1].missing == report.missing
    with pytest.raises(UsageError, match=r"'up_layerz\*' fits no tensor of SegResNet.*up_layers"):
        load_pretrained(spec, tmp_path / "weights.pt", out_channels=2, allow_missing=["up_layerz*"])


def test_counters_of_batch_norms_need_not_be_in_a_file(tmp_path: Path) -> None:
    """Files from before PyTorch 0.4.1 have none."""
    spec = as_spec(NetworkSpec("ResNet", spatial_dims=3, options={"block_inplanes": [4, 8, 8, 16]}))
    state = {name: tensor for name, tensor in states_of(spec).items() if not name.endswith("num_batches_tracked")}
    body = {name: tensor for name, tensor in state.items() if name not in head_tensors(spec)}
    torch.save({"state_dict": prefixed({**body, "conv_seg.0.weight": torch.ones(2, 2)}, "module.")}, tmp_path / "resnet.pth")
    report = load_pretrained(spec, tmp_path / "resnet.pth", out_channels=3)[1]
    assert not report.missing and report.made and all(name.endswith("num_batches_tracked") for name in report.made)


def test_names_that_meet_after_renaming_are_an_error(tmp_path: Path) -> None:
    torch.save({"a.fc1.weight": torch.ones(2), "a.linear1.weight": torch.ones(2)}, tmp_path / "weights.pt")
    with pytest.raises(TransferError, match=r"two tensors for 'a\.linear1\.weight'.*Rename them"):
        load_pretrained(segresnet(), tmp_path / "weights.pt", out_channels=2, rename={"fc1": "linear1"})
