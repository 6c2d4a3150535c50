"""Checkpoints: whole or not there, every byte verified, the newest good one found."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.errors import CheckpointError, MissingInput
from medssl.train import checkpoint as module
from medssl.train.checkpoint import (
    CheckpointWarning,
    checkpoint_path,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    newest_good,
    save_checkpoint,
)
from medssl.train.run_folder import locked


def tensors(step: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(3, 4, generator=generator)
    network = {"a.weight": weight, "again.weight": weight, "a.steps": torch.tensor(step), "view": weight.t()}
    return {"network": network, "optimizer": {"a.weight/exp_avg": torch.randn(4, 3, generator=generator).bfloat16()}}


def same(a: dict[str, dict[str, torch.Tensor]], b: dict[str, dict[str, torch.Tensor]]) -> bool:
    return a.keys() == b.keys() and all(
        a[group].keys() == b[group].keys() and all(torch.equal(a[group][n], b[group][n]) for n in a[group]) for group in a
    )


def test_what_is_saved_comes_back_and_doubles_are_written_once(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 500, tensors(), {"kind": "pretrain", "nested": {"x": [1, 2.5, None]}})
    assert path == tmp_path / "checkpoints" / "step-00000500" == checkpoint_path(tmp_path, 500)
    assert sorted(p.name for p in path.iterdir()) == ["network.safetensors", "optimizer.safetensors", "state.json"]
    read = load_checkpoint(path)
    assert read.step == 500
    assert read.state["nested"] == {"x": [1, 2.5, None]}
    assert same(read.tensors, tensors())
    from safetensors import safe_open

    with safe_open(path / "network.safetensors", "pt") as file:
        assert "again.weight" not in file.keys()  # noqa: SIM118 - not a dict


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path / "a", 5, tensors(), {"x": 1})
    second = save_checkpoint(tmp_path / "b", 5, tensors(), {"x": 1})
    assert all((second / p.name).read_bytes() == p.read_bytes() for p in first.iterdir())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("run"), 3, tensors(3), {"kind": "pretrain"})


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_changed_byte_or_cut_is_detected(written: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(sorted(written.iterdir())))
    good = file.read_bytes()
    position = data.draw(st.integers(0, len(good) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "zero", "grow"]))
    flipped = good[:position] + bytes([good[position] ^ (1 << data.draw(st.integers(0, 7)))]) + good[position + 1 :]
    zeroed = good[:position] + bytes(len(good) - position)
    bad = {"flip": flipped, "cut": good[:position], "zero": zeroed, "grow": good + b"\0"}[how]
    file.write_bytes(bad)
    try:
        if bad == good:
            load_checkpoint(written)
        else:
            with pytest.raises(CheckpointError, match=file.name):
                load_checkpoint(written)
    finally:
        file.write_bytes(good)


def test_a_missing_file_is_named(written: Path, tmp_path: Path) -> None:
    for name in ("network.safetensors", "state.json"):
        aside = tmp_path / name
        (written / name).rename(aside)
        with pytest.raises(CheckpointError, match=rf"{name} is damaged: the file is missing.*--resume"):
            load_checkpoint(written)
        aside.rename(written / name)
    with pytest.raises(MissingInput, match="run folder"):
        load_checkpoint(tmp_path / "nothing")


def test_a_newer_format_says_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VERSION", 99)
    path = save_checkpoint(tmp_path, 1, tensors(), {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"version 99.*Update medssl"):
        load_checkpoint(path)


def test_a_checkpoint_of_an_earlier_medssl_is_refused_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VERSION", 1)
    path = save_checkpoint(tmp_path, 1, tensors(), {"versions": {"medssl": "0.0.9"}})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"version 1, of an earlier medssl \(0\.0\.9\).*Train again"):
        load_checkpoint(path)


def test_newest_good_passes_over_damaged_ones_and_says_so(tmp_path: Path) -> None:
    assert newest_good(tmp_path) is None
    paths = [save_checkpoint(tmp_path, step, tensors(step), {}) for step in (1, 2, 3)]
    (paths[2] / "network.safetensors").write_bytes(b"")
    (paths[1] / "state.json").unlink()
    with pytest.warns(CheckpointWarning) as caught:
        found = newest_good(tmp_path)
    assert found is not None and found.step == 1
    assert [name in str(w.message) for w, name in zip(caught, ("step-00000003", "step-00000002"), strict=True)] == [True, True]
    (paths[0] / "optimizer.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="no checkpoint of"):
        newest_good(tmp_path)


def test_find_takes_a_run_a_checkpoint_or_its_state_file(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, tensors(), {})
    save_checkpoint(tmp_path, 8, tensors(), {})
    save_checkpoint(tmp_path, 5, tensors(), {}, series="best")
    assert find_checkpoint(tmp_path).step == 8
    assert find_checkpoint(tmp_path / "checkpoints").step == 8
    assert find_checkpoint(path).step == 7
    assert find_checkpoint(path / "state.json").step == 7
    assert find_checkpoint(tmp_path, "best").step == 5
    with pytest.raises(MissingInput, match="no run and no checkpoint"):
        find_checkpoint(tmp_path / "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInput, match="holds no checkpoint"):
        find_checkpoint(tmp_path / "empty")


def test_keep_counts_each_series_by_itself(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, tensors(), {}, series="best", keep=1)
    for step in (1, 2, 100_000_000, 3):
        save_checkpoint(tmp_path, step, tensors(), {}, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000003", "step-100000000"]
    assert [p.name for p in list_checkpoints(tmp_path, "best")] == ["best-00000001"]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize("failing", range(1, 12))
def test_a_write_that_fails_at_the_nth_call_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    save_checkpoint(tmp_path, 1, tensors(1), {})
    calls = 0

    def count(real: object, *args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)  # type: ignore[operator]

    for name in ("fsync", "open", "mkdir", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, **k: count(lambda *x: real(*x, **k), *a))
    try:
        save_checkpoint(tmp_path, 2, tensors(2), {})
    except CheckpointError as error:
        assert "No space left" in str(error) and "--resume" in str(error)
    monkeypatch.undo()
    found = newest_good(tmp_path)
    assert found is not None and found.step in (1, 2)
    assert same(found.tensors, tensors(found.step))


def test_leftovers_of_a_killed_process_are_never_taken_and_are_cleared(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, tensors(), {})
    left = tmp_path / "checkpoints" / f".step-00000002.{'7' * 32}.tmp"
    left.mkdir()
    (left / "network.safetensors").write_bytes(b"half")
    assert find_checkpoint(tmp_path).step == 1
    with locked(tmp_path):
        assert not left.exists()


def test_saving_over_a_damaged_checkpoint_replaces_it(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, tensors(), {})
    (path / "network.safetensors").write_bytes(b"")
    save_checkpoint(tmp_path, 1, tensors(), {})
    assert load_checkpoint(path).step == 1
