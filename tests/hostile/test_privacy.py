"""Nothing that identifies anybody leaves the private part of an index: every command, done and failing, and all that they write."""

from __future__ import annotations

import logging
import shutil
import stat
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from hostile.planted import MARK, PLANTED, make_archive, secrets

import medssl
from medssl.archive import Index, build_index, write_volumes
from medssl.cli.app import app, main
from medssl.transfer import predict
from medssl.volumes import Store, StoreOptions, estimate_store, make_store
from medssl.volumes.ingest.choice import EVERYTHING
from medssl.volumes.overview import write_overview

NETWORK = {"name": "SegResNet", "spatial_dims": 3, "in_channels": 1, "options": {"init_filters": 8}}


class Heard:
    """All that was said."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.said: list[tuple[str, str]] = []

    def __call__(self, *words: object, ends: tuple[int, ...] = (0,)) -> str:
        """Run one command; its standard output."""
        self._capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = self._capture.readouterr()
        self.said.append((" ".join(map(str, words)), captured.out + captured.err))
        assert ended.value.code in ends, captured.err
        return captured.out

    def raises(self, call: Callable[[], Any]) -> None:
        """What an exception tells, with what it was raised from."""
        with pytest.raises(medssl.errors.MedsslError) as caught:
            call()
        self.said.append(("python", "".join(traceback.format_exception(caught.value))))


@pytest.fixture
def heard(capfd: pytest.CaptureFixture[str]) -> Heard:
    return Heard(capfd)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where all is written, temporary files too."""
    folder = tmp_path / "here"
    for name in ("tmp", "home"):
        (folder / name).mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(folder / "tmp"))
    return folder


def written(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of everything outside of private parts, tables decoded too."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if "private" in path.relative_to(folder).parts:
            continue
        yield name, path.read_bytes() if path.is_file() else b""
        if path.suffix == ".parquet":
            yield name, str(pq.read_table(path).to_pylist()).encode()


def found_in(name: str, content: bytes) -> list[str]:
    text, wide = content.lower(), name.lower()
    return [one for one in secrets() if one.encode() in text or one.encode("utf-16-le") in text or one in wide]


def around(content: bytes, secret: str) -> bytes:
    """The place, for whoever has to mend it."""
    at = max(0, content.lower().find(secret.encode()))
    return content[max(0, at - 300) : at + 100]


def test_what_was_planted_is_there_to_be_found(tmp_path: Path) -> None:
    assert PLANTED >= 60
    root = make_archive(tmp_path)
    content = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file()).lower()
    missing = [one for one in secrets() if one.encode() not in content and "-" not in one and not one.startswith("17.")]
    assert missing == []


def configured(here: Path, name: str, content: dict[str, Any]) -> Path:
    path = here / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_nothing_that_was_planted_is_found_anywhere(
    tmp_path: Path, here: Path, heard: Heard, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    root = make_archive(tmp_path / "archive")
    shutil.move(root, tmp_path / "given")  # what a user types may be said again, what lies below it may not
    root = tmp_path / "given"
    caplog.clear()
    indexed_and_stored(root, here, heard)
    trained(here, heard)
    for_its_owner_alone(here)
    generic(root, here, heard)
    with_the_archive_gone(root, here, heard)
    places = [*heard.said, ("log", caplog.text), *(("warning", str(one.message)) for one in recwarn)]
    texts = [(name, text.encode()) for name, text in places]
    hits = {name: around(content, found[0]) for name, content in texts if (found := found_in("", content))}
    hits |= {name: around(content, found[0]) for name, content in written(here) if (found := found_in(name, content))}
    assert hits == {}
    key = (here / "index" / "private" / "key").read_bytes().strip()
    assert not [name for name, content in written(here) if key in content] and not any(key.decode() in text for _, text in places)
    private = [pq.read_table(path).to_pylist() for path in (here / "index" / "private").rglob("*.parquet")]
    assert MARK in str(private), "the test looks at a private part that was never filled"
    assert not [path for path in (here / "tmp").rglob("*") if path.is_file()]


def indexed_and_stored(root: Path, here: Path, heard: Heard) -> None:
    index, store = here / "index", here / "store"
    heard("index", root, "--index", index)
    heard("index", root, "--index", index, "--json", "--workers", 1)
    heard("volumes", index)
    heard("volumes", index, "--json", "--nifti", here / "nifti")
    heard("volumes", index, "--left-out")
    heard("volumes", index, "--left-out", "--json")
    heard("show", index, "--picture", here / "index.png", "--rows", 64)
    heard("show", index, "--json")
    assert len(Index(index).volumes("kind = 'dicom'")) == 5 and len(Index(index).volumes("kind = 'nifti'")) == 3
    config = configured(here, "store", {"choice": {"rules": [{"leave_out": {"description": f"{MARK[:2]}.*p2"}}]}})
    heard("store", index, "--out", store, "--config", config, "--modality", "MR")
    heard("store", root, "--out", here / "direct", "--json")
    heard("store", root, "--out", here / "direct", "--dry-run", "--json")
    heard("store", index, "--out", here / "none", "--min-slices", 999, ends=(2,))
    heard("store", index, "--out", here / "none", "--where", "patient = nobody", ends=(2,))
    heard("store", index, "--out", here / "none", "--where", "description = 1", "--debug", ends=(2,))
    heard("show", store, "--picture", here / "store.png")
    heard("show", store, "--json")
    heard("verify", store)
    heard("verify", store, "--json")


def trained(here: Path, heard: Heard) -> None:
    train = {"steps": 2, "checkpoint_every": 1, "picture_every": 1, "precision": "fp32"}
    terms = {"tasks": [{"name": "inpainting"}], "consistency": [{"name": "agreement", "weight": 0.1}]}
    data = {"store": str(here / "store"), "size": [16, 16, 16], "batch": 2}
    config = configured(here, "pretrain", {"network": NETWORK, "data": data, **terms, "train": train})
    heard("pretrain", config, "--out", here / "ssl")
    heard("pretrain", config, "--out", here / "bad", "train.steps=many", ends=(2,))
    heard("pretrain", config, "--out", here / "bad", f"data.store={here / 'index'}", "--debug", ends=(1, 2))
    images = sorted((here / "nifti").glob("*.nii.gz"))
    labels = here / "labels"
    labels.mkdir()
    for image in images:
        loaded = nibabel.load(image)
        values = (np.asarray(loaded.dataobj) > 0).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(values, loaded.affine), labels / image.name)
    given = {"images": str(here / "nifti"), "labels": str(labels), "size": [16, 16, 16], "modality": "MR", "validation": 0.3}
    config = configured(
        here,
        "finetune",
        {"network": {**NETWORK, "out_channels": 2}, "data": given, "train": {"steps": 2, "validate_every": 1, "precision": "fp32"}},
    )
    heard("finetune", config, "--out", here / "tuned", "--pretrained", here / "ssl")
    heard("finetune", config, "--out", here / "bad", "data.size=[0]", ends=(2,))
    heard("predict", here / "tuned", here / "index", "--out", here / "maps", ends=(0, 1))
    heard("evaluate", "--predictions", here / "maps", "--labels", labels, "--csv", here / "scores.csv", ends=(0, 1, 2))
    heard("evaluate", "--predictions", here / "maps", "--labels", here / "home", ends=(1, 2))


