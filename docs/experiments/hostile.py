"""Damaged DICOM files, zips, tars, NIfTI files, stores, checkpoints, runs and configurations by the thousand: what medssl makes of each.

    python docs/experiments/hostile.py            1,000 of each kind, seed 0
    python docs/experiments/hostile.py --count 50 --seed 3 --only checkpoint configuration

A table of what happened is printed; the program ends with 1 where a file was neither counted nor refused with one of medssl's own
errors, was not what pydicom alone makes of it, took more than 2 s of processor time, or was written outside its folder.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import resource
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from damage import Draw, Make, Use, damaging, misstated, mutated
from damaged_dicom import mutated_dicom, scanned_both_ways

from medssl.archive import Nifti, build_index, read_nifti, write_nifti
from medssl.config import load_config
from medssl.errors import MedsslError
from medssl.faults import is_fault
from medssl.networks import NetworkSpec
from medssl.plugins import Plugins
from medssl.testing.dicom import made_affine, made_volume, write_series
from medssl.train import PretrainConfig, load_checkpoint, pretrain, save_checkpoint
from medssl.train.checkpoint_state import STATE, checksum_of
from medssl.train.config import read_config
from medssl.train.setup import make_plan
from medssl.transfer.load import load_pretrained
from medssl.transfer.options import FinetuneConfig
from medssl.transfer.prediction import load_segmenter
from medssl.volumes import Incoming, Store, training_cases, write_store

SLOWEST = 2.0


@cache
def dicom_files() -> dict[str, bytes]:
    """A small series."""
    with tempfile.TemporaryDirectory() as folder:
        return {path.name: path.read_bytes() for path in write_series(folder, made_volume((12, 10, 5)), made_affine())}


def zipped(draw: Draw) -> bytes:
    """The series, packed by one of four methods."""
    target = io.BytesIO()
    method = int(draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
    with zipfile.ZipFile(target, "w", method) as packed:
        for name, content in dicom_files().items():
            packed.writestr(name, content)
    return target.getvalue()


def tarred(draw: Draw) -> bytes:
    """The series, plain or compressed, in one of three formats."""
    target = io.BytesIO()
    mode = str(draw.choice(["w:", "w:", "w:gz", "w:bz2", "w:xz"]))
    form = int(draw.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=target, mode=mode, format=form) as packed:  # type: ignore[call-overload]
        for name, content in dicom_files().items():
            member = tarfile.TarInfo(name if form == tarfile.USTAR_FORMAT else "long/" * 30 + name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return target.getvalue()


def nifti(draw: Draw) -> bytes:
    """An image; its header is damaged as often as all the rest."""
    with tempfile.TemporaryDirectory() as folder:
        plain = write_nifti(Nifti(made_volume((12, 10, 5)), made_affine()), Path(folder) / "a.nii").read_bytes()
    if draw.random() < 0.7:
        plain = mutated(plain[:352], draw) + plain[352:]
    return gzip.compress(plain) if draw.random() < 0.5 else plain


def indexed(name: str) -> Use:
    """Index the damaged file: every file has to be in a volume or counted."""

    def use(folder: Path, content: bytes) -> str:
        file = folder / name
        file.write_bytes(content)
        summary = build_index([file if name.startswith("a") else folder], folder.with_name("index"), workers=1)
        if summary.files != sum(record.instances for record in summary.volumes) + sum(summary.rejected.values()):
            return "NOT COUNTED"
        if name.endswith(".nii") and content[:2] != b"\x1f\x8b":
            read_nifti(file)
        return "whole" if not summary.rejected else "counted"

    return use


def of_store(store: Path) -> tuple[Make, Use]:
    """A table, a loose row, a manifest or a volume file of a store, damaged, and the store read."""
    files = sorted(path for path in store.rglob("*") if path.is_file())

    def content(draw: Draw) -> bytes:
        path = files[int(draw.integers(0, len(files)))]
        return str(path.relative_to(store)).encode() + b"\n" + path.read_bytes()

    def use(folder: Path, content: bytes) -> str:
        name, _, damaged = content.partition(b"\n")
        shutil.copytree(store, folder / "store")
        known = [str(path.relative_to(store)) for path in files]
        (folder / "store" / (name.decode("latin-1") if name.decode("latin-1") in known else known[0])).write_bytes(damaged)
        opened = Store(folder / "store")
        opened.shapes()
        for number in range(len(opened)):
            opened.read_whole(number)
        return "whole"

    return content, use


def of_checkpoint(run: Path) -> tuple[Make, Use]:
    """A state that says something else, or bytes of a file that changed, under checksums that fit; and the run used in every way."""
    (checkpoint,) = (run / "checkpoints").iterdir()
    names = sorted(path.name for path in checkpoint.iterdir())
    plugins = Plugins.load()

    def content(draw: Draw) -> bytes:
        state = json.loads((checkpoint / STATE).read_text())
        name = str(draw.choice(names)) if draw.random() < 0.3 else STATE
        if name != STATE:
            return name.encode() + b"\n" + mutated((checkpoint / name).read_bytes(), draw)
        if draw.random() < 0.1:
            return STATE.encode() + b"\n" + mutated((checkpoint / STATE).read_bytes(), draw)
        return STATE.encode() + b"\n" + json.dumps(misstated(state, draw)).encode()

    def use(folder: Path, content: bytes) -> str:
        name, _, damaged = content.partition(b"\n")
        copy = Path(shutil.copytree(run, folder / "run")) / "checkpoints" / checkpoint.name
        (copy / name.decode()).write_bytes(damaged)
        _sign(copy)
        config = PretrainConfig.model_validate(load_config(run / "config.yaml"))
        with redirect_stderr(io.StringIO()):
            used = [
                _try(lambda: load_pretrained(None, copy, out_channels=2)),
                _try(lambda: make_plan(config.model_copy(update={"network": None, "from_": str(copy)}), [], {}, plugins).objective()),
                _try(lambda: load_segmenter(copy)),
                _try(lambda: pretrain(config=config, out=folder / "run", resume=True)),
            ]
        return "whole" if used[0] == used[3] == "" else "refused by all" if all(used) else "refused by some"

    return content, use


def _try(use: Callable[[], Any]) -> str:
    try:
        use()
    except MedsslError as error:
        return str(error)
    except OSError as error:
        if not is_fault(error):
            raise
        return str(error)  # the command line says what the system refused
    return ""


def _sign(checkpoint: Path) -> None:
    """Write the checksums that the files have, where the state is one at all."""
    file = checkpoint / STATE
    try:
        state = json.loads(file.read_bytes())
        for name in list(state["files"]):
            state["files"][name] = checksum_of((checkpoint / name).read_bytes())
    except (ValueError, LookupError, TypeError, OSError, RecursionError):
        return
    text = json.dumps({"checksum": "0" * 16} | {key: value for key, value in state.items() if key != "checksum"}, indent=1)
    file.write_text(text.replace("0" * 16, checksum_of(text.encode()), 1))


def made_run(folder: Path, store: Path) -> Path:
    """A pretraining of one step, whose checkpoint says what that of a fine-tuning does."""
    network = NetworkSpec(name="UNet", spatial_dims=3, in_channels=1, out_channels=2, options={"channels": [4, 8], "strides": [2]})
    config = {
        "network": network,
        "data": {"store": str(store), "size": [4, 4, 4]},
        "tasks": [{"name": "inpainting", "block": 1}],
        "train": {"steps": 1, "picture_every": 0},
    }
    run = pretrain(config=config, out=folder)
    read = load_checkpoint(folder / "checkpoints" / "step-00000001")
    more = {"modalities": ["MR"], "arrays": [0], "label_values": {"0": 0, "7": 1}, "overlap": 0.5}
    save_checkpoint(run.folder, 1, read.tensors, read.state | more)
    return run.folder


def of_configuration(store: Path) -> tuple[Make, Use]:
    """A configuration with other values, keys or bytes, read and checked as far as it can be before a step."""
    network = {"name": "SegResNet", "spatial_dims": 3, "in_channels": 1, "options": {"init_filters": 8}}
    train = {"steps": 10, "learning_rate": 1e-3, "precision": "auto", "device": "auto"}
    terms = {"tasks": [{"name": "inpainting", "ratio": [0.3, 0.6]}], "consistency": [{"name": "simsiam", "weight": 0.1}]}
    crops = {"size": [8, 8, 4], "batch": 2}
    documents = [
        {"network": network, "data": {"store": str(store), **crops}, **terms, "train": train, "seed": 3, "views": {}},
        {
            "network": {**network, "out_channels": 3},
            "data": {"images": "images", "labels": "labels", "spacing": 1.5, "label_values": {0: 0, 7: 1, 9: "ignore"}, **crops},
            "preparation": {"modalities": {"CT": {"kind": "window", "low": -160, "high": 240}}},
            "augment": {"flip": [0]},
            "unlabelled": {"store": str(store)},
            **terms,
            "train": train,
        },
    ]

    def content(draw: Draw) -> bytes:
        document = documents[int(draw.integers(0, 2))]
        if draw.random() < 0.3:
            return mutated(yaml.safe_dump(document).encode(), draw)
        return yaml.safe_dump(misstated(document, draw)).encode()

    def use(folder: Path, content: bytes) -> str:
        file = folder / "run.yaml"
        file.write_bytes(content)
        pretraining = _try(lambda: make_plan(file, [], {}, Plugins.load()))
        finetuning = _try(lambda: training_cases(read_config(FinetuneConfig, file, [], {}, "fine-tuning").data))
        return "whole" if not pretraining or not finetuning else "refused"

    return content, use


def made_store(folder: Path) -> Path:
    """Two small volumes, whose rows are in the table, and a third whose row is loose."""
    for names in ("ab", "c"):
        write_store([Incoming(name, "p", "s", "MR", lambda: (made_volume((12, 10, 5)), made_affine())) for name in names], folder)
    return folder


def tried(make: Make, use: Use, count: int, seed: int) -> tuple[Counter[str], float, list[str]]:
    """How the files of one kind ended, the slowest, and what must not be."""
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = 0.0
    for number in range(count):
        draw = np.random.default_rng([seed, number])
        content = make(draw)
        with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (Path(place) / "archive").mkdir()
            started = time.process_time()
            try:
                end = use(Path(place) / "archive", content)
            except MedsslError as error:
                end = f"refused: {type(error).__name__}"
            except Exception as error:  # noqa: BLE001 - what is looked for
                end = f"FAULT: {type(error).__name__}"
                where = traceback.extract_tb(error.__traceback__)[-1]
                wrong.append(f"{number}: {type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})")
            took = time.process_time() - started
            strangers = [path.name for path in Path(place).iterdir() if path.name not in ("archive", "index")]
        slowest = max(slowest, took)
        if took > SLOWEST or strangers or end.isupper():
            wrong.append(f"{number}: {end}, {took:.1f} s, {strangers}")
        ends[end] += 1
    return ends, slowest, wrong


def main(arguments: list[str] | None = None) -> int:
    """Every kind; 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="kinds, such as checkpoint configuration")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        store = cache(lambda: made_store(Path(folder) / "store"))

        def stores() -> tuple[Make, Use]:
            in_store, use_store = of_store(store())
            return damaging(in_store), use_store

        kinds: dict[str, Callable[[], tuple[Make, Use]]] = {
            "DICOM": lambda: (mutated_dicom, scanned_both_ways()),
            "zip": lambda: (damaging(zipped), indexed("a.zip")),
            "tar": lambda: (damaging(tarred), indexed("a.tar")),
            "NIfTI": lambda: (damaging(nifti), indexed("x.nii")),
            "store": stores,
            "checkpoint": lambda: of_checkpoint(made_run(Path(folder) / "run", store())),
            "configuration": lambda: of_configuration(store()),
        }
        failed = False
        for name, kind in kinds.items():
            if given.only and name not in given.only:
                continue
            ends, slowest, wrong = tried(*kind(), given.count, given.seed)
            said = ", ".join(f"{count} {end}" for end, count in ends.most_common())
            sys.stdout.write(f"{name}: {said}; slowest {slowest:.2f} s\n" + "".join(f"    {line}\n" for line in wrong[:20]))
            failed = failed or bool(wrong)
    sys.stdout.write(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
