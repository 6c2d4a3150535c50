"""Damaged zips, tars, NIfTI files and store tables by the thousand: what medssl makes of each.

    python docs/experiments/hostile.py            1,000 of each kind, seed 0
    python docs/experiments/hostile.py --count 50 --seed 3

A table of what happened is printed; the program ends with 1 where a file was neither counted nor refused with one of medssl's own
errors, took more than 2 s of processor time, or was written outside its folder.
"""

from __future__ import annotations

import argparse
import gzip
import io
import resource
import shutil
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medssl.archive import Nifti, build_index, read_nifti, write_nifti
from medssl.errors import MedsslError
from medssl.testing.dicom import made_affine, made_volume, write_series
from medssl.volumes import Incoming, Store, write_store

SLOWEST = 2.0
Use = Callable[[Path, bytes], str]
"""What is done with a damaged content in an empty folder; says how it ended."""


def mutated(content: bytes, draw: np.random.Generator) -> bytes:
    """A few bytes changed, a stretch overwritten, zeroed, repeated or taken out, or the end cut off."""
    damaged = bytearray(content)
    for _ in range(draw.integers(1, 4)):
        at = int(draw.integers(0, len(damaged)))
        length = int(draw.choice([1, 1, 1, 4, 16, 300, 2000]))
        kind = draw.integers(0, 6)
        if kind == 0:
            damaged[at : at + length] = bytes(len(damaged[at : at + length]))
        elif kind == 1:
            damaged[at : at + length] = b"\xff" * len(damaged[at : at + length])
        elif kind == 2:
            damaged[at : at + length] = draw.bytes(len(damaged[at : at + length]))
        elif kind == 3:
            damaged[at : at + length] = damaged[at : at + length] * 2
        elif kind == 4 and len(damaged) > length + 1:
            del damaged[at : at + length]
        elif kind == 5 and at > 0:
            del damaged[at:]
    return bytes(damaged)


def dicom_files() -> dict[str, bytes]:
    """A small series."""
    with tempfile.TemporaryDirectory() as folder:
        return {path.name: path.read_bytes() for path in write_series(folder, made_volume((12, 10, 5)), made_affine())}


def zipped(draw: np.random.Generator) -> bytes:
    """The series, packed by one of four methods."""
    target = io.BytesIO()
    method = int(draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
    with zipfile.ZipFile(target, "w", method) as packed:
        for name, content in dicom_files().items():
            packed.writestr(name, content)
    return target.getvalue()


def tarred(draw: np.random.Generator) -> bytes:
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


def nifti(draw: np.random.Generator) -> bytes:
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


def of_store(store: Path) -> tuple[Callable[[np.random.Generator], bytes], Use]:
    """A table, a loose row, a manifest or a volume file of a store, damaged, and the store read."""
    files = sorted(path for path in store.rglob("*") if path.is_file())

    def content(draw: np.random.Generator) -> bytes:
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


def made_store(folder: Path) -> Path:
    """Two small volumes, whose rows are in the table, and a third whose row is loose."""
    for names in ("ab", "c"):
        write_store([Incoming(name, "p", "s", "MR", lambda: (made_volume((12, 10, 5)), made_affine())) for name in names], folder)
    return folder


def tried(make: Callable[[np.random.Generator], bytes], use: Use, count: int, seed: int) -> tuple[Counter[str], float, list[str]]:
    """How the files of one kind ended, the slowest, and what must not be."""
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = 0.0
    for number in range(count):
        draw = np.random.default_rng([seed, number])
        content = mutated(make(draw), draw)
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
                wrong.append(f"{number}: {type(error).__name__}: {error}")
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
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            "zip": (zipped, indexed("a.zip")),
            "tar": (tarred, indexed("a.tar")),
            "NIfTI": (nifti, indexed("x.nii")),
            "store": of_store(made_store(Path(folder) / "store")),
        }
        failed = False
        for name, (make, use) in kinds.items():
            ends, slowest, wrong = tried(make, use, given.count, given.seed)
            said = ", ".join(f"{count} {end}" for end, count in ends.most_common())
            sys.stdout.write(f"{name}: {said}; slowest {slowest:.2f} s\n" + "".join(f"    {line}\n" for line in wrong[:20]))
            failed = failed or bool(wrong)
    sys.stdout.write(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