def for_its_owner_alone(here: Path) -> None:
    made = [here / name for name in ("index", "nifti", "store", "direct", "direct.index", "ssl", "tuned", "maps", "index.png", "store.png")]
    for path in [path for one in made for path in (one, *one.rglob("*"))]:
        assert stat.S_IMODE(path.lstat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def generic(root: Path, here: Path, heard: Heard) -> None:
    """Every command that there is, also one that is still to be made: without arguments, and with what it may not expect."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    names = [[name, inner] for name, group in commands.items() for inner in getattr(group, "commands", {None: None})]
    anything = (0, 1, 2)
    for words in ([word for word in name if word] for name in names):
        if words == ["demo"]:
            continue  # makes an archive of its own
        if words != ["plugins", "check"]:  # of everything that is installed: minutes, and nothing of the archive
            heard(*words, ends=anything)
        for given in (root, here / "index", here / "store", here / "tuned"):
            heard(*words, given, ends=anything)
            heard(*words, given, "--debug", "--out", here / "other", ends=anything)
    heard("predict", here / "tuned", root, "--out", here / "maps2", "--debug", ends=anything)


def with_the_archive_gone(root: Path, here: Path, heard: Heard) -> None:
    index = Index(here / "index")
    victims = list(root.rglob(f"{MARK} IM*"))
    for file in victims:
        file.write_bytes(file.read_bytes()[:-200])
    for path in [*root.glob("*.zip"), *root.glob("*.tar")]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for file in root.rglob("*.nii.gz"):
        file.write_bytes(file.read_bytes()[:-40])
    broken(root, here, heard, index)
    for file in victims:
        file.write_bytes(MARK.encode())
    broken(root, here, heard, Index(here / "index"))
    heard("index", root, "--index", here / "again")
    shutil.rmtree(root)
    broken(root, here, heard, Index(here / "index"))
    heard("index", root, "--index", here / "gone", ends=(1, 2))


def broken(root: Path, here: Path, heard: Heard, index: Index) -> None:
    """Reading what is damaged, by command and in Python."""
    for number in range(2):
        shutil.rmtree(here / f"left{number}", ignore_errors=True)
    heard("store", here / "index", "--out", here / "left0", ends=(0, 1))
    heard("store", here / "index", "--out", here / "left1", "--json", "--debug", ends=(0, 1))
    heard("store", here / "index", "--out", here / "left2", "--dry-run", ends=(0, 1))
    heard("volumes", here / "index", "--nifti", here / "left-nifti", "--debug", ends=(0, 1))
    heard("show", here / "index", "--picture", here / "left.png")
    heard("predict", here / "tuned", here / "index", "--out", here / "maps3", "--debug", ends=(0, 1))
    for record in index.volumes("kind = 'dicom'"):
        heard.raises(lambda name=record.volume: index.read(name))  # type: ignore[misc]
        heard.said.append(("repr", repr(record) + repr(index) + index._repr_html_()))
    write_volumes(index, here / "left-nifti")  # warns
    heard.raises(lambda: predict(here / "tuned", [here / "index"], here / "maps3"))
    heard.said.append(("summary", repr(make_store([here / "index"], here / "left1"))))
    heard.said.append(("estimate", repr(estimate_store([here / "index"], here / "left2", StoreOptions(choice=EVERYTHING)))))
    write_overview(index, here / "left.png")


def test_an_index_tells_nothing_without_its_key(tmp_path: Path) -> None:
    root = make_archive(tmp_path)
    names: list[set[str]] = []
    for name in ("one", "other"):
        build_index([root], tmp_path / name, workers=1)
        names.append({value for record in Index(tmp_path / name).volumes() for value in (record.volume, record.patient, record.series)})
    assert not names[0] & names[1]
    assert len(Store(make_store([tmp_path / "one"], tmp_path / "store").folder)) == 8
